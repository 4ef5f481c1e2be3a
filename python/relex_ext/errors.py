"""The errors that a user can act on: one line each, exit code 2 on the command line."""

from __future__ import annotations


class RelexError(ValueError):
    """Something about the input, the options or the output that the user can put right."""


class InputError(RelexError):
    """A checkpoint, scan file or option is not what it has to be."""


class OutputError(RelexError):
    """The output cannot be written where it was asked for."""


class EvaluationError(RelexError):
    """The user's evaluation command failed, took too long or printed no score."""
