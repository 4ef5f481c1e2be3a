"""relex verify --samples: what relex writes agrees with its inputs, what is made up does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folders import MODEL, SHARDS, RunFolder, make_run, raw, read_model, write_model
from outputs import check, place_of, redigest, rewrite
from relex_ext import InputError, Weights, combine, extrapolate
from relex_ext.applied import weights_file
from relex_ext.output import WEIGHTS
from tables import ISAS
from test_nonfinite import BITS, NAMES, poison

STEPS = (10, 20, 35, 40, 70)
ALL = 10**9
BLOCK = 4096
BLOCKS = sum(-(-int(np.prod(spec.shape)) // BLOCK) for spec in MODEL.values())
"""Of a target; the empty tensor has none."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("samples"), STEPS, shards=SHARDS)


@pytest.fixture(scope="module")
def made(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    extrapolate(run.base, run.checkpoints, [100, 62.5], out, progress=False)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def forge(out: Path, target: str, name: str, at: int = 0) -> None:
    """Flip the lowest bit of a tensor's byte, and let the digest follow."""
    shard, begin, _ = place_of(out / target, name)
    data = bytearray(shard.read_bytes())
    data[begin + at] ^= 1
    shard.write_bytes(data)
    redigest(out)


def assert_agrees(out: Path, targets: int = 1) -> None:
    found = check(out, ALL)
    assert (found.damages, found.samples) == ((), targets * BLOCKS)


# ---- what relex writes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 3, "solver": "gram"},
        {"rank": 2, "solver": "power"},
        {"until": 40, "memory_limit": "2600KiB", "io": "pread"},
        {"method": "pinned", "fit": "polynomial", "window": 4},
        {"method": "secant"},
        {"method": "two-point", "window": 2},
        {"method": "ema", "decay": 0.95},
        {"method": "latest"},
        {"strength": 0.25},
        {"dtype": "float32"},
        {"dtype": "float16"},
        {"dtype": "bfloat16"},
        {"backend": "reference"},
        {"backend": "reference", "delta_dtype": "float16"},
        {"backend": "reference", "delta_dtype": "float16", "dtype": "float32"},
    ],
    ids=str,
)
def test_every_block_agrees(run: RunFolder, tmp_path: Path, options: dict[str, Any]) -> None:
    extrapolate(run.base, run.checkpoints, [90, 1000], tmp_path / "out", progress=False, **options)
    assert_agrees(tmp_path / "out", targets=2)


