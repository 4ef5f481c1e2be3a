"""Aligning a base and its checkpoints tensor by tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from folders import Raw, raw, write_model
from relex_ext.errors import InputError
from relex_ext.inputs import open_inputs
from relex_ext.trajectory import Trajectory

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def ones(shape: tuple[int, ...], dtype: str = "BF16") -> Raw:
    word = {"F32": np.uint32, "I64": np.uint64, "F64": np.uint64}.get(dtype, np.uint16)
    return raw(np.ones(shape, word), dtype, shape)


MODEL = {EMBEDDING: ones((7, 3)), "w": ones((4, 5)), "ids": ones((3,), "I64")}


def build(
    root: Path,
    base: Mapping[str, Raw] = MODEL,
    first: Mapping[str, Raw] = MODEL,
    newest: Mapping[str, Raw] = MODEL,
    configs: tuple[str, str, str] = ("{}", "{}", "{}"),
) -> Trajectory:
    folders = [root / "base", root / "run" / "step_1", root / "run" / "step_2"]
    for folder, tensors, config in zip(folders, (base, first, newest), configs, strict=True):
        write_model(folder, tensors, companions={"config.json": config.encode()})
    return open_inputs(folders[0], root / "run")


def test_tensors_are_the_newest_ones_in_its_order(tmp_path: Path) -> None:
    other_way = dict(reversed(MODEL.items()))
    found = build(tmp_path, base=other_way, first=other_way)
    assert [t.name for t in found.tensors] == list(MODEL)
    assert [t.name for t in found.trained] == [EMBEDDING, "w"]
    assert found.steps == (1, 2)
    w = found.tensors[1]
    assert (w.shape, w.columns, w.nbytes) == ((4, 5), 20, 3 * 40)
    assert [r.shard.path.parent.name for r in (w.base, *w.rows)] == ["base", "step_1", "step_2"]


@pytest.mark.parametrize("where", ["base", "first"])
def test_missing_tensor(tmp_path: Path, where: str) -> None:
    less = {n: t for n, t in MODEL.items() if n != "w"}
    folder = {"base": "base", "first": "step_1"}[where]
    with pytest.raises(InputError, match=rf"{folder}: tensor w: missing"):
        build(tmp_path, **{where: less})


@pytest.mark.parametrize("where", ["base", "first"])
def test_extra_tensor(tmp_path: Path, where: str) -> None:
    folder = {"base": "base", "first": "step_1"}[where]
    with pytest.raises(InputError, match=rf"{folder}: tensor more: extra, .*step_2"):
        build(tmp_path, **{where: {**MODEL, "more": ones((2,))}})


def test_a_tensor_missing_in_the_newest_is_extra_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="base: tensor w: extra"):
        build(tmp_path, newest={n: t for n, t in MODEL.items() if n != "w"})


@pytest.mark.parametrize("shape", [(5, 4), (20,), (4, 5, 1), (4, 6), ()])
@pytest.mark.parametrize("where", ["base", "first"])
def test_other_shape(tmp_path: Path, where: str, shape: tuple[int, ...]) -> None:
    text = re.escape(f"tensor w: shape: expected [4, 5], found {list(shape)}")
    with pytest.raises(InputError, match=text):
        build(tmp_path, **{where: {**MODEL, "w": ones(shape)}})


def test_floating_dtypes_may_differ(tmp_path: Path) -> None:
    found = build(
        tmp_path,
        base={**MODEL, "w": ones((4, 5), "F32")},
        first={**MODEL, "w": ones((4, 5), "F16")},
    )
    w = found.trained[1]
    assert [e.dtype for e in (w.base, *w.rows)] == ["F32", "F16", "BF16"]
    assert w.nbytes == 20 * (4 + 2 + 2)


@pytest.mark.parametrize("where", ["base", "first", "newest"])
@pytest.mark.parametrize("dtype", ["F64", "I64"])
def test_other_dtypes_do_not_mix_with_floating_ones(tmp_path: Path, where: str, dtype: str) -> None:
    with pytest.raises(InputError, match=r"tensor w: dtype: expected .*, found (F64|I64|BF16)"):
        build(tmp_path, **{where: {**MODEL, "w": ones((4, 5), dtype)}})


def test_f64_everywhere_is_refused(tmp_path: Path) -> None:
    wide = {**MODEL, "w": ones((4, 5), "F64")}
    with pytest.raises(InputError, match="tensor w: dtype: expected F32, F16 or BF16, found F64"):
        build(tmp_path, wide, wide, wide)


def test_integer_buffers_keep_their_dtype(tmp_path: Path) -> None:
    short = raw(np.ones(6, np.uint32), "I32", (3,))
    short = Raw("I32", (3,), short.data[:12])
    with pytest.raises(InputError, match="tensor ids: dtype: expected I64, found I32"):
        build(tmp_path, base={**MODEL, "ids": short})


def test_nothing_to_train(tmp_path: Path) -> None:
    only = {"ids": MODEL["ids"]}
    with pytest.raises(InputError, match="expected floating-point weights, found none"):
        build(tmp_path, only, only, only)


# ---- tied heads --------------------------------------------------------------------------------

UNTIED = {**MODEL, HEAD: ones((7, 3))}
TIE, APART = '{"tie_word_embeddings": true}', '{"tie_word_embeddings": false}'


@pytest.mark.parametrize("say", ["{}", TIE])
def test_head_only_in_the_newest(tmp_path: Path, say: str) -> None:
    """The others' embedding stands in for it."""
    found = build(tmp_path, newest=UNTIED, configs=(say, say, say))
    head = next(t for t in found.tensors if t.name == HEAD)
    assert [e.name for e in (head.base, *head.rows)] == [EMBEDDING, EMBEDDING, HEAD]


