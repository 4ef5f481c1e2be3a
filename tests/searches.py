"""Runs to search in, and evaluation commands that know where the best forecast is."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from folders import COMPANIONS, RunFolder, raw, write_model
from test_cli import environment

STEPS = (10, 20, 30, 40, 50)
NEWEST = STEPS[-1]

SCRIPT = """
import json, math, os, signal, struct, subprocess, sys, time
from pathlib import Path

here, model = Path(__file__).parent, Path(sys.argv[1])
text = (here / "mode").read_text() if (here / "mode").exists() else "peak 140"
data = (model / "model.safetensors").read_bytes()
(length,) = struct.unpack("<Q", data[:8])
start = json.loads(data[8:8 + length])["w"]["data_offsets"][0] + 8 + length
(first,) = struct.unpack("<f", data[start:start + 4])
with (here / "calls").open("a") as calls:
    calls.write(model.name + "\\n")
count = len((here / "calls").read_text().split())
found = here / "found"
models = [p for p in found.rglob("model.safetensors")]
with (here / "models").open("a") as file:
    file.write(f"{len(models)}\\n")
print("some table\\n  12 | 13", flush=True)
kind, *values = text.split()
if kind == "kill" and count == int(values[0]):
    os.kill(int(os.environ["RELEX_PID"]), signal.SIGKILL)
    sys.exit(1)
if kind == "fail" and count >= int(values[0]):
    print("loading", "\\n\\n", "CUDA out of memory", file=sys.stderr)
    sys.exit(3)
if kind == "garbage" and count >= int(values[0]):
    print("all done")
    sys.exit()
if kind == "sleep" and count >= int(values[0]):
    child = subprocess.Popen(["sleep", "300"])
    (here / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(300)
position = first * 1024
if kind == "error":
    print(json.dumps({"score": -abs(position - 140), "error": 2.0}))
elif kind == "far":
    print("distance:", abs(position - 140))
elif kind == "worse":
    print("score", 1 / position)
else:
    print("score: %r" % -abs(position - 140))
"""
"""Its score is about where the model stands: a weight moves by 1/1024 a step, in a straight line.
``mode``, a file beside it, says what else it does."""


def make_search(root: Path) -> RunFolder:
    """A run in a straight line, and the script beside it."""
    run = RunFolder(root / "base", root / "run", STEPS, {})
    direction = np.array([1, -2, 0.5, 4], np.float32) / 1024
    for step in (0, *STEPS):
        tensors = {"w": raw((direction * step).view(np.uint32), "F32")}
        folder = run.base if step == 0 else run.folder(step)
        write_model(folder, tensors, companions=COMPANIONS)
    (root / "evaluate.py").write_text(SCRIPT)
    return run


def mode(run: RunFolder, text: str) -> None:
    (run.base.parent / "mode").write_text(text)


def calls(run: RunFolder) -> list[str]:
    """The folders evaluated so far, in order."""
    return (run.base.parent / "calls").read_text().split()


def most_models(run: RunFolder) -> int:
    """Models in the search's folder at its fullest, of all the times that one was evaluated."""
    return max(map(int, (run.base.parent / "models").read_text().split()))


def command(run: RunFolder) -> str:
    """Isolated, so that it starts in no time."""
    script = shlex.quote(str(run.base.parent / "evaluate.py"))
    return f"{shlex.quote(sys.executable)} -I -S {script} {{model}}"


def arguments(run: RunFolder, *more: object) -> list[str]:
    out = run.base.parent / "found"
    given = ("--base", run.base, "--checkpoints", run.checkpoints, "--out", out)
    return ["search", *map(str, given), "--eval", command(run), *map(str, more)]


def relex(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """In a process whose number the evaluation script finds in RELEX_PID."""
    line = shlex.join([sys.executable, "-m", "relex_ext", *arguments])
    return subprocess.run(
        ["sh", "-c", f"RELEX_PID=$$ exec {line}"],
        capture_output=True, text=True, env=environment(), timeout=60, check=False,
    )  # fmt: skip


def state(run: RunFolder) -> dict[str, object]:
    found: dict[str, object] = json.loads((run.base.parent / "found" / "search.json").read_text())
    return found
