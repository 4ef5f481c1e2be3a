"""``relex list``: the steps of a run, and which of them can be used."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relex_ext.commands.inputs import add_revisions, checkpoints_of

if TYPE_CHECKING:
    from relex_ext.commands import Commands, Notes
    from relex_ext.listing import ListedStep

HEADINGS = ("step", "folder", "dtype", "size", "tensors", "tied", "complete")
LEFT = {"folder", "dtype", "tied", "complete"}
"""Columns of words; the others are of numbers."""


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "list", help="show the checkpoints of a run: what extrapolate would find there"
    )
    parser.add_argument(
        "run", nargs="+", metavar="RUN", help="as --checkpoints of the other commands"
    )
    add_revisions(parser)
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.listing import list_checkpoints, usable
    from relex_ext.steps import step_folder

    listed = list_checkpoints(checkpoints_of(args.run), revisions=args.revisions)
    if args.json:
        print(json.dumps(_json(listed, usable(listed)), indent=1))
        return
    here = [one.folder.absolute() for one in listed if isinstance(one.folder, Path)]
    place = os.path.commonpath([step_folder(folder).parent for folder in here]) if here else ""
    print(_table([_row(one, place) for one in listed]))
    print(f"trainer: {listed[0].trainer}")
    hints = dict.fromkeys(one.hint for one in listed if one.hint is not None)
    for line in (*notes.lines, *(f"where weights are missing: {hint}" for hint in hints)):
        print(line)
    print(advice(listed, usable(listed)))


def advice(listed: Sequence[ListedStep], steps: Sequence[int]) -> str:
    """What ``relex extrapolate`` would make of it, and the option that it needs for that."""
    if len(steps) < 2:
        return f"extrapolate: expected at least 2 complete checkpoints, found {len(steps)}"
    said = f"extrapolate: steps {steps[0]} to {steps[-1]}, {len(steps)} checkpoints"
    if len(steps) == len(listed):
        return said
    if steps[-1] == listed[len(steps) - 1].step:
        return f"{said}, with --until {steps[-1]}"
    return f"{said}, with --steps {','.join(map(str, steps))}"


def _json(listed: Sequence[ListedStep], steps: Sequence[int]) -> dict[str, Any]:
    return {
        "trainer": listed[0].trainer,
        "usable": list(steps),
        "checkpoints": [
            {
                "step": one.step,
                "folder": str(one.folder),
                "dtypes": list(one.dtypes),
                "bytes": one.nbytes,
                "tensors": one.tensors,
                "tied": one.tied,
                "adapter": one.adapter,
                "problem": one.problem,
                "hint": one.hint,
            }
            for one in listed
        ],
    }


def _row(one: ListedStep, place: str) -> tuple[str, ...]:
    from relex_ext.errors import printable
    from relex_ext.sizes import human

    folder = (
        printable(os.path.relpath(one.folder.absolute(), place))
        if isinstance(one.folder, Path)
        else str(one.folder)
    )
    complete = "yes" if one.problem is None else f"no: {one.problem}"
    if one.adapter and one.problem is None:
        complete = "yes (LoRA)"
    if not one.tensors:
        return str(one.step), folder, "-", "-", "-", "-", complete
    tied = {True: "yes", False: "no", None: "?"}[one.tied]
    size = human(one.nbytes)
    return str(one.step), folder, ", ".join(one.dtypes), size, str(one.tensors), tied, complete


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = (HEADINGS, *rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if heading in LEFT else cell.rjust(width)
            for heading, cell, width in zip(HEADINGS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