@pytest.mark.parametrize("where", ["base", "first"])
def test_head_missing_in_the_newest(tmp_path: Path, where: str) -> None:
    """A head that another folder has beside its tied embedding is not written."""
    found = build(tmp_path, **{where: UNTIED})
    assert [t.name for t in found.tensors] == list(MODEL)


@pytest.mark.parametrize("absent", ["base", "first"])
def test_absent_head_of_an_untied_model(tmp_path: Path, absent: str) -> None:
    models = {"base": UNTIED, "first": UNTIED, "newest": UNTIED, absent: MODEL}
    with pytest.raises(InputError, match=f"tensor {HEAD}: missing"):
        build(tmp_path, **models, configs=(APART, APART, APART))


def test_newest_lacks_the_head_of_an_untied_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"base: tensor {HEAD}: extra"):
        build(tmp_path, base=UNTIED, first=UNTIED, configs=(APART, APART, APART))


def test_two_embeddings_leave_a_head_undecided(tmp_path: Path) -> None:
    two = {**MODEL, "vision.embed_tokens.weight": ones((7, 3))}
    with pytest.raises(InputError, match=f"tensor {HEAD}: missing"):
        build(tmp_path, base=two, first=two, newest={**two, HEAD: ones((7, 3))})


# ---- folders -----------------------------------------------------------------------------------


def test_sharding_may_differ(tmp_path: Path) -> None:
    write_model(tmp_path / "base", MODEL, [[EMBEDDING], ["ids", "w"]])
    write_model(tmp_path / "run" / "step_1", MODEL)
    write_model(tmp_path / "run" / "step_2", MODEL, [["w"], ["ids"], [EMBEDDING]])
    found = open_inputs(tmp_path / "base", tmp_path / "run")
    assert [t.name for t in found.tensors] == ["w", "ids", EMBEDDING]
    assert [len(c.shards) for c in (found.base, *found.checkpoints)] == [2, 1, 3]


def test_until_and_steps_open_only_what_they_choose(tmp_path: Path) -> None:
    build(tmp_path)
    write_model(tmp_path / "run" / "step_3", {"other": ones((1,))})
    with pytest.raises(InputError, match="tensor other: missing"):
        open_inputs(tmp_path / "base", tmp_path / "run")
    assert open_inputs(tmp_path / "base", tmp_path / "run", until=2).steps == (1, 2)
    assert open_inputs(tmp_path / "base", tmp_path / "run", steps=[2, 1]).steps == (1, 2)
