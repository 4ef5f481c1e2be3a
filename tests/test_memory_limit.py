"""That a run stays within its memory limit, measured from outside the allocator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from folders import Spec, make_run

MEASURE = """
import sys, threading, time
from relex_ext import extrapolate, _core, pipeline, power
from huggingface_hub.repocard_data import ModelCardData

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

base, run, out, solver = sys.argv[1:]
start, top, done = anonymous(), 0, False

def watch():
    global top
    while not done:
        top = max(top, anonymous() - start)
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
extrapolate(base, run, [20, 30], out, io="pread", memory_limit="16MiB", solver=solver,
            progress=False)
done = True
thread.join()
print(top)
"""
MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("solver", ["gram", "power"])
def test_memory_limit(tmp_path: Path, solver: str) -> None:
    model = {"a": Spec((2_000_000,)), "b": Spec((700_000,)), "c": Spec((1_500_000,))}
    run = make_run(tmp_path, steps=range(1, 7), model=model)
    total = sum(len(t.data) for t in run.base_tensors.values()) * 7
    assert total > 48 * MIB, "more than the limit allows at once"
    package = Path(__import__("relex_ext").__file__).resolve().parent.parent
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, run.base, run.checkpoints, tmp_path / "out", solver],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package)},
        check=True,
    )
    assert 4 * MIB < int(found.stdout) < 16 * MIB + 12 * MIB, "12 MiB of threads and scratch"
