"""``relex gather``: checkpoints that a trainer's ranks saved in pieces, made whole."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from relex_ext.commands.inputs import add_printed, add_selection, checkpoints_of

if TYPE_CHECKING:
    from relex_ext.commands import Commands, Notes

EPILOG = """\
example:
  relex gather checkpoints/ --base Qwen2.5-Math-1.5B --out gathered/
  relex extrapolate --base Qwen2.5-Math-1.5B --checkpoints gathered/ --target-step 500 --out out/
"""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "gather", help="make safetensors of distributed checkpoints and verl's rank files",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "checkpoints", nargs="+", metavar="RUN",
        help="the run folder with its step folders; several: the phases of one training, which "
        "count on, or STEP=DIR",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="where DIR/step_N is made for each step"
    )
    parser.add_argument(
        "--base", metavar="DIR",
        help="the model the run began with: its tensors' names and shapes are checked, its config "
        "and tokenizer taken where a step has none",
    )  # fmt: skip
    add_selection(parser)
    parser.add_argument(
        "--dtype", metavar="DTYPE",
        help="of the written weights: float32, float16, bfloat16 (as they are)",
    )  # fmt: skip
    add_printed(parser)


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.gathering.run import gather
    from relex_ext.sizes import human
    from relex_ext.steps import few_of

    done = gather(
        checkpoints_of(args.checkpoints), args.out, base=args.base, until=args.until,
        steps=args.steps, dtype=args.dtype, progress=not (args.quiet or args.json),
    )  # fmt: skip
    if args.json:
        folders = {step: str(folder) for step, folder in done.folders.items()}
        print(json.dumps({"folders": folders, "made": done.made, "bytes": done.bytes}, indent=1))
    elif not args.quiet:
        there = [step for step in done.folders if step not in done.made]
        if done.made:
            made = f"{done.tensors} tensors, {human(done.bytes)}"
            print(f"{args.out}: gathered step {few_of(done.made)}: {made}")
        if there:
            print(f"{args.out}: there already: step {few_of(there)}")
        print("\n".join(notes.lines), end="\n" if notes.lines else "")
