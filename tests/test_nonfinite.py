"""NaN and Inf in a checkpoint: named with their count, and refused or carried over as asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
from folders import MODEL, RunFolder, digest, listing, make_run, raw, read_model, write_model
from relex_ext import InputError, Scan, combine, extrapolate, forecast, report, scan
from relex_ext.errors import Interrupted
from relex_ext.journal import Journal

BITS = {
    "F32": (0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001),
    "F16": (0x7E00, 0x7C00, 0xFC00, 0x7C01),
    "BF16": (0x7FC0, 0x7F80, 0xFF80, 0x7F81),
}
"""NaN, Inf, −Inf and a signalling NaN."""

NAMES = {
    "BF16": "model.embed_tokens.weight",
    "F32": "model.layers.0.mlp.weight",
    "F16": "model.layers.0.norm.bias",
}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "in", steps=range(10, 110, 10))


def poison(run: RunFolder, name: str, step: int | None, count: int, kind: int = 0) -> None:
    """So many NaN or Inf in a tensor of a step, or of the base."""
    tensors = run.base_tensors if step is None else run.step_tensors[step]
    words = tensors[name].words.copy()
    words[3 : 3 + count] = BITS[tensors[name].dtype][kind]
    tensors[name] = raw(words, tensors[name].dtype, tensors[name].shape)
    write_model(run.base if step is None else run.folder(step), tensors)


def go(run: RunFolder, out: Path, **options: Any) -> Any:
    given = {"progress": False, "targets": 200, **options}
    return extrapolate(run.base, run.checkpoints, given.pop("targets"), out, **given)


@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("step", [None, 30])
def test_named_with_step_and_count(
    run: RunFolder, tmp_path: Path, dtype: str, kind: int, step: int | None, solver: str
) -> None:
    poison(run, NAMES[dtype], step, 5, kind)
    folder = run.base if step is None else run.folder(step)
    where = "the base" if step is None else "step 30"
    said = f"{folder}/model.safetensors: tensor {NAMES[dtype]}: 5 NaN or Inf in {where}; "
    before = listing(tmp_path)
    with pytest.raises(InputError, match=re.escape(said)):
        go(run, tmp_path / "out", solver=solver)
    with pytest.raises(InputError, match=re.escape(said)):
        scan(run.base, run.checkpoints, out=tmp_path / "scan", solver=solver, progress=False)
    assert listing(tmp_path) == before


def test_large_and_tiny_numbers_are_finite(run: RunFolder, tmp_path: Path) -> None:
    name = NAMES["F32"]
    words = run.step_tensors[30][name].words.copy()
    words[:4] = [0x7F7FFFFF, 0xFF7FFFFF, 0x00000001, 0x80000000]  # ± the largest, the least, −0
    run.step_tensors[30][name] = raw(words, "F32", run.step_tensors[30][name].shape)
    write_model(run.folder(30), run.step_tensors[30])
    assert np.isfinite(scan(run.base, run.checkpoints, progress=False).grams[name]).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "power", "rank": 2},
        {"strength": "auto"},
        {"memory_limit": "2600KiB", "io": "pread"},
        {"memory_limit": "2600KiB", "solver": "power"},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_carried_from_the_newest(run: RunFolder, tmp_path: Path, options: dict[str, Any]) -> None:
    """A mask of −Inf in every checkpoint, and a NaN that one had."""
    go(run, tmp_path / "clean", **options)
    for name in NAMES.values():
        for step in run.steps if name == NAMES["F16"] else (20,):
            poison(run, name, step, 7, 2)
    done = go(run, tmp_path / "out", nonfinite="carry", **options)
    found, clean = (read_model(tmp_path / name / "step_200") for name in ("out", "clean"))
    newest = run.step_tensors[100]
    for name in MODEL:
        if name not in NAMES.values():
            # auto's strength is that of all tensors together, less those.
            assert found[name] == clean[name] or "strength" in options
            continue
        dtype = options.get("dtype")
        if dtype is None:
            assert found[name] == newest[name]
        else:
            with np.errstate(over="ignore"):
                rounded = oracle.round_to(newest[name].values, found[name].dtype)
            assert (found[name].words == rounded).all()
    assert sorted(done.record["carried"]) == sorted(NAMES.values())
    record = json.loads((tmp_path / "out" / "relex.json").read_text())
    assert record["carried"] == done.record["carried"]
    assert done.weights.carried == tuple(done.record["carried"])
    assert set(NAMES.values()) <= set(done.weights.tensors)


def test_the_scan_says_what_it_does_not_know(run: RunFolder, tmp_path: Path) -> None:
    poison(run, NAMES["F32"], 100, 1)
    go(run, tmp_path / "out", nonfinite="carry")
    kept = Scan.load(tmp_path / "out" / "scan.safetensors")
    assert kept.nonfinite == (NAMES["F32"],)
    assert NAMES["F32"] not in kept.names
    made = scan(run.base, run.checkpoints, nonfinite="carry", progress=False)
    assert made.nonfinite == kept.nonfinite and made.names == kept.names

    weights = forecast(kept, 200)
    combine(run.base, run.checkpoints, weights, tmp_path / "combined", progress=False)
    again = read_model(tmp_path / "combined" / "step_200")
    assert again == read_model(tmp_path / "out" / "step_200")
    path = tmp_path / "out" / "scan.safetensors"
    with pytest.raises(InputError, match=f"scan: tensor {NAMES['F32']}: holds NaN or Inf"):
        go(run, tmp_path / "refused", scan=path)
    go(run, tmp_path / "third", scan=path, nonfinite="carry")
    assert read_model(tmp_path / "third" / "step_200") == again
    report(kept, tmp_path / "report.html", target_step=200)


def test_goes_on_with_carried_tensors(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(run, NAMES["BF16"], 20, 3)
    go(run, tmp_path / "whole", nonfinite="carry")
    for after in (1, 2, 3):
        real = Journal.add
        left = [after]

        def add(self: Journal, *entry: Any, left: list[int] = left, real: Any = real) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            real(self, *entry)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", add)
            with pytest.raises(Interrupted):
                go(run, tmp_path / f"out{after}", nonfinite="carry")
        go(run, tmp_path / f"out{after}", nonfinite="carry")
        assert digest(tmp_path / f"out{after}") == digest(tmp_path / "whole")


def test_an_unknown_way(run: RunFolder, tmp_path: Path) -> None:
    for call in (
        lambda: go(run, tmp_path / "out", nonfinite="zero"),
        lambda: scan(run.base, run.checkpoints, nonfinite="zero", progress=False),
    ):
        with pytest.raises(InputError, match="nonfinite: expected refuse or carry, found zero"):
            call()
