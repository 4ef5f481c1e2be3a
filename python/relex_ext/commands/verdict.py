"""``relex verdict``: whether to believe a forecast, from a scan alone."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from relex_ext.commands import Notes
from relex_ext.commands.inputs import add_method, add_rank, method_options

if TYPE_CHECKING:
    from relex_ext.commands import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "verdict", help="say from a scan alone whether to believe a forecast"
    )
    parser.add_argument("scan", metavar="SCAN", help="a scan file with Gram matrices")
    parser.add_argument(
        "--target-step", type=float, action="append", required=True, metavar="STEP",
        help="a step after the newest; several times for several",
    )  # fmt: skip
    parser.add_argument(
        "--until", type=int, metavar="STEP", help="look at the checkpoints up to this step"
    )
    add_rank(parser)
    add_method(parser, strength=False)
    parser.set_defaults(strength=1.0)  # the verdict says which
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.advice import describe
    from relex_ext.evidence.verdict import judge_all
    from relex_ext.forecasts import check_targets
    from relex_ext.methods import Options
    from relex_ext.scans import Scan

    scan = Scan.load(args.scan)
    targets = check_targets(args.target_step)
    options = Options(rank=args.rank, **method_options(args))
    found = judge_all(scan, targets, options, until=args.until)
    if args.json:
        print(json.dumps([{"target": v.target, **v.record()} for v in found], indent=1))
    else:
        print("\n".join(f"step {v.target:g}: {describe(v)}" for v in found))
