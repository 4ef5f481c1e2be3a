"""``relex search``: the forecast that scores best in the user's own evaluation."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from relex_ext.commands import Notes
from relex_ext.commands.inputs import (
    add_inputs,
    add_machine,
    add_method,
    add_written,
    checkpoints_of,
    machine_options,
    method_options,
)

if TYPE_CHECKING:
    from relex_ext.commands import Commands
    from relex_ext.searches.found import Search

EPILOG = """\
example:
  relex search --base Qwen2.5-Math-1.5B --checkpoints run/ --until 75 \\
      --eval 'python evaluate.py {model}' --out found/
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "search", help="evaluate forecasts with your own command and keep the best",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_inputs(parser)
    parser.add_argument(
        "--eval", required=True, metavar="CMD", dest="evaluate",
        help="a shell command with {model} where the folder goes; the last line that it prints "
        "is the score, as 0.51, 0.51 ± 0.01 or JSON with score and error",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--target-step", type=float, action="append", metavar="STEP",
        help="give it several times for a range (1.25 to 6 times the newest step)",
    )  # fmt: skip
    parser.add_argument(
        "--strength", type=float, action="append", metavar="λ",
        help="how much of the way from the newest checkpoint to the forecast; several for a range "
        "(0.5 and 1)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluations", type=int, default=10, metavar="N", help="runs of the command at most (10)"
    )
    better = parser.add_mutually_exclusive_group()
    better.add_argument(
        "--higher-is-better", action="store_true", dest="higher", default=True, help="(the default)"
    )
    better.add_argument("--lower-is-better", action="store_false", dest="higher")
    parser.add_argument(
        "--per-pass", type=int, default=4, metavar="K",
        help="forecasts written in one pass, each as large as the model (4)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", choices=("best", "all"), default="best", help="which models to keep (best)"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="for one evaluation (none)"
    )
    add_written(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan: evaluations, disk, bytes to read"
    )
    add_method(parser, strength=False)
    add_machine(parser, solver="gram")


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.searches.run import search
    from relex_ext.searches.strategy import STRENGTHS

    forecast = method_options(args)
    strengths = forecast.pop("strength")
    try:
        found = search(
            args.base, checkpoints_of(args.checkpoints), args.out, args.evaluate,
            target_steps=args.target_step, strengths=strengths or STRENGTHS,
            evaluations=args.evaluations, higher_is_better=args.higher, per_pass=args.per_pass,
            keep=args.keep, timeout=args.timeout, dtype=args.dtype, scan=args.scan,
            dry_run=args.dry_run, **forecast, **machine_options(args),
        )  # fmt: skip
    except KeyboardInterrupt:
        print("relex: interrupted; the same command continues", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    if args.json:
        print(json.dumps(_plan_json(found) if args.dry_run else _json(found), indent=1))
    elif args.dry_run:
        print(_plan_text(found))
    elif not args.quiet:
        print("\n".join([*_table(found), "", found.sentence(), *dict.fromkeys(notes.lines)]))


def _json(found: Search) -> dict[str, Any]:
    assert found.bar is not None and found.best is not None
    return {
        "out": str(found.out),
        "best": asdict(found.best),
        "bar": asdict(found.bar),
        "gains": found.gains,
        "scores": [asdict(score) for score in found.scores],
    }


def _plan_json(found: Search) -> dict[str, Any]:
    plan = asdict(found.plan)
    space = plan.pop("space")
    return {"targets": space["targets"], "strengths": space["strengths"], **plan}


def _plan_text(found: Search) -> str:
    from relex_ext.sizes import human

    plan = found.plan
    passes = f"{human(plan.bytes_read)} for a pass of {plan.per_pass}"
    rows = {
        "backend": plan.backend,
        "evaluations": f"{plan.evaluations} at most: the newest checkpoint, "
        f"{', '.join(candidate.name for candidate in plan.coarse)}, and around the best of them",
        "to read": (f"{human(plan.scan_bytes)} for the scan, " if plan.scan_bytes else "") + passes,
        "disk": f"{human(plan.disk)} at most, {human(plan.model_bytes)} a model "
        f"({human(plan.free_space)} free)",
        "output": str(found.out),
    }
    return "\n".join(f"{name + ':':13}{text}" for name, text in rows.items())


def _table(found: Search) -> list[str]:
    from relex_ext.scores import plain

    rows = [("", "step", "strength", "score", "error", "")]
    for i, score in enumerate(found.scores):
        rows.append((
            str(i + 1),
            plain(score.step),
            "trained" if score.strength is None else plain(score.strength),
            f"{score.score:.6g}",
            "" if score.error is None else f"{score.error:.2g}",
            "best" if score == found.best else "",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = ("  ".join(map(str.rjust, row, widths)).rstrip() for row in rows)
    return list(lines)
