"""``relex scan``: one pass over the shards, kept in a file."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from relex_ext.commands import Notes
from relex_ext.commands.inputs import (
    add_delta_dtype,
    add_inputs,
    add_machine,
    add_max_local,
    add_nonfinite,
    add_world,
    checkpoints_of,
    machine_options,
    world_of,
)

if TYPE_CHECKING:
    from relex_ext.commands import Commands


def add(commands: Commands) -> None:
    parser = commands.add_parser("scan", help="only compute the Gram matrices and keep them")
    add_inputs(parser)
    add_max_local(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="the scan file to write")
    parser.add_argument(
        "--rank", type=int, default=1, metavar="R", help="pairs that solver power keeps (1)"
    )
    add_delta_dtype(parser)
    add_nonfinite(parser)
    add_machine(parser, solver="gram")
    add_world(parser)


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.pipeline import scan

    with world_of(args) as world:
        found = scan(
            args.base, checkpoints_of(args.checkpoints), out=args.out,
            delta_dtype=args.delta_dtype,
            nonfinite=args.nonfinite,
            max_local=args.max_local,
            world=world,
            **machine_options(args),
        )  # fmt: skip
    if not world.speaks:
        return
    if args.json:
        print(json.dumps({"scan": args.out, "steps": found.steps, "tensors": len(found.names)}))
    elif not args.quiet:
        print(f"{args.out}: {len(found.names)} tensors × {len(found.steps)} checkpoints")
        print("\n".join(notes.lines))
