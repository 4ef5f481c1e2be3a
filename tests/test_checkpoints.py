"""From folders to tensor entries: step names, selection, indexes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from folders import INDEX, SINGLE, Raw, raw, write_index, write_model
from relex_ext.checkpoints import discover, open_checkpoint, resolve, select, step_of
from relex_ext.errors import InputError

A = raw(np.arange(12, dtype=np.uint16), "BF16", (3, 4))
B = raw(np.arange(5, dtype=np.uint32), "F32")
C = raw(np.array([7], np.uint16), "F16", ())
TENSORS = {"a": A, "b": B, "c": C}


def contents(folder: Path) -> dict[str, Raw]:
    """What open_checkpoint says lies where, read from there."""
    found = {}
    for name, entry in open_checkpoint(folder).tensors.items():
        data = entry.shard.path.read_bytes()
        part = data[entry.offset : entry.offset + entry.nbytes]
        found[name] = Raw(entry.dtype, entry.shape, part)
    return found


# ---- step folders ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("global_step_12", 12),
        ("global_step12", 12),
        ("checkpoint-7", 7),
        ("checkpoint-0", 0),
        ("step_500", 500),
        ("step-500", 500),
        ("step500", 500),
        ("iter_0000012", 12),
        ("iter_12", 12),
        ("checkpoint-007", 7),
        ("checkpoint_7", None),
        ("checkpoint-7-backup", None),
        ("old-checkpoint-7", None),
        ("step_1.5", None),
        ("step_-3", None),
        ("step_", None),
        ("checkpoint", None),
        ("Step_5", None),
        ("step_5\n", None),
        ("epoch_3", None),
        ("12", None),
    ],
)
def test_step_names(name: str, step: int | None) -> None:
    assert step_of(name) == step


@pytest.mark.parametrize(
    "pattern", ["global_step_{}", "checkpoint-{}", "step_{}", "step{}", "iter_{:07}"]
)
def test_discover_sorts_by_number(tmp_path: Path, pattern: str) -> None:
    steps = [100, 9, 10, 2, 1000]
    for step in steps:
        (tmp_path / pattern.format(step)).mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "checkpoint-77").write_text("a file, not a folder")
    found = discover(tmp_path)
    assert list(found.items()) == [(s, tmp_path / pattern.format(s)) for s in sorted(steps)]


def test_discover_follows_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "step_4").symlink_to(tmp_path / "elsewhere")
    assert discover(run) == {4: run / "step_4"}


def test_one_step_twice(tmp_path: Path) -> None:
    for name in ("checkpoint-5", "step_5"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"step 5 twice: .*checkpoint-5 and .*step_5"):
        discover(tmp_path)


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: None, lambda p: p.write_text("")])
def test_no_run(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "run")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "run"))):
        discover(tmp_path / "run")


def test_resolve_takes_mappings_pairs_lists_and_folders(tmp_path: Path) -> None:
    folders = {step: tmp_path / f"step_{step}" for step in (30, 4, 20)}
    for folder in folders.values():
        folder.mkdir()
    expected = [(4, folders[4]), (20, folders[20]), (30, folders[30])]
    assert list(resolve(tmp_path).items()) == expected
    assert list(resolve(str(tmp_path)).items()) == expected
    assert list(resolve(folders).items()) == expected
    assert list(resolve({s: str(f) for s, f in folders.items()}).items()) == expected
    assert list(resolve(list(folders.items())).items()) == expected
    assert list(resolve([str(f) for f in folders.values()]).items()) == expected


def test_resolve_refuses_duplicates(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="step 3 twice"):
        resolve([(3, tmp_path / "x"), (3, tmp_path / "y")])


FOUND = {step: Path(str(step)) for step in (5, 10, 20, 40)}


@pytest.mark.parametrize(
    ("until", "steps", "expected"),
    [
        (None, None, [5, 10, 20, 40]),
        (20, None, [5, 10, 20]),
        (39, None, [5, 10, 20]),
        (1000, None, [5, 10, 20, 40]),
        (None, [40, 5], [5, 40]),
        (20, [40, 20, 5], [5, 20]),
    ],
)
def test_select(until: int | None, steps: list[int] | None, expected: list[int]) -> None:
    assert list(select(FOUND, until, steps).items()) == [(s, FOUND[s]) for s in expected]


@pytest.mark.parametrize(
    ("until", "steps", "message"),
    [
        (5, None, "at least 2, found 1"),
        (4, None, "at least 2, found 0"),
        (None, [10], "at least 2"),
        (None, [], "at least 2"),
        (None, [10, 11, 12], "no checkpoint of step 11, 12; found 5, 10, 20, 40"),
        (None, [10, 10, 20], "each step once"),
    ],
)
def test_select_refuses(until: int | None, steps: list[int] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(FOUND, until, steps)


# ---- single and sharded ------------------------------------------------------------------------


@pytest.mark.parametrize("pad", range(5))
@pytest.mark.parametrize("shards", [None, [["a", "b", "c"]], [["c"], ["b", "a"]]])
def test_entries_point_at_the_bytes(
    tmp_path: Path, pad: int, shards: list[list[str]] | None
) -> None:
    assert contents(write_model(tmp_path, TENSORS, shards, pad=pad)) == TENSORS


@pytest.mark.parametrize("sub", ["", "actor/huggingface", "huggingface"])
def test_weights_in_a_subfolder(tmp_path: Path, sub: str) -> None:
    (tmp_path / "actor").mkdir()
    (tmp_path / "actor" / "model_world_size_8_rank_0.pt").write_bytes(b"fsdp")
    write_model(tmp_path / sub, TENSORS)
    assert open_checkpoint(tmp_path).folder == tmp_path / sub
    assert contents(tmp_path) == TENSORS


def test_index_wins_over_a_single_file(tmp_path: Path) -> None:
    """As transformers does; a stale model.safetensors beside an index is not the model."""
    write_model(tmp_path, {"stale": A})
    write_model(tmp_path, TENSORS, [["a"], ["b", "c"]])
    assert set(contents(tmp_path)) == set(TENSORS)


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ('{"tie_word_embeddings": true}', True),
        ('{"tie_word_embeddings": false}', False),
        ("{}", None),
        ("not json", None),
        ("[]", None),
        ('{"tie_word_embeddings": "yes"}', None),
    ],
)
def test_tied(tmp_path: Path, config: str, tied: bool | None) -> None:
    write_model(tmp_path, TENSORS, companions={"config.json": config.encode()})
    assert open_checkpoint(tmp_path).tied is tied


# ---- what is wrong with an index ---------------------------------------------------------------


def broken_index(folder: Path, weight_map: object) -> None:
    write_model(folder, TENSORS, [["a"], ["b", "c"]])
    write_index(folder, weight_map)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": FIRST, "b": SECOND}, "tensor c: .*no shard"),
        ({"a": SECOND, "b": SECOND, "c": SECOND}, "tensor a: named by .*not in the file"),
        ({"a": FIRST, "b": FIRST, "c": SECOND}, f"tensor b: expected {SECOND}"),
        ({"a": FIRST, "b": SECOND, "c": SECOND, "d": FIRST}, "tensor d: named by"),
        ({"a": "gone.safetensors", "b": SECOND, "c": SECOND}, "gone.safetensors"),
        ({"a": "../" + FIRST, "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "/etc/passwd", "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "..", "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "", "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "x\0y", "b": SECOND, "c": SECOND}, "not a readable|plain file name"),
        ({"a": 3, "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({}, "weight_map"),
        ([], "weight_map"),
        ("x", "weight_map"),
    ],
)
def test_index_errors(tmp_path: Path, weight_map: object, message: str) -> None:
    broken_index(tmp_path, weight_map)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1, 2]", b'"x"', b"{}", b"null"])
def test_index_that_is_not_one(tmp_path: Path, text: bytes) -> None:
    write_model(tmp_path, TENSORS, [["a"], ["b", "c"]])
    (tmp_path / INDEX).write_bytes(text)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / INDEX))):
        open_checkpoint(tmp_path)


def test_index_may_say_more_than_its_weight_map(tmp_path: Path) -> None:
    write_model(tmp_path, TENSORS, [["a"], ["b", "c"]])
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({**index, "metadata": {"total_size": 1}, "x": []}))
    assert contents(tmp_path) == TENSORS


# ---- folders without weights -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_only(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match=r"pickled weights; .*safe_serialization"):
        open_checkpoint(tmp_path)


def test_lora_only(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="LoRA adapter; merge it first"):
        open_checkpoint(tmp_path)


def test_empty_missing_and_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"expected {SINGLE} or"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="found no folder"):
        open_checkpoint(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="found no folder"):
        open_checkpoint(tmp_path / "file")


def test_select_turns_numpy_steps_into_integers() -> None:
    """They end up in JSON."""
    chosen = select(FOUND, steps=np.array([20, 5]))
    assert list(chosen) == [5, 20]
    assert {type(step) for step in chosen} == {int}
