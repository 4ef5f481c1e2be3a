"""The ``relex`` command: its table of subcommands, its errors and its exit status."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from relex_ext.about import Version
from relex_ext.commands import (
    Command,
    Notes,
    extrapolate,
    gather,
    push,
    report,
    scan,
    search,
    verdict,
    verify,
    watch,
)
from relex_ext.commands import list as list_command
from relex_ext.commands.inputs import number, whole_number
from relex_ext.errors import RelexError, Told, Unfinished, printable

COMMANDS: Mapping[str, Command] = {
    "extrapolate": extrapolate,
    "scan": scan,
    "verdict": verdict,
    "report": report,
    "search": search,
    "gather": gather,
    "verify": verify,
    "push": push,
    "list": list_command,
    "watch": watch,
}
"""Name → its module, in the order of --help."""

EPILOG = """\
example:
  relex extrapolate --base Qwen2.5-Math-1.5B --checkpoints run/ --until 75 \\
      --target-step 500 --out forecast/
"""


class Parser(argparse.ArgumentParser):
    """Its errors are one line, as all others are; subcommands' parsers are of this class too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # In place of argparse's "invalid float value", wherever an argument has such a type.
        self.register("type", float, number)
        self.register("type", int, whole_number)

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {line}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; reading it imports neither numpy nor torch."""
    parser: argparse.ArgumentParser = Parser(
        prog="relex",
        description="Write the checkpoints of later RLVR training steps without training them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, help="show what is installed, and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add(commands)
    return parser


def _import_numpy() -> None:
    """Without its own threads, which would wake up to get in the way of the kernels': here it only
    decomposes T × T matrices. It is told by variables that the commands we start must not see."""
    unset = [name for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, "1"))
    import_module("numpy")
    for name in unset:
        del os.environ[name]


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # unwinds, so that nothing half-written stays behind


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 bad input (one line on stderr), 130 interrupted, 143 terminated."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    args.line = shlex.join(["relex", *argv])
    _import_numpy()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with Notes() as notes:
            COMMANDS[args.command].run(args, notes)
    except Unfinished as rest:
        print(f"relex: {rest}", file=sys.stderr)
    except Told:
        return 2
    except RelexError as error:
        print(f"relex: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"relex: error: {printable(f'{place}{error.strerror or error}')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        kept = f"; {stop}" if str(stop) else ", nothing was written"
        print(f"relex: interrupted{kept}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
