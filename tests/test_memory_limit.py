"""That a run stays within its memory limit, measured from outside the allocator."""

from __future__ import annotations

from pathlib import Path

import pytest

import children
from folders import Spec, make_run

MEASURE = """
import sys
from footprint import growth
from relex_ext import extrapolate, _core, pipeline, power
from huggingface_hub.repocard_data import ModelCardData

base, run, out, solver = sys.argv[1:]
print(growth(lambda: extrapolate(
    base, run, [20, 30], out, io="pread", memory_limit="16MiB", solver=solver, progress=False
)))
"""
MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("solver", ["gram", "power"])
def test_memory_limit(tmp_path: Path, solver: str) -> None:
    model = {"a": Spec((2_000_000,)), "b": Spec((700_000,)), "c": Spec((1_500_000,))}
    run = make_run(tmp_path, steps=range(1, 7), model=model)
    total = sum(len(t.data) for t in run.base_tensors.values()) * 7
    assert total > 48 * MIB, "more than the limit allows at once"
    top = int(children.printed(MEASURE, run.base, run.checkpoints, tmp_path / "out", solver))
    assert 4 * MIB < top < 16 * MIB + 12 * MIB, "12 MiB of threads and scratch"
