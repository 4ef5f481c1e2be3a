"""The leading coefficient against the step, with the line it was given (the paper's Finding 2)."""

from __future__ import annotations

from collections.abc import Sequence

from relex_ext.reports.axes import plot, span
from relex_ext.reports.figures import Figure
from relex_ext.reports.paths import Coefficient
from relex_ext.reports.scene import TEXT, Scene
from relex_ext.reports.words import number, short_name, step

_HEAD = 2 * TEXT + 14
_RINGS = 24
"""More would run into each other."""


def figure(curves: Sequence[Coefficient], steps: Sequence[int], pooled: str) -> Figure:
    whole = curves[0]
    until = step(steps[whole.fitted - 1])
    lead = (
        f"A line fitted up to step {until} has R² {number(whole.r2, 3)} there and "
        f"{number(whole.r2_outside)} on the steps after it, all tensors as one vector."
    )

    def draw(width: float) -> Scene:
        columns = 3 if width > 600 else 1
        gap, height = 26.0, 190.0 if columns > 1 else 170.0
        rows = -(-len(curves) // columns)
        scene = Scene(width, rows * (height + _HEAD) + (rows - 1) * 20)
        size = (width - gap * (columns - 1)) / columns
        for i, curve in enumerate(curves):
            row, column = divmod(i, columns)
            left, top = column * (size + gap), row * (height + _HEAD + 20)
            scene.text(left, top + TEXT, _title(curve, pooled), "title")
            _fits(scene, left, top + 2 * TEXT + 6, curve)
            last = row == rows - 1 or i + columns >= len(curves)
            box = (left, top + _HEAD, left + size, top + _HEAD + height)
            _panel(scene, box, curve, steps, "step" if last else "")
        return scene

    parts = "; ".join(
        f"{_title(c, pooled)}: R² {number(c.r2, 3)} inside, {number(c.r2_outside)} outside"
        for c in curves
    )
    return Figure(
        "coefficients",
        "Does the line go on",
        lead,
        f"Leading coefficient against the step, with the line fitted up to step {until}. {parts}.",
        "Filled: steps that gave the direction and the line. Hollow: later ones, projected on "
        "that direction. Orange: the line, dashed where it is a forecast. R² out is 1 − SSE/SST "
        "over the steps after, below 0 where their own mean would do better.",
        draw,
    )


def _title(curve: Coefficient, pooled: str) -> str:
    return "all tensors" if curve.name == pooled else short_name(curve.name)


def _fits(scene: Scene, left: float, y: float, curve: Coefficient) -> None:
    text = f"R² {number(curve.r2, 3)} in, {number(curve.r2_outside)} out"
    scene.text(left, y, text, "soft")


def _panel(
    scene: Scene,
    box: tuple[float, float, float, float],
    curve: Coefficient,
    steps: Sequence[int],
    x_title: str,
) -> None:
    line = [curve.slope * s + curve.intercept for s in (steps[0], steps[curve.fitted - 1])]
    end = curve.slope * steps[-1] + curve.intercept
    low, high = span(curve.values, zero=True)
    # A line that leaves by far would flatten what was measured; it may be cut off.
    room = 0.6 * (high - low)
    ys = (min(low, max(end, low - room)), max(high, min(end, high + room)))
    frame = plot(scene, box, (min(0, steps[0]), steps[-1]), ys, x_title=x_title)
    edge = (steps[curve.fitted - 1] + steps[min(curve.fitted, len(steps) - 1)]) / 2
    frame.upright(edge)
    inside, outside = steps[: curve.fitted], steps[curve.fitted :]
    radius = 2.4 if len(steps) < 120 else 2.0
    after = frame.points(outside, curve.values[curve.fitted :])
    scene.line(
        [frame.at(steps[curve.fitted - 1], curve.values[curve.fitted - 1]), *after], "measured-thin"
    )
    sparse = after[:: -(-len(after) // _RINGS)] if after else []
    scene.rings(sparse, "measured", 3.2)
    scene.dots(frame.points(inside, curve.values[: curve.fitted]), "measured", radius)
    scene.line(frame.points((steps[0], steps[curve.fitted - 1]), line), "forecast-line")
    last: float = steps[-1]
    for bound in ys:  # where it leaves the frame, it ends
        if curve.slope and (end > ys[1]) == (bound == ys[1]) and not ys[0] <= end <= ys[1]:
            last = (bound - curve.intercept) / curve.slope
    to = curve.slope * last + curve.intercept
    scene.line(frame.points((steps[curve.fitted - 1], last), (line[1], to)), "forecast-dash")
