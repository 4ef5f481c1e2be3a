"""``relex extrapolate``: scan, fit and write."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from relex_ext.commands import Notes, push
from relex_ext.commands.inputs import (
    add_delta_dtype,
    add_inputs,
    add_machine,
    add_max_local,
    add_method,
    add_nonfinite,
    add_world,
    add_written,
    checkpoints_of,
    machine_options,
    method_options,
    world_of,
)

if TYPE_CHECKING:
    from relex_ext.commands import Commands
    from relex_ext.job import Extrapolation


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "extrapolate", help="scan, fit and write the forecast checkpoints in one go"
    )
    add_inputs(parser)
    add_max_local(parser)
    parser.add_argument(
        "--target-step", type=float, action="append", required=True, metavar="STEP",
        help="a step to forecast; give it several times for several, written in one pass",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    add_written(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan: bytes, passes, memory, space"
    )
    add_method(parser)
    add_delta_dtype(parser)
    add_nonfinite(parser)
    add_machine(parser, solver="auto")
    add_world(parser)
    push.add_push(parser)


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.pipeline import extrapolate

    push.check(args)
    with world_of(args) as world:
        done = extrapolate(
            args.base, checkpoints_of(args.checkpoints), args.target_step, args.out,
            dtype=args.dtype, scan=args.scan, dry_run=args.dry_run,
            delta_dtype=args.delta_dtype,
            nonfinite=args.nonfinite, command=args.line, max_local=args.max_local,
            world=world,
            **method_options(args), **machine_options(args),
        )  # fmt: skip
    if not world.speaks:
        return
    pushed = [] if args.dry_run else push.finish(args)
    if args.json:
        found = _plan_json(done) if args.dry_run else {**_done_json(done), "pushed": pushed}
        print(json.dumps(found, indent=1))
    elif args.dry_run:
        print(_plan_text(done))
    elif not args.quiet:
        print("\n".join([_summary_text(done), *notes.lines, *pushed]))


def _plan_json(done: Extrapolation) -> dict[str, Any]:
    plan, staging = done.plan, done.plan.staging
    return {
        "bytes_read": plan.bytes_read,
        "passes": plan.passes,
        "scan_first": plan.apart,
        "peak_memory": plan.peak_memory,
        "memory_limit": plan.memory_limit,
        "bytes_written": plan.bytes_written,
        "bytes_fetched": None if plan.supply is None else plan.supply.total,
        "least_max_local": None if plan.supply is None else plan.supply.least,
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


def _plan_text(done: Extrapolation) -> str:
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
        "solver": {"none": "none, nothing is to be scanned"}.get(solvers[0], " and ".join(solvers)),
        "peak memory": f"{human(plan.peak_memory)} of "
        f"{'pinned buffers' if staging else 'strips and buffers'} "
        f"(limit {human(plan.memory_limit)})",
    }
    if plan.apart:
        rows["order"] = "all tensors are scanned before the first is written: strength auto"
    if staging is not None:
        rows["on device"] = (
            f"{human(staging.device_memory)} of strips and buffers on {', '.join(staging.devices)}"
            f" (limit {human(staging.device_limit)} each)"
        )
    if plan.supply is not None:
        supply = plan.supply
        twice = plan.apart and supply.total > supply.limit
        rows["to fetch"] = (
            f"{human(supply.total)}{', twice' if twice else ''}, at most {human(supply.limit)} on "
            f"disk at a time (at least {human(supply.least)})"
        )
    rows |= {
        "to write": f"{human(plan.bytes_written)} ({human(done.free_space)} free)",
        "output": ", ".join(str(folder) for folder in done.folders.values()),
    }
    return "\n".join(f"{name + ':':13}{text}" for name, text in rows.items())


def _summary_text(done: Extrapolation) -> str:
    """What was written and how well the line fitted, for a person."""
    record = done.record
    lines = [str(folder) for folder in done.folders.values()]
    if record["explained_variance"] is not None:
        fit = record["options"]["fit"]
        kind = {"linear": "line"}.get(fit, fit)
        fitted = "" if record["r2"] is None else f", {kind} R² {record['r2']:.3f}"
        walk = record["random_walk"]
        beside = "a long random walk has 0.81 and 0.96"
        if walk is not None:
            beside = (
                "a random walk with the same updates has "
                f"{walk['explained_variance']:.3f} and {walk['r2']:.3f}"
            )
        lines.append(
            f"rank 1 explains {record['explained_variance']:.3f} of the movement{fitted} ({beside})"
        )
    if record["options"]["strength"] == "auto":
        found = (f"{name}: {value:.3g}" for name, value in record["strengths"].items())
        lines.append(f"strength {', '.join(found)}")
    return "\n".join(lines)
