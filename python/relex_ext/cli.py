"""The ``relex`` command. Parses, calls the public functions, prints; decides nothing else."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from relex_ext import __version__
from relex_ext.errors import InputError, RelexError

if TYPE_CHECKING:
    from relex_ext.job import Extrapolation

EPILOG = """\
example:
  relex extrapolate --base Qwen2.5-Math-1.5B --checkpoints run/ --until 75 \\
      --target-step 500 --out forecast/
"""


class Notes(logging.Handler):
    """What was chosen and why, as the package logs it, for the end of a summary."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Notes:
        log = logging.getLogger("relex_ext")
        log.setLevel(logging.INFO)
        log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("relex_ext").removeHandler(self)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; reading it imports neither numpy nor torch."""
    parser = argparse.ArgumentParser(
        prog="relex",
        description="Write the checkpoints of later RLVR training steps without training them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"relex_ext {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "extrapolate", help="scan, fit and write the forecast checkpoints in one go"
    )
    _add_inputs(run)
    run.add_argument(
        "--target-step", type=float, action="append", required=True, metavar="STEP",
        help="a step to forecast; give it several times for several, written in one pass",
    )  # fmt: skip
    run.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    run.add_argument("--rank", type=int, default=1, metavar="R", help="ranks to extrapolate (1)")
    run.add_argument(
        "--dtype", metavar="DTYPE",
        help="of the written weights: float32, float16, bfloat16 (the newest checkpoint's)",
    )  # fmt: skip
    run.add_argument(
        "--time-axis", choices=("step", "index"), default="step",
        help="fit against step numbers, or row numbers as the authors' script does (step)",
    )  # fmt: skip
    run.add_argument(
        "--step-scale", type=float, default=1.0, metavar="X",
        help="multiply each target before the line is evaluated (1)",
    )  # fmt: skip
    run.add_argument(
        "--scan", metavar="FILE",
        help="a scan of these checkpoints: reused if it exists, written if not",
    )  # fmt: skip
    run.add_argument(
        "--dry-run", action="store_true", help="print the plan: bytes, passes, memory, space"
    )
    _add_machine(run, solver="auto")

    scan = commands.add_parser("scan", help="only compute the Gram matrices and keep them")
    _add_inputs(scan)
    scan.add_argument("--out", required=True, metavar="FILE", help="the scan file to write")
    scan.add_argument(
        "--rank", type=int, default=1, metavar="R", help="pairs that solver power keeps (1)"
    )
    _add_machine(scan, solver="gram")
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument("--base", required=True, metavar="DIR", help="the model the run began with")
    group.add_argument(
        "--checkpoints", required=True, action="append", metavar="DIR",
        help="the run folder with its step folders; or STEP=DIR, several times",
    )  # fmt: skip
    group.add_argument(
        "--until", type=int, metavar="STEP", help="use the checkpoints up to this step"
    )
    group.add_argument(
        "--steps", type=_steps, metavar="A,B,…", help="use exactly the checkpoints of these steps"
    )


def _add_machine(parser: argparse.ArgumentParser, solver: str) -> None:
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
    group.add_argument("--json", action="store_true", help="print the result as JSON")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def _steps(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected step numbers like 10,20,30, found {text!r}"
        ) from None


def _checkpoints(values: Sequence[str]) -> Any:
    """One folder, or STEP=DIR pairs."""
    if len(values) == 1 and not values[0].split("=", 1)[0].isdigit():
        return values[0]
    pairs = []
    for value in values:
        step, found, folder = value.partition("=")
        if not found or not step.isdigit():
            raise InputError(f"--checkpoints: expected STEP=DIR, found {value}")
        pairs.append((int(step), folder))
    return pairs


def _machine_options(args: argparse.Namespace) -> dict[str, Any]:
    names = (
        "until", "steps", "rank", "solver", "backend", "device", "memory_limit", "device_memory",
        "io", "threads", "overwrite",
    )  # fmt: skip
    options = {name: getattr(args, name) for name in names}
    return {**options, "progress": not (args.quiet or args.json)}


def _extrapolate(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.pipeline import extrapolate

    done = extrapolate(
        args.base, _checkpoints(args.checkpoints), args.target_step, args.out,
        dtype=args.dtype, time_axis=args.time_axis, step_scale=args.step_scale,
        scan=args.scan, dry_run=args.dry_run, **_machine_options(args),
    )  # fmt: skip
    if args.json:
        print(json.dumps(_plan_json(done) if args.dry_run else _done_json(done), indent=1))
    elif args.dry_run:
        print(plan_text(done))
    elif not args.quiet:
        print("\n".join([summary_text(done), *notes.lines]))


def _scan(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.pipeline import scan

    found = scan(args.base, _checkpoints(args.checkpoints), out=args.out, **_machine_options(args))
    if args.json:
        print(json.dumps({"scan": args.out, "steps": found.steps, "tensors": len(found.names)}))
    elif not args.quiet:
        print(f"{args.out}: {len(found.names)} tensors × {len(found.steps)} checkpoints")
        print("\n".join(notes.lines))


def _plan_json(done: Extrapolation) -> dict[str, Any]:
    plan, staging = done.plan, done.plan.staging
    return {
        "bytes_read": plan.bytes_read,
        "passes": plan.passes,
        "peak_memory": plan.peak_memory,
        "memory_limit": plan.memory_limit,
        "bytes_written": plan.bytes_written,
        "free_space": done.free_space,
        "io": plan.io,
        "backend": done.backend,
        "devices": [] if staging is None else list(staging.devices),
        "device_memory": None if staging is None else staging.device_memory,
        "device_memory_limit": None if staging is None else staging.device_limit,
        "tensors": len(plan.tensors),
        "resident": sum(p.resident for p in plan.tensors),
        "solvers": {s: sum(p.solver == s for p in plan.tensors) for s in ("gram", "power", "none")},
        "targets": {str(t): str(folder) for t, folder in done.folders.items()},
    }


def _done_json(done: Extrapolation) -> dict[str, Any]:
    targets = {str(t): str(folder) for t, folder in done.folders.items()}
    return {"out": str(done.out), "targets": targets, "record": done.record}


def plan_text(done: Extrapolation) -> str:
    """The plan in a few aligned lines."""
    from relex_ext.sizes import human

    plan = done.plan
    staging = plan.staging
    resident = sum(p.resident for p in plan.tensors)
    solvers = sorted({p.solver for p in plan.tensors})
    rows = {
        "backend": done.backend,
        "to read": f"{human(plan.bytes_read)} in {plan.passes:.2f} passes ({plan.io}: "
        f"{plan.io_reason})",
        "tensors": f"{len(plan.tensors)}, {resident} of them read once and kept for the writing",
        "solver": {"none": "none, the scan is given"}.get(solvers[0], " and ".join(solvers)),
        "peak memory": f"{human(plan.peak_memory)} of "
        f"{'pinned buffers' if staging else 'strips and buffers'} "
        f"(limit {human(plan.memory_limit)})",
    }
    if staging is not None:
        rows["on device"] = (
            f"{human(staging.device_memory)} of strips and buffers on {', '.join(staging.devices)}"
            f" (limit {human(staging.device_limit)} each)"
        )
    rows |= {
        "to write": f"{human(plan.bytes_written)} ({human(done.free_space)} free)",
        "output": ", ".join(str(folder) for folder in done.folders.values()),
    }
    return "\n".join(f"{name + ':':13}{text}" for name, text in rows.items())


def summary_text(done: Extrapolation) -> str:
    """What was written and how well the line fitted, for a person."""
    record = done.record
    lines = [str(folder) for folder in done.folders.values()]
    if record["explained_variance"] is not None:
        lines.append(
            f"rank 1 explains {record['explained_variance']:.3f} of the movement, "
            f"line R² {record['r2']:.3f} "
            "(a random walk of many steps reaches 0.81 and 0.96: see docs/method.md)"
        )
    return "\n".join(lines)


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # unwinds, so that nothing half-written stays behind


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input (one line on stderr), 130 interrupted, 143 terminated."""
    args = build_parser().parse_args(argv)
    # numpy only decomposes T × T matrices here; its own threads would wake up to get in the way of
    # the kernels'. Read when numpy is imported, so it has to be said before.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with Notes() as notes:
            {"extrapolate": _extrapolate, "scan": _scan}[args.command](args, notes)
    except RelexError as error:
        print(f"relex: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"relex: error: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("relex: interrupted, nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
