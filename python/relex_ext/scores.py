"""Scores of models in a CSV file: what was evaluated, and what came out.

    kind,prefix,step,method,strength,score,error,model
    trained,,75,,,0.494,0.008,run/checkpoint-75
    forecast,75,300,relex,0.5,0.541,0.008,found/best

``kind``: ``trained``, a checkpoint of the run (its base: step 0); ``forecast``, a model of a step
beyond those it was made from; ``reconstruction``, one of a step among them. ``prefix``: the newest
step that the forecast saw; ``step``: the model's, or the target's; both, ``method`` and
``strength`` as :func:`relex_ext.forecast` takes them, where a trained model has no prefix, method
or strength. ``error``: the score's standard error, if known; ``model``: its folder, if it is kept.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from relex_ext.errors import InputError
from relex_ext.layout import replace_durably

COLUMNS = ("kind", "prefix", "step", "method", "strength", "score", "error", "model")
KINDS = ("trained", "forecast", "reconstruction")


@dataclass(frozen=True, slots=True)
class Score:
    """One row. ``prefix``, ``method`` and ``strength`` are None for a trained model alone."""

    kind: str
    prefix: int | None
    step: float
    method: str | None
    strength: float | None
    score: float
    error: float | None = None
    model: str | None = None


def read_scores(path: str | os.PathLike[str]) -> tuple[Score, ...]:
    """All rows of a file, in its order.

    Raises:
        InputError: with the file and the line, where it is not as described above.
    """
    place = Path(path)
    try:
        text = place.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{place}: expected scores, found {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: expected scores in UTF-8, found other bytes") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    found = []
    try:
        header = next(rows, [])
        if header != list(COLUMNS):
            names = ",".join(header) or "nothing"
            raise InputError(f"line 1: expected {','.join(COLUMNS)}, found {names}")
        for row in rows:
            if len(row) != len(COLUMNS):
                raise InputError(
                    f"line {rows.line_num}: expected {len(COLUMNS)} fields, found {len(row)}"
                )
            try:
                found.append(_score(dict(zip(COLUMNS, row, strict=True))))
            except InputError as error:
                raise InputError(f"line {rows.line_num}: {error}") from None
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    except csv.Error as error:
        raise InputError(f"{place}: line {rows.line_num}: {error}") from error
    return tuple(found)


def write_scores(path: str | os.PathLike[str], scores: Iterable[Score]) -> None:
    """Replace the file by these rows, durably and in one step: a reader sees all of it."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for score in scores:
        rows.writerow(_field(getattr(score, column)) for column in COLUMNS)
    replace_durably(Path(path), text.getvalue().encode())


def plain(number: float) -> str:
    """``300.0`` → ``300``, ``0.5`` → ``0.5``: as short as reads back exactly."""
    return str(int(number)) if number == int(number) else repr(number)


def _field(value: object) -> str:
    if isinstance(value, (int, float)):
        return plain(float(value))
    return "" if value is None else str(value)


def _score(row: Mapping[str, str]) -> Score:
    kind = row["kind"]
    if kind not in KINDS:
        raise InputError(f"kind: expected {', '.join(KINDS)}, found {kind or 'nothing'}")
    made = ("prefix", "method", "strength")
    for column in made:
        if kind == "trained" and row[column]:
            raise InputError(f"{column}: expected nothing for a trained model, found {row[column]}")
        if kind != "trained" and not row[column]:
            raise InputError(f"{column}: expected one for a {kind}, found nothing")
    step, score = _number(row, "step"), _number(row, "score")
    error = _number(row, "error") if row["error"] else None
    if error is not None and error < 0:
        raise InputError(f"error: expected at least 0, found {row['error']}")
    model = row["model"] or None
    if kind == "trained":
        return Score(kind, None, step, None, None, score, error, model)
    prefix = _number(row, "prefix")
    if prefix != int(prefix):
        raise InputError(f"prefix: expected a step, found {row['prefix']}")
    if (step > prefix) != (kind == "forecast"):
        where = "beyond" if kind == "forecast" else "up to"
        raise InputError(f"step: expected {where} prefix {int(prefix)}, found {row['step']}")
    strength = _number(row, "strength")
    return Score(kind, int(prefix), step, row["method"], strength, score, error, model)


def _number(row: Mapping[str, str], column: str) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        found = row[column] or "nothing"
        raise InputError(f"{column}: expected a finite number, found {found}")
    return number
