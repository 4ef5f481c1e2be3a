"""The errors that a user can act on: one line each, exit code 2 on the command line."""

from __future__ import annotations

LONGEST = 1000
"""Characters of a message, at most: names and paths in it may be anybody's."""


def printable(text: str) -> str:
    """One line that a terminal shows as it is: what would steer it is escaped, the middle of what
    is too long left out."""
    line = _shortened(text)
    if line.isprintable():
        return line
    return _shortened("".join(c if c.isprintable() else _escaped(c) for c in line))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _shortened(text: str) -> str:
    half = LONGEST // 2 - 1
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"


class RelexError(ValueError):
    """Something about the input, the options or the output that the user can put right."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class InputError(RelexError):
    """A checkpoint, scan file or option is not what it has to be."""


class OutputError(RelexError):
    """The output cannot be written where it was asked for."""


class EvaluationError(RelexError):
    """The user's evaluation command failed, took too long or printed no score."""


class Resumable:
    """Of an error that says nothing against what was done until then: it is kept."""


class ReadError(InputError, Resumable):
    """A file could not be read this time."""


class Told(RelexError):
    """An error that another process of the same job tells the user."""


class Unfinished(Exception, Resumable):
    """Not an error: this process's part is done, others' are not. The message says which."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run that the same command goes on with; the message says what is kept."""
