"""Jobs that several processes do together, and such processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import children
from folders import MODEL, SHARDS, RunFolder, Spec, make_run, raw, write_model
from relex_ext import RelexError, Weights, _core, combine, extrapolate, scan
from relex_ext.cli import main
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
    write_model(made.folder(40), tensors, shards)
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


def work(root: str, out: str, *names: str) -> int:
    """Do jobs with the others, each in a world of its own: ``JOB`` or ``JOB@PLACE``."""
    for name in names:
        job, _, place = name.partition("@")
        try:
            with open_world("torchrun", span=SPAN) as world:
                {**JOBS, **REFUSED}[job](inputs_in(Path(root)), Path(out) / (place or job), world)
        except RelexError as error:
            said = {"kind": type(error).__name__, "line": str(error)}
            (Path(out) / f"{job}.{os.environ['RANK']}").write_text(json.dumps(said))
    return 0


def work_until(victim: str, entries: str, *arguments: str) -> int:
    """The same; one of them is killed before it makes such an entry in its journal."""
    add, turn = Journal.add, count()

    def dying(self: Journal, *entry: Any) -> None:
        if next(turn) >= int(entries):
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, *entry)

    if os.environ["RANK"] == victim:
        pytest.MonkeyPatch().setattr(Journal, "add", dying)
    with open_world("torchrun", span=SPAN) as world:
        root, out, name = arguments
        JOBS[name](inputs_in(Path(root)), Path(out) / name, world)
    return 0


@dataclass(frozen=True)
class Ended:
    """``status``: or minus the signal."""

    status: int
    out: str
    err: str


def launch(size: int, folder: Path, kind: str, *arguments: object) -> list[Ended]:
    """So many processes, which share one import of torch. ``kind``: work, work_until, or relex for
    the command line; ``folder``: a new one, for what they print."""
    folder.mkdir()
    said = children.printed(
        "import sys, worlds; worlds.fork(*sys.argv[1:])", size, folder, kind, *arguments
    )
    files = [[folder / f"{rank}.{kind}" for kind in ("out", "err")] for rank in range(size)]
    return [
        Ended(os.waitstatus_to_exitcode(status), *(file.read_text() for file in pair))
        for status, pair in zip(json.loads(said), files, strict=True)
    ]


def fork(size: str, folder: str, kind: str, *arguments: str) -> None:
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    import_module("torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(int(size)):
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "here",
        }  # fmt: skip
        pids.append(os.fork() or _child(Path(folder), str(rank), kind, arguments))
    print(json.dumps([os.waitpid(pid, 0)[1] for pid in pids]))


def _child(folder: Path, rank: str, kind: str, arguments: Sequence[str]) -> NoReturn:
    status = 1
    try:
        for number, name in ((1, "out"), (2, "err")):
            with (folder / f"{rank}.{name}").open("wb") as file:
                os.dup2(file.fileno(), number)
        does = {"work": work, "work_until": work_until, "relex": lambda *argv: main(argv)}
        status = does[kind](*arguments)
    except RelexError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":  # torchrun
    sys.exit(work(*sys.argv[1:]))
