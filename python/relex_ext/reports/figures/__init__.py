"""The page's figures: each a drawing for any width, with the words that go with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relex_ext.reports.scene import Scene

WIDE, NARROW = 760.0, 350.0
"""The widths they are drawn at; a phone of 390 pixels shows the narrow one at its own size."""


@dataclass(frozen=True, slots=True)
class Figure:
    """``lead`` is what it shows in a sentence, ``note`` how to read it, ``alt`` for the blind."""

    key: str
    title: str
    lead: str
    alt: str
    note: str
    draw: Callable[[float], Scene]
