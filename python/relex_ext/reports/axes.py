"""Scales, ticks and the frame of a plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relex_ext.reports.scene import TEXT, Point, Scene, text_width
from relex_ext.reports.words import number


@dataclass(frozen=True, slots=True)
class Scale:
    """Values between ``low`` and ``high`` to pixels between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clipped(self, value: float) -> float:
        return self.at(min(self.high, max(self.low, value)))


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` round numbers from ``low`` to ``high``."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    for size in (1, 2, 2.5, 5, 10, 20, 25, 50):
        unit = size * power
        first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
        if last - first + 1 <= most:
            return [i * unit for i in range(first, last + 1)]
    return [low]


def span(values: Iterable[float], *, zero: bool = False, margin: float = 0.06) -> Point:
    """The range of some values and a little more; never empty."""
    given = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(given), max(given)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    extra = margin * (high - low) or abs(high) * 0.1 or 1.0
    edge = zero and low < high  # where all are 0, a frame that ended there would have no height
    return (low if edge and low == 0.0 else low - extra), (
        high if edge and high == 0.0 else high + extra
    )


def tick_labels(values: Sequence[float]) -> list[str]:
    """All with as many decimals as their distance asks for."""
    if len(values) < 2:
        return [number(value) for value in values]
    unit = values[1] - values[0]
    if max(abs(v) for v in values) >= 1e6 or unit < 1e-4:
        return [number(value) for value in values]
    digits = 0
    while digits < 6 and abs(round(unit, digits) - unit) > 1e-9 * unit:
        digits += 1
    return [f"{v:.{digits}f}".replace("-", "−") if v else "0" for v in values]


@dataclass(frozen=True, slots=True)
class Plot:
    """A frame on a scene: where its values lie."""

    scene: Scene
    x: Scale
    y: Scale

    def at(self, x: float, y: float) -> Point:
        return self.x.at(x), self.y.clipped(y)

    def points(self, xs: Iterable[float], ys: Iterable[float]) -> list[Point]:
        return [self.at(x, y) for x, y in zip(xs, ys, strict=True)]

    def level(self, value: float, style: str = "axis") -> None:
        """A horizontal line."""
        y = self.y.at(value)
        self.scene.segments([((self.x.start, y), (self.x.end, y))], style)

    def upright(self, value: float, style: str = "axis") -> None:
        x = self.x.at(value)
        self.scene.segments([((x, self.y.start), (x, self.y.end))], style)


def plot(
    scene: Scene,
    box: tuple[float, float, float, float],
    xs: Point,
    ys: Point,
    *,
    x_title: str = "",
    x_ticks: Sequence[float] | None = None,
    x_labels: Sequence[str] | None = None,
    y_ticks: Sequence[float] | None = None,
    y_labels: Sequence[str] | None = None,
) -> Plot:
    """A frame in ``box`` (left, top, right, bottom), all of it: labels and titles included.

    Horizontal grid lines only, their labels to the left; steps below, and what they are.
    """
    left, top, right, bottom = box
    floor = bottom - TEXT - 8 - (TEXT + 4 if x_title else 0)
    y_at = list(ticks(*ys, max(2, int((floor - top) / 38)))) if y_ticks is None else list(y_ticks)
    labels = tick_labels(y_at) if y_labels is None else list(y_labels)
    edge = left + max((text_width(label) for label in labels), default=0) + 8
    y = Scale(*ys, floor, top + TEXT / 2)
    x = Scale(*xs, edge, right)
    frame = Plot(scene, x, y)
    heights = [y.at(v) for v in y_at]
    scene.segments([((edge, h), (right, h)) for h in heights], "grid")
    for height, label in zip(heights, labels, strict=True):
        scene.text(edge - 8, height + TEXT * 0.35, label, "soft", "end")
    room = text_width(tick_labels([float(round(xs[1]))])[0]) + 18
    x_at = ticks(*xs, max(2, int((right - edge) / room))) if x_ticks is None else x_ticks
    scene.segments([((edge, floor), (right, floor))], "axis")
    scene.segments([((x.at(v), floor), (x.at(v), floor + 4)) for v in x_at], "axis")
    names = tick_labels(x_at) if x_labels is None else x_labels
    for value, label in zip(x_at, names, strict=True):
        half = text_width(label) / 2
        centre = min(max(x.at(value), left + half), right - half)
        scene.text(centre, floor + TEXT + 6, label, "soft", "middle")
    if x_title:
        scene.text(right, bottom - 4, x_title, "soft", "end")
    return frame


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights for labels near the wanted ones, at least ``gap`` apart where there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    last = low - gap
    for i in order:
        last = placed[i] = max(wanted[i], last + gap)
    top = high + gap
    for i in reversed(order):
        top = placed[i] = min(placed[i], top - gap)
    return placed
