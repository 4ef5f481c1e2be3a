"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relex_ext.world import World


def add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument(
        "--base", required=True, metavar="DIR",
        help="the model the run began with; this and others may be on the Hub: org/repo, "
        "org/repo@revision, hf://org/repo@revision/folder",
    )  # fmt: skip
    group.add_argument(
        "--checkpoints", required=True, action="append", metavar="DIR",
        help="the run folder with its step folders; several times: the phases of one training, "
        "which count on, or STEP=DIR",
    )  # fmt: skip
    add_revisions(group)
    add_selection(group)


def add_revisions(parser: argparse._ActionsContainer) -> None:
    """Of a repository on the Hub."""
    parser.add_argument(
        "--revisions", metavar="PATTERN",
        help="of checkpoints that are one repository on the Hub with a revision for each step: "
        "'step_{10..70..10}' or 'step_10,step_20'",
    )  # fmt: skip


def add_selection(parser: argparse._ActionsContainer) -> None:
    """Which of a run's checkpoints."""
    parser.add_argument(
        "--until", type=int, metavar="STEP", help="use the checkpoints up to this step"
    )
    parser.add_argument(
        "--steps", type=_steps, metavar="A,B,…", help="use exactly the checkpoints of these steps"
    )


def add_max_local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-local", metavar="SIZE",
        help="like 20GiB: fetch tensors from the Hub as they are read, and have so much of them on "
        "disk at most (whole checkpoints, in the Hub's cache)",
    )  # fmt: skip


METHOD_OPTIONS = (
    "time_axis", "step_scale", "method", "fit", "degree", "window", "refit", "alpha", "decay",
    "strength",
)  # fmt: skip
"""The keyword arguments of :func:`add_method`'s."""


