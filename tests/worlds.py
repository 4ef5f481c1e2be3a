"""Jobs that several processes do together, and such processes.

``python -c "import worlds; worlds.work(…)"`` is one of them, as ``torchrun`` would start it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import children
from folders import MODEL, SHARDS, RunFolder, Spec, make_run, raw, write_model
from relex_ext import RelexError, Weights, _core, combine, extrapolate, scan
from relex_ext.journal import Journal
from relex_ext.world import World
from relex_ext.world.opening import open_world

SPAN = 2 * _core.SEGMENT

MODEL_: Mapping[str, Spec] = {
    **MODEL,
    "model.big": Spec((3, 70_001)),
    "model.other": Spec((5, 30_000), "F32", ("F32", "BF16")),
}
"""Two tensors of several spans, which processes have to share."""

STEPS = tuple(range(10, 110, 10))
TARGETS = (300, 162.5)
TRAINED = [name for name, spec in MODEL_.items() if spec.kind != "integer"]


@dataclass(frozen=True)
class Inputs:
    """``spoilt``: a run whose largest tensor holds NaN."""

    run: RunFolder
    spoilt: RunFolder
    scan: Path


def make_inputs(root: Path) -> Inputs:
    """The head of the base is tied to its embedding, which the checkpoints do not say."""
    found = inputs_in(root)
    shards = (*SHARDS, ("model.big", "model.other"))
    for run in (found.run, found.spoilt):
        made = make_run(run.base.parent, STEPS, MODEL_, shards=shards)
        head = {"lm_head.weight": made.base_tensors["model.embed_tokens.weight"]}
        write_model(made.base, made.base_tensors | head)
    tensors = made.step_tensors[40]
    words = tensors["model.big"].words.copy()
    words[150_000:150_003] = 0x7FC0
    tensors["model.big"] = raw(words, "BF16", MODEL_["model.big"].shape)
    write_model(made.folder(40), tensors)
    scan(found.run.base, found.run.checkpoints, out=found.scan, world=World(SPAN), progress=False)
    return found


def inputs_in(root: Path) -> Inputs:
    folders = (RunFolder(root / n / "base", root / n / "run", STEPS, {}) for n in ("good", "bad"))
    return Inputs(*folders, root / "scan")


# ---- jobs --------------------------------------------------------------------------------------

Job = Callable[[Inputs, Path, World], object]


def _forecast(**options: Any) -> Job:
    def job(inputs: Inputs, out: Path, world: World) -> object:
        given = {"progress": False, **options}
        if given.get("scan"):
            given["scan"] = inputs.scan
        run = inputs.spoilt if given.pop("spoilt", False) else inputs.run
        return extrapolate(run.base, run.checkpoints, TARGETS, out, world=world, **given)

    return job


def _combine(inputs: Inputs, out: Path, world: World) -> object:
    rows = np.zeros((2, len(STEPS)))
    rows[0, 0] = rows[0, -1] = 0.5
    rows[1, 3] = 1.0
    given = Weights(STEPS, (1.0, 2.0), dict.fromkeys(TRAINED, rows), {})
    run = inputs.run
    return combine(run.base, run.checkpoints, given, out, world=world, progress=False)


def _scan(inputs: Inputs, out: Path, world: World) -> object:
    run = inputs.run
    return scan(run.base, run.checkpoints, out=out / "scan", world=world, progress=False)


def _scan_in_memory(inputs: Inputs, out: Path, world: World) -> object:
    found = scan(inputs.run.base, inputs.run.checkpoints, world=world, progress=False)
    if world.rank == 0:
        found.save(out / "scan")
    return found


JOBS: Mapping[str, Job] = {
    "one pass": _forecast(),
    "two passes": _forecast(memory_limit="6MiB"),
    "power": _forecast(solver="power", rank=2),
    "auto": _forecast(strength="auto"),
    "secant": _forecast(method="secant"),
    "cached": _forecast(scan=True),
    "carried": _forecast(spoilt=True, nonfinite="carry"),
    "combine": _combine,
    "scan": _scan,
    "scan in memory": _scan_in_memory,
}

REFUSED: Mapping[str, Job] = {
    "not finite": _forecast(spoilt=True),
    "missing step": _forecast(steps=[10, 20, 35]),
}

# ---- processes ---------------------------------------------------------------------------------


def work(root: str, out: str, *names: str) -> None:
    """Do jobs with the others, each in a world of its own."""
    for name in names:
        job = {**JOBS, **REFUSED}[name]
        try:
            with open_world("torchrun", span=SPAN) as world:
                job(inputs_in(Path(root)), Path(out) / name, world)
        except RelexError as error:
            said = {"kind": type(error).__name__, "line": str(error)}
            (Path(out) / f"{name}.{os.environ['RANK']}").write_text(json.dumps(said))


def work_until(root: str, out: str, name: str, victim: str, entries: str) -> None:
    """The same; one of them is killed before it makes such an entry in its journal."""
    add, left = Journal.add, int(entries)

    def dying(self: Journal, *entry: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, *entry)

    if os.environ["RANK"] == victim:
        Journal.add = dying  # type: ignore[method-assign]
    with open_world("torchrun", span=SPAN) as world:
        JOBS[name](inputs_in(Path(root)), Path(out) / name, world)


def launch(size: int, code: str, *arguments: object) -> list[tuple[int, str, str]]:
    """Run code in so many processes; of each its exit status, stdout and stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                children.start(
                    code, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
                    LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                    TORCHELASTIC_RUN_ID="here", OMP_NUM_THREADS="1",
                )
            )
            for rank in range(size)
        ]  # fmt: skip
        said = [process.communicate(timeout=100) for process in processes]
        return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]


WORK = "import sys, worlds; worlds.work(*sys.argv[1:])"
WORK_UNTIL = "import sys, worlds; worlds.work_until(*sys.argv[1:])"
CLI = "import sys; from relex_ext.cli import main; sys.exit(main(sys.argv[1:]))"


def do(size: int, root: Path, out: Path, names: Sequence[str]) -> None:
    """Jobs done by so many processes."""
    for status, _, said in launch(size, WORK, root, out, *names):
        if status != 0:
            print(said, file=sys.stderr)
        assert status == 0
