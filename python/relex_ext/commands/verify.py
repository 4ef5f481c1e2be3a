"""``relex verify``: whether an output still is what was written."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relex_ext.commands import Commands, Notes
    from relex_ext.verifying.run import Verification


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "verify", help="read an output again: is every byte the one that was written"
    )
    parser.add_argument("out", metavar="OUT", help="what extrapolate wrote, or a search's best")
    parser.add_argument(
        "--samples", type=int, default=0, metavar="N",
        help="also compute N blocks again from the inputs, in float64 (0)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the choice of blocks (0)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="(all processors)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="no progress, and nothing but damages"
    )


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.errors import InputError
    from relex_ext.verifying.run import verify

    found = verify(
        args.out, samples=args.samples, seed=args.seed, threads=args.threads,
        progress=not (args.quiet or args.json),
    )  # fmt: skip
    if args.json:
        print(json.dumps(_json(found), indent=1))
    elif not found.ok:
        print("\n".join(found.damages))
    elif not args.quiet:
        print(_sentence(found))
    if not found.ok:
        raise InputError(f"{found.out}: {_count(len(found.damages), 'damage')}")


def _json(found: Verification) -> dict[str, Any]:
    return {
        "out": str(found.out),
        "ok": found.ok,
        "models": found.models,
        "tensors": found.tensors,
        "files": found.files,
        "bytes": found.bytes,
        "samples": found.samples,
        "damages": list(found.damages),
    }


def _sentence(found: Verification) -> str:
    from relex_ext.sizes import human

    models, tensors = _count(found.models, "model"), _count(found.tensors, "tensor")
    said = f"{found.out}: {models}, {tensors}, {human(found.bytes)}: as written"
    if not found.samples:
        return said
    agree = "agrees" if found.samples == 1 else "agree"
    return f"{said}; {_count(found.samples, 'sample')} {agree} with the inputs"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
