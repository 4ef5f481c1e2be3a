"""The subcommands of ``relex``, one module each; cli.COMMANDS lists them.

A module has ``add(commands)``, which adds its parser, and ``run(args, notes)``. Importing it
imports neither numpy nor torch, so that ``relex --help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class Command(Protocol):
    """What a subcommand's module offers."""

    def add(self, commands: Commands) -> None: ...

    def run(self, args: argparse.Namespace, notes: Notes) -> None: ...


class Notes(logging.Handler):
    """What was chosen and why, as the package logs it, for the end of a summary."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Notes:
        log = logging.getLogger("relex_ext")
        log.setLevel(logging.INFO)
        log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("relex_ext").removeHandler(self)