def add_method(parser: argparse.ArgumentParser, *, strength: bool = True) -> None:
    """How targets become weights: :func:`relex_ext.forecast`'s options, with or without one."""
    group = parser.add_argument_group("method")
    group.add_argument(
        "--method", default="relex", metavar="NAME",
        help="relex; pinned (its movement added to the newest checkpoint); reconstruct, "
        "fit-reconstruct (of an observed step); latest, secant, two-point, first-update, ema (no "
        "spectrum) (relex)",
    )  # fmt: skip
    group.add_argument(
        "--fit", default="linear", metavar="CURVE",
        help="through the coefficients: linear, polynomial or sine (linear)",
    )  # fmt: skip
    group.add_argument("--degree", type=int, metavar="N", help="of the polynomial (2)")
    group.add_argument(
        "--window", type=int, metavar="W",
        help="fit the newest W coefficients; two-point: take the checkpoint W before the newest "
        "(all)",
    )  # fmt: skip
    group.add_argument(
        "--refit", type=int, metavar="F",
        help="predict step by step and fit again after every F predictions (fit once)",
    )  # fmt: skip
    group.add_argument("--alpha", type=float, metavar="X", help="first-update's scale (s*/s₁)")
    group.add_argument("--decay", type=float, metavar="X", help="ema's, for each step (0.9)")
    if strength:
        group.add_argument(
            "--strength", type=_strength, default=1.0, metavar="X",
            help="0: the newest checkpoint, 1: what the method says, or between or beyond; auto: "
            "as far as the checkpoints' drift supports, in a second pass (1)",
        )  # fmt: skip
    group.add_argument(
        "--time-axis", choices=("step", "index"), default="step",
        help="fit against step numbers, or row numbers as the authors' script does (step)",
    )  # fmt: skip
    group.add_argument(
        "--step-scale", type=float, default=1.0, metavar="X",
        help="multiply each target before the curve is evaluated (1)",
    )  # fmt: skip


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments that :func:`add_method` parses."""
    return {name: getattr(args, name) for name in METHOD_OPTIONS}


def add_rank(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=int, default=1, metavar="R", help="ranks to extrapolate (1)")


def add_written(parser: argparse.ArgumentParser) -> None:
    """What every command that writes forecasts asks about them."""
    add_rank(parser)
    parser.add_argument(
        "--dtype", metavar="DTYPE",
        help="of the written weights: float32, float16, bfloat16 (the newest checkpoint's)",
    )  # fmt: skip
    parser.add_argument(
        "--scan", metavar="FILE",
        help="a scan of these checkpoints: reused if it exists, written if not",
    )  # fmt: skip


def add_delta_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--delta-dtype", default="float32", metavar="DTYPE",
        help="float16 rounds base, checkpoints and deltas as the authors' delta store does, on the "
        "reference backend (float32)",
    )  # fmt: skip


def add_nonfinite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nonfinite", default="refuse", metavar="HOW",
        help="tensors that hold NaN or Inf: refuse, or carry, which copies them from the newest "
        "checkpoint (refuse)",
    )  # fmt: skip


def add_machine(parser: argparse.ArgumentParser, solver: str) -> None:
    group = parser.add_argument_group("how")
    group.add_argument(
        "--solver", choices=("auto", "gram", "power"), default=solver, help=f"({solver})"
    )
    group.add_argument(
        "--backend", default="auto",
        help="cpu, cuda, triton or reference (auto: cuda, else triton, on a GPU, else cpu)",
    )  # fmt: skip
    group.add_argument(
        "--device", metavar="NAMES", help="GPUs to use, like cuda:1 or cuda:0,cuda:2 (all)"
    )
    group.add_argument(
        "--memory-limit", metavar="SIZE",
        help="like 2GiB; with a GPU, of pinned memory (half of the free memory)",
    )  # fmt: skip
    group.add_argument(
        "--device-memory", metavar="SIZE", help="the same on each GPU (80 %% of the free memory)"
    )
    group.add_argument(
        "--io", choices=("auto", "mmap", "pread", "gds"), default="auto",
        help="map the shards or read them (auto: pread on network file systems); for a GPU pread "
        "or gds, GPUDirect Storage (auto: gds where it works)",
    )  # fmt: skip
    group.add_argument("--threads", type=int, metavar="N", help="(all processors)")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier output")
    add_printed(group)


def add_printed(parser: argparse._ActionsContainer) -> None:
    """What a command says of what it has written."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def add_world(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many processes (docs/world.md)")
    group.add_argument(
        "--world", choices=("auto", "torchrun", "slurm", "alone"), default="auto",
        help="the processes that share the work: torchrun's, or a SLURM array's tasks, each by "
        "itself (auto: torchrun's where it has started this one)",
    )  # fmt: skip
    group.add_argument(
        "--world-rank", type=int, metavar="K", help="be process K, from 0, of --world-size …"
    )
    group.add_argument(
        "--world-size", type=int, metavar="N", help="… started by hand, in any order, anywhere"
    )


def world_of(args: argparse.Namespace) -> World:
    """The processes of :func:`add_world`'s arguments."""
    from relex_ext.world.opening import open_world

    return open_world(args.world, args.world_rank, args.world_size)


def _steps(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected step numbers like 10,20,30, found {text!r}"
        ) from None


def _strength(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or auto, found {text!r}") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}") from None


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from None


def checkpoints_of(values: Sequence[str]) -> Any:
    """The value of --checkpoints: a run folder, or several folders or STEP=DIR pairs."""
    found: list[Any] = []
    for value in values:
        step, equals, folder = value.partition("=")
        found.append((int(step), folder) if equals and step.isdigit() else value)
    return found[0] if len(found) == 1 and isinstance(found[0], str) else found


def machine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments that every public function on folders takes."""
    names = (
        "until", "steps", "revisions", "rank", "solver", "backend", "device", "memory_limit",
        "device_memory", "io", "threads", "overwrite",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names}
    return {**options, "progress": not (args.quiet or args.json)}
