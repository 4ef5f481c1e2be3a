"""JSON from files that anybody may have written: bounded in cost, and with one meaning only."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

LONGEST = 100_000_000
"""Bytes, as many as the safetensors library takes in a header."""

MOST_MARKS = 1 << 22
"""Of these four, in the whole text: what reading it costs grows with them."""

_DIGITS = 20  # as many as 2⁶⁴ has
_MARKS = (b":", b",", b"[", b"{")


def check_cost(data: bytes) -> None:
    """Refuse what would take much memory to read, before it is read.

    Raises:
        ValueError: it is too long, or has too many parts.
    """
    # One character beyond ASCII makes Python keep all of them in up to four bytes each.
    most = LONGEST if data.isascii() else LONGEST // 4
    if len(data) > most:
        raise ValueError(f"expected at most {most} bytes of JSON, found {len(data)}")
    marks = sum(data.count(mark) for mark in _MARKS)
    if marks > MOST_MARKS:
        raise ValueError(f"expected at most {MOST_MARKS} marks in the JSON, found {marks}")


def load(data: bytes, *, floats: bool) -> Any:
    """Parse UTF-8 JSON in which no key comes twice and no number is absurd.

    Raises:
        ValueError: it is something else, or costs too much; without ``floats``, it has a number
            that is not a whole one.
    """
    check_cost(data)
    try:
        return (_ANY_NUMBERS if floats else _WHOLE_NUMBERS).decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, found byte {data[error.start]:#04x}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON, found {error}") from error
    except RecursionError as error:
        raise ValueError("expected JSON, found parts nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"expected each name once, found {name} twice")
    return found


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"expected a number of up to {_DIGITS} digits, found {len(text)}")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdigit() or len(text) > _DIGITS:
        raise ValueError(f"expected a whole number of up to {_DIGITS} digits, found {text:.30}")
    return int(text)


def _no_number(text: str) -> Any:
    raise ValueError(f"expected a number, found {text}")


_ANY_NUMBERS = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_constant=_no_number
)
_WHOLE_NUMBERS = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_whole, parse_float=_whole, parse_constant=_no_number
)
