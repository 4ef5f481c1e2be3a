"""``relex report``: the page that says whether to believe a forecast."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relex_ext.commands import Commands, Notes


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "report", help="one HTML page: can this run be extrapolated, and why"
    )
    parser.add_argument("scan", metavar="SCAN", help="a scan file with Gram matrices")
    parser.add_argument(
        "--eval", action="append", default=[], metavar="CSV",
        help="scores of models to draw; give it several times for several files",
    )  # fmt: skip
    parser.add_argument(
        "--target-step", type=float, metavar="STEP",
        help="the step the verdict is about (twice the newest)",
    )  # fmt: skip
    parser.add_argument(
        "--until", type=int, metavar="STEP", help="use the checkpoints up to this step"
    )
    parser.add_argument(
        "--tensor", action="append", default=[], metavar="NAME",
        help="draw this tensor's coefficient (the largest movers); several times for several",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, metavar="FILE.html",
        help="the page to write; its numbers and figures go beside it",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier report")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing")


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.reports import report

    done = report(
        args.scan, args.out, scores=args.eval, target_step=args.target_step, until=args.until,
        tensors=args.tensor, overwrite=args.overwrite,
    )  # fmt: skip
    if args.json:
        print(json.dumps(done.contents.as_json(), indent=1))
    elif not args.quiet:
        print("\n".join([done.verdict.sentence, str(done.page), *notes.lines]))
