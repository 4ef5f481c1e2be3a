"""relex verify --samples: what relex writes agrees with its inputs, what is made up does not."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folders import MODEL, SHARDS, RunFolder, make_run, raw, read_model, write_model
from outputs import forge, place_of, record_in, reseal
from relex_ext import InputError, Verification, Weights, combine, extrapolate, verify
from relex_ext.applied import weights_file
from relex_ext.output import WEIGHTS
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


def check(out: Path, samples: int = ALL, **options: Any) -> Verification:
    return verify(out, samples=samples, progress=False, **options)


def assert_agrees(out: Path, targets: int = 1) -> None:
    found = check(out)
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


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
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
    (damage,) = check(out).damages
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
    assert check(out, samples=0).ok
    count = int(np.prod(MODEL[name].shape))
    assert check(out).damages == (
        f"step_62.5/{shard.name}: tensor {name}: 1 of its elements 0 to {min(count, BLOCK) - 1} "
        "are not what the inputs give",
    )


def test_a_tensor_of_another_target(out: Path) -> None:
    name = "model.layers.0.attn.weight"
    shard, begin, end = place_of(out / "step_100", name)
    other = out / "step_62.5" / shard.name
    data = bytearray(other.read_bytes())
    data[begin:end] = shard.read_bytes()[begin:end]
    other.write_bytes(data)
    record = record_in(out)
    tensors = record["sha256"]["tensors"]
    tensors["step_62.5"][name] = tensors["step_100"][name]
    reseal(out, record)
    assert check(out, samples=0).ok
    (first, *others) = check(out).damages
    assert len(others) == -(-(end - begin) // (2 * BLOCK)) - 1
    assert first.startswith(f"step_62.5/{shard.name}: tensor {name}: ")
    assert int(first.split(": ")[2].split()[0]) > BLOCK // 2


def test_samples_are_drawn_by_the_seed(out: Path) -> None:
    assert [check(out, samples=n).samples for n in (0, 1, 7, 2 * BLOCKS + 1)] == [
        0, 1, 7, 2 * BLOCKS,
    ]  # fmt: skip
    forge(out, "step_100", "model.embed_tokens.weight", 6 * BLOCK)
    found = [check(out, samples=BLOCKS // 2, seed=seed).ok for seed in range(24)]
    assert found == [check(out, samples=BLOCKS // 2, seed=seed).ok for seed in range(24)]
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
        check(out)
    os.utime(shard, ns=(then, then))
    assert check(out, samples=3).samples == 3
    name = "model.layers.0.attn.weight"
    write_model(run.base, {**run.base_tensors, name: raw(np.zeros(5040, "<u2"), "BF16", (5040,))})
    with pytest.raises(InputError, match=name):
        check(out)
    write_model(run.base, run.base_tensors)
    with pytest.raises(InputError, match=f"{run.base}: {changed}"):
        check(out)
    run.checkpoints.rename(tmp_path / "away")
    with pytest.raises(InputError, match="checkpoint-10: expected a model folder, found no folder"):
        check(out)
    assert check(out, samples=0).ok


# ---- weights -----------------------------------------------------------------------------------


def weights_of(out: Path, weights: Weights) -> None:
    """Other weights with a digest that fits."""
    data = weights_file(weights)
    (out / WEIGHTS).write_bytes(data)
    record = record_in(out)
    record["sha256"]["files"][WEIGHTS] = hashlib.sha256(data).hexdigest()
    reseal(out, record)


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
    weights_of(out, Weights(steps, targets, tensors, {}))
    assert check(out, samples=0).ok
    if case == "other":
        wrong = {line.split(": ")[1] for line in check(out).damages}
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
            check(out)


def test_damaged_bytes_come_first(out: Path) -> None:
    (out / "step_100" / "config.json").unlink()
    found = check(out)
    assert (found.samples, len(found.damages)) == (0, 1)