@pytest.mark.parametrize("isa", ISAS)
def test_sums_that_cancel(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    """Weights by the thousand whose sum is small, on every instruction set; of two forecasts one
    has no weight on a checkpoint."""
    monkeypatch.setenv("RELEX_ISA", isa)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, spec in MODEL.items():
        if spec.kind != "integer":
            w = rng.normal(0, 3000, (2, len(STEPS)))
            w[:, -1] = 1 - w[:, :-1].sum(axis=1)
            w[1, 2] = 0.0
            tensors[name] = w
    weights = Weights(STEPS, (90.0, 90.0), tensors, {})
    combine(run.base, run.checkpoints, weights, tmp_path / "out", names=["a", "b"], progress=False)
    assert_agrees(tmp_path / "out", targets=2)


@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_carried_tensors(tmp_path: Path, dtype: str | None) -> None:
    run = make_run(tmp_path, STEPS)
    for i, name in enumerate(NAMES.values()):
        poison(run, name, 70, 7, i)
    out = tmp_path / "out"
    extrapolate(run.base, run.checkpoints, 90, out, nonfinite="carry", dtype=dtype, progress=False)
    assert_agrees(out)
    name = NAMES["BF16"]
    forge(out, "step_90", name, 2 * BLOCK * (2 if dtype == "float32" else 1))
    (damage,) = check(out, ALL).damages
    assert f"tensor {name}: 1 of its elements {BLOCK} to {2 * BLOCK - 1} are not" in damage


def test_nan_in_an_input_is_nan_in_the_output(tmp_path: Path) -> None:
    """Methods without a scan do not look for it; nor does a checkpoint without weight matter."""
    run = make_run(tmp_path, STEPS)
    for step in (20, 70):
        poison(run, NAMES["BF16"], step, 3)
    extrapolate(run.base, run.checkpoints, 90, tmp_path / "out", method="secant", progress=False)
    words = read_model(tmp_path / "out" / "step_90")[NAMES["BF16"]].words
    assert ((words & BITS["BF16"][1]) == BITS["BF16"][1]).sum() == 3
    assert_agrees(tmp_path / "out")


# ---- what was made up --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in MODEL if n != "model.layers.0.empty"])
def test_one_bit_with_a_digest_that_fits(out: Path, name: str) -> None:
    shard, _, _ = place_of(out / "step_62.5", name)
    forge(out, "step_62.5", name)  # the lowest bit of the first element
    assert check(out).ok
    count = int(np.prod(MODEL[name].shape))
    assert check(out, ALL).damages == (
        f"step_62.5/{shard.name}: tensor {name}: 1 of its elements 0 to {min(count, BLOCK) - 1} "
        "are not what the inputs give",
    )


def test_an_element_may_hardly_ever_be_its_neighbour(out: Path) -> None:
    for name in ("model.embed_tokens.weight", "model.layers.0.norm.bias", "model.layers.0.mixed"):
        shard, begin, end = place_of(out / "step_100", name)
        data = np.fromfile(shard, np.uint8)
        width = (end - begin) // int(np.prod(MODEL[name].shape))
        data[begin:end:width] ^= 1
        data.tofile(shard)
        redigest(out)
        damages = check(out, ALL).damages
        wrong = sum(int(line.split(": ")[2].split()[0]) for line in damages if f" {name}: " in line)
        assert wrong >= 0.99 * (end - begin) / width - 1, name


def test_a_tensor_of_another_target(out: Path) -> None:
    name = "model.layers.0.attn.weight"
    shard, begin, end = place_of(out / "step_100", name)
    other = out / "step_62.5" / shard.name
    data = bytearray(other.read_bytes())
    data[begin:end] = shard.read_bytes()[begin:end]
    other.write_bytes(data)
    redigest(out)
    assert check(out).ok
    (first, *others) = check(out, ALL).damages
    assert len(others) == -(-(end - begin) // (2 * BLOCK)) - 1
    assert first.startswith(f"step_62.5/{shard.name}: tensor {name}: ")
    assert int(first.split(": ")[2].split()[0]) > BLOCK // 2


def test_samples_are_drawn_by_the_seed(out: Path) -> None:
    assert [check(out, n).samples for n in (0, 1, 7, 2 * BLOCKS + 1)] == [
        0, 1, 7, 2 * BLOCKS,
    ]  # fmt: skip
    forge(out, "step_100", "model.embed_tokens.weight", 6 * BLOCK)
    found = [check(out, BLOCKS // 2, seed=seed).ok for seed in range(24)]
    assert found == [check(out, BLOCKS // 2, seed=seed).ok for seed in range(24)]
    assert 1 <= found.count(False) <= 14, "the block is one of four that are drawn"


# ---- the inputs --------------------------------------------------------------------------------


def test_inputs_that_are_gone_or_others(tmp_path: Path) -> None:
    run = make_run(tmp_path, STEPS)
    out = tmp_path / "out"
    extrapolate(run.base, run.checkpoints, 90, out, progress=False)
    changed = f"expected the files that {out} was made from, found others"
    shard = run.folder(35) / "model.safetensors"
    then = shard.stat().st_mtime_ns
    os.utime(shard, ns=(then, then + 1))
    with pytest.raises(InputError, match=f"{run.folder(35)}: {changed}"):
        check(out, ALL)
    os.utime(shard, ns=(then, then))
    assert check(out, 3).samples == 3
    name = "model.layers.0.attn.weight"
    write_model(run.base, {**run.base_tensors, name: raw(np.zeros(5040, "<u2"), "BF16", (5040,))})
    with pytest.raises(InputError, match=name):
        check(out, ALL)
    write_model(run.base, run.base_tensors)
    with pytest.raises(InputError, match=f"{run.base}: {changed}"):
        check(out, ALL)
    run.checkpoints.rename(tmp_path / "away")
    with pytest.raises(InputError, match="checkpoint-10: expected a model folder, found no folder"):
        check(out, ALL)
    assert check(out).ok


# ---- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["other", "missing", "steps", "targets"])
def test_weights_that_were_not_applied(out: Path, case: str) -> None:
    rng = np.random.default_rng(1)
    names = [n for n, s in MODEL.items() if s.kind != "integer"]
    steps, targets = (STEPS, (100.0, 62.5))
    if case == "steps":
        steps = (10, 20, 35, 40, 71)
    elif case == "targets":
        targets = (100.0, 63.0)
    elif case == "missing":
        del names[3]
    tensors = {name: rng.normal(0, 3, (2, 5)) for name in names}
    (out / WEIGHTS).write_bytes(weights_file(Weights(steps, targets, tensors, {})))
    redigest(out)
    assert check(out).ok
    if case == "other":
        wrong = {line.split(": ")[1] for line in check(out, ALL).damages}
        moving = {
            f"tensor {n}" for n, s in MODEL.items() if s.kind == "trained" and 0 not in s.shape
        }
        assert wrong == moving
    else:
        expected = {
            "missing": f"tensor {list(MODEL)[3]}: missing",
            "steps": "expected the steps and targets of relex.json",
            "targets": "expected the steps and targets of relex.json",
        }[case]
        with pytest.raises(InputError, match=rf"{WEIGHTS}: {expected}"):
            check(out, ALL)


def test_damaged_bytes_come_first(out: Path) -> None:
    (out / "step_100" / "config.json").unlink()
    found = check(out, ALL)
    assert (found.samples, len(found.damages)) == (0, 1)


# ---- another model -----------------------------------------------------------------------------


def test_another_dtype_than_was_asked_for(out: Path) -> None:
    rewrite(out, lambda record: record["options"].update(dtype="F16"))
    assert check(out).ok
    name = "model.embed_tokens.weight"
    message = rf"step_100: tensor {name}: expected F16 \[331, 64\], found BF16 \[331, 64\]"
    with pytest.raises(InputError, match=message):
        check(out, 1)


def test_a_tensor_that_the_inputs_have_and_the_output_has_not(tmp_path: Path) -> None:
    run = make_run(tmp_path, STEPS)
    out = tmp_path / "out"
    extrapolate(run.base, run.checkpoints, 90, out, progress=False)
    held = read_model(out / "step_90")
    del held["model.layers.0.mask"]
    write_model(out / "step_90", held)
    rewrite(out, lambda r: r["sha256"]["tensors"]["step_90"].pop("model.layers.0.mask"))
    redigest(out)
    assert check(out).ok
    with pytest.raises(InputError, match=r"step_90: tensor model\.layers\.0\.mask: missing"):
        check(out, 1)
