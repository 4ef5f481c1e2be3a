"""``relex push``: an output onto the Hugging Face Hub."""

from __future__ import annotations

import argparse
import json
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relex_ext.commands import Commands, Notes


def add(commands: Commands) -> None:
    parser = commands.add_parser("push", help="upload an output to the Hugging Face Hub")
    parser.add_argument("out", metavar="OUT", help="what extrapolate wrote, or a search's best")
    parser.add_argument("--to", required=True, metavar="ORG/REPO", help="made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it a private repository")
    parser.add_argument(
        "--revision", metavar="BRANCH",
        help="of the repository (main; of several targets, each has a branch of its name)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the addresses as JSON")


def run(args: argparse.Namespace, notes: Notes) -> None:
    from relex_ext.hub.pushing import push

    addresses = push(
        args.out, args.to, private=args.private, revision=args.revision, progress=not args.json
    )
    print(json.dumps(addresses) if args.json else "\n".join(addresses.values()))


def add_push(parser: argparse.ArgumentParser) -> None:
    """What a command that pushes its own output asks."""
    group = parser.add_argument_group("Hugging Face Hub")
    group.add_argument(
        "--push-to", metavar="ORG/REPO",
        help="upload the output when it is complete; several targets go to a branch each",
    )  # fmt: skip
    group.add_argument("--private", action="store_true", help="make it a private repository")
    group.add_argument("--push-revision", metavar="BRANCH", help="for one target (main)")


def check(args: argparse.Namespace) -> None:
    """Of :func:`add_push`'s options, before the work begins."""
    from relex_ext.errors import InputError

    if args.push_to is None:
        if args.private or args.push_revision is not None:
            raise InputError("push_to: expected a repository beside private or push_revision")
        return
    if args.push_revision is not None and len(args.target_step) > 1:
        raise InputError("push_revision: expected one target step, found several")
    from relex_ext.hub.pushing import check_push

    check_push(args.push_to)


def finish(args: argparse.Namespace) -> list[str]:
    """The addresses of what was pushed, if that was asked for.

    Raises:
        RelexError: it failed; the line says that the output is complete, and how to go on.
    """
    if args.push_to is None:
        return []
    from relex_ext.errors import OutputError, RelexError
    from relex_ext.hub.pushing import push

    try:
        found = push(
            args.out, args.push_to, private=args.private, revision=args.push_revision,
            progress=not (args.quiet or args.json),
        )  # fmt: skip
    except RelexError as error:
        command = ["relex", "push", args.out, "--to", args.push_to]
        command += ["--private"] * args.private
        command += [] if args.push_revision is None else ["--revision", args.push_revision]
        raise OutputError(f"{error}; {args.out} is complete: {shlex.join(command)}") from error
    return list(found.values())
