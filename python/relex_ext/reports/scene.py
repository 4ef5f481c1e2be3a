"""A drawing as a list of shapes, in pixels from the top left; :mod:`svg` and :mod:`png` paint it.

Shapes name a style of :mod:`theme` and no colour, so that one drawing serves both themes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Point = tuple[float, float]

TEXT = 14.0
"""The size of all text: nothing on a phone is smaller."""

_WIDTHS = {**dict.fromkeys("iljI.,:;'|! ", 0.34), **dict.fromkeys("rtf()[]-", 0.42)}
_WIDTHS |= dict.fromkeys("−≤≥=+×", 0.84) | dict.fromkeys("mMwW%…", 1.0)


def text_width(text: str, *, bold: bool = False) -> float:
    """How wide DejaVu Sans sets it, the widest of the fonts that a page may get."""
    width = TEXT * sum(_WIDTHS.get(c, 0.64) for c in text)
    return 1.12 * width if bold else width


@dataclass(frozen=True, slots=True)
class Polyline:
    points: tuple[Point, ...]
    style: str


@dataclass(frozen=True, slots=True)
class Polygon:
    points: tuple[Point, ...]
    style: str


@dataclass(frozen=True, slots=True)
class Segments:
    """Separate straight strokes: grids, ticks, error bars."""

    pairs: tuple[tuple[Point, Point], ...]
    style: str


@dataclass(frozen=True, slots=True)
class Dots:
    """Filled circles of one size."""

    points: tuple[Point, ...]
    radius: float
    style: str


@dataclass(frozen=True, slots=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    style: str
    title: str = ""
    """Shown when it is pointed at."""


@dataclass(frozen=True, slots=True)
class Text:
    x: float
    y: float
    """The baseline."""
    text: str
    style: str = "text"
    anchor: str = "start"
    """``start``, ``middle`` or ``end``."""


Shape = Polyline | Polygon | Segments | Dots | Rect | Text


@dataclass(slots=True)
class Scene:
    """What is drawn, first things at the back; figures add to it from top to bottom."""

    width: float
    height: float = 0.0
    shapes: list[Shape] = field(default_factory=list)

    def line(self, points: Iterable[Point], style: str) -> None:
        given = tuple(points)
        if len(given) > 1:
            self.shapes.append(Polyline(given, style))

    def area(self, points: Iterable[Point], style: str) -> None:
        self.shapes.append(Polygon(tuple(points), style))

    def segments(self, pairs: Iterable[tuple[Point, Point]], style: str) -> None:
        given = tuple(pairs)
        if given:
            self.shapes.append(Segments(given, style))

    def dots(self, points: Iterable[Point], style: str, radius: float = 2.5) -> None:
        given = tuple(points)
        if given:
            self.shapes.append(Dots(given, radius, style))

    def rings(self, points: Iterable[Point], style: str, radius: float = 2.5) -> None:
        """Circles with a hole, in which whatever is under them is covered."""
        given = tuple(points)
        self.dots(given, style, radius)
        self.dots(given, "hole", radius - 1.2)

    def rect(
        self, x: float, y: float, width: float, height: float, style: str, title: str = ""
    ) -> None:
        self.shapes.append(Rect(x, y, width, height, style, title))

    def text(
        self, x: float, y: float, text: str, style: str = "text", anchor: str = "start"
    ) -> None:
        self.shapes.append(Text(x, y, text, style, anchor))
