"""The commands that are disturbed, over a tiny run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import relex_ext
from faults.children import in_child, returned
from folders import RunFolder, Spec, make_run

MODEL: Mapping[str, Spec] = {
    "embed": Spec((40, 1000)),
    "mixed": Spec((7, 11), "F32", ("F32", "BF16", "F16")),
    "norm": Spec((97,), "F16", ("F16",)),
    "frozen": Spec((33, 5), kind="frozen"),
    "scale": Spec((), "F32", ("F32",)),
    "ids": Spec((1, 19), "I64", ("I64",), "integer"),
}
"""One tensor of several windows, a buffer of integers, and every dtype."""

SHARDS = (("embed", "mixed"), ("norm", "frozen", "scale", "ids"))

MEMORY = 900_000
"""Bytes: windows of a single segment."""

TARGETS = (100, 62.5)


IOS = ("mmap", "pread")


@dataclass(frozen=True)
class Inputs:
    """``pieces``: a run of one step, as a torch distributed checkpoint; ``weights``: a forecast's,
    for what is only combined."""

    run: RunFolder
    pieces: Path
    weights: relex_ext.Weights | None = None


def make_inputs(folder: Path) -> Inputs:
    run = make_run(folder, (10, 20, 30), MODEL, shards=SHARDS)
    pieces = folder / "pieces"
    returned(in_child(lambda: _cut(pieces / "checkpoint-10")))
    return Inputs(run, pieces)


def _cut(step: Path) -> None:
    """For a child: torch and its threads stay out of this process."""
    import torch
    from torch.distributed import checkpoint

    warnings.simplefilter("ignore")  # that this process is the only one
    chance = torch.Generator().manual_seed(0)
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.weight" for i in range(5))]
    model = {name: torch.randn(40, 7, generator=chance) for name in names}
    checkpoint.save(model, checkpoint_id=step, no_dist=True)


@dataclass(frozen=True)
class Scenario:
    """A command, below ``work``. ``begins``: what is there before it: nothing, an earlier ``out``
    (which it replaces), or what a ``killed`` run of itself has left; ``lacks``: an operation that
    the file system does not have; ``ios``: the ways of reading that it has."""

    name: str
    out: str
    command: Callable[[Inputs, Path, str], object]
    begins: str = "nothing"
    lacks: str | None = None
    ios: Sequence[str] = IOS

    @property
    def replaces(self) -> bool:
        return self.begins == "out"


def extrapolate(inputs: Inputs, out: Path, io: str, **options: Any) -> None:
    relex_ext.extrapolate(
        inputs.run.base, inputs.run.checkpoints, TARGETS, out, threads=1, io=io,
        memory_limit=MEMORY, progress=False, **options,
    )  # fmt: skip


def _replace(inputs: Inputs, out: Path, io: str) -> None:
    extrapolate(inputs, out, io, overwrite=True)


def scan(inputs: Inputs, out: Path, io: str) -> None:
    relex_ext.scan(
        inputs.run.base, inputs.run.checkpoints, out=out, threads=1, io=io, memory_limit=MEMORY,
        progress=False,
    )  # fmt: skip


def _combine(inputs: Inputs, out: Path, io: str) -> None:
    assert inputs.weights is not None
    relex_ext.combine(
        inputs.run.base, inputs.run.checkpoints, inputs.weights, out, threads=1, io=io,
        memory_limit=MEMORY, progress=False,
    )  # fmt: skip


def _gather(inputs: Inputs, out: Path, io: str) -> None:
    relex_ext.gather(inputs.pieces, out.parent, progress=False)


SCENARIOS = (
    Scenario("extrapolate", "new/out", extrapolate),
    Scenario("overwrite", "out", _replace, "out"),
    Scenario("no exchange", "out", _replace, "out", lacks="exchange"),
    Scenario("scan", "scan.safetensors", scan),
    Scenario("combine", "out", _combine),
    Scenario("resume", "out", extrapolate, "killed"),
    Scenario("gather", "new/step_10", _gather, ios=("pread",)),
    Scenario("gather on", "step_10", _gather, "killed", ios=("pread",)),
)
"""Those that import torch last: whoever has it forks slowly."""

BENCHES = tuple((scenario, io) for scenario in SCENARIOS for io in scenario.ios)
