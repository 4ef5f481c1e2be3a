"""A scene as a PNG, painted by matplotlib in the light theme."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import import_module
from itertools import groupby
from typing import Any

from relex_ext.errors import InputError
from relex_ext.reports.scene import Dots, Polygon, Polyline, Rect, Scene, Segments, Text
from relex_ext.reports.theme import STYLES, palette

SCALE = 2
"""Pixels of the PNG for one of the scene's."""

MARGIN = 20
"""Around the scene, in its pixels; on the page the page gives it."""

_POINTS = 72 / 100  # matplotlib measures strokes and letters in points; a scene's pixel is 1/100 in
_TEXT = 13.0  # DejaVu, which matplotlib brings, runs wider than the page's fonts


def need_matplotlib() -> None:
    """Say how to get it while nothing has been computed yet."""
    try:
        for name in ("matplotlib.backends.backend_agg", "matplotlib.figure"):
            import_module(name)
    except ImportError:
        raise InputError(
            "matplotlib: expected for the figures, found none; pip install 'relex_ext[report]'"
        ) from None


def to_png(scene: Scene) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = palette("light")
    right, bottom = scene.width + MARGIN, scene.height + MARGIN
    size = ((right + MARGIN) / 100, (bottom + MARGIN) / 100)
    figure = Figure(size, dpi=100 * SCALE, facecolor=colours["page"])
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-MARGIN, right), ylim=(bottom, -MARGIN))
    axes.set_axis_off()
    for order, artist in enumerate(_artists(scene, colours)):
        artist.set_zorder(order)
        artist.set_clip_on(False)
        axes.add_artist(artist)
    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _artists(scene: Scene, colours: dict[str, str]) -> Iterator[Any]:
    """One for each shape, but one for all the rectangles in a row: heat maps have many."""
    from matplotlib.collections import PolyCollection

    for together, shapes in groupby(scene.shapes, lambda shape: isinstance(shape, Rect)):
        if not together:
            yield from (_artist(shape, colours) for shape in shapes)
            continue
        rects = [shape for shape in shapes if isinstance(shape, Rect)]
        yield PolyCollection(
            [
                [(r.x, r.y), (r.x + r.width, r.y), (r.x + r.width, r.y + r.height),
                 (r.x, r.y + r.height)]
                for r in rects
            ],
            facecolors=[colours[STYLES[r.style].fill or "page"] for r in rects], linewidths=0,
        )  # fmt: skip


def _artist(shape: Any, colours: dict[str, str]) -> Any:
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon as Area
    from matplotlib.text import Text as Label

    style = STYLES[shape.style]
    fill = colours[style.fill] if style.fill else "none"
    stroke = colours[style.stroke] if style.stroke else "none"
    width = style.width * _POINTS
    dash: Any = (0, tuple(d / style.width for d in style.dash)) if style.dash else "solid"
    if isinstance(shape, Text):
        return Label(
            shape.x, shape.y, shape.text, color=fill, fontsize=_TEXT * _POINTS,
            fontweight="bold" if style.bold else "normal",
            ha={"start": "left", "middle": "center", "end": "right"}[shape.anchor], va="baseline",
            parse_math=False,
        )  # fmt: skip
    if isinstance(shape, Polygon):
        return Area(shape.points, facecolor=fill, linewidth=0, alpha=style.opacity)
    if isinstance(shape, Segments):
        return LineCollection(list(shape.pairs), colors=stroke, linewidths=width, linestyles=dash)
    x, y = zip(*shape.points, strict=True)
    if isinstance(shape, Polyline):
        return Line2D(x, y, color=stroke, linewidth=width, linestyle=dash, solid_joinstyle="round")
    assert isinstance(shape, Dots)
    return Line2D(
        x, y, linestyle="none", marker="o", markerfacecolor=fill, markeredgewidth=0,
        markersize=2 * shape.radius * _POINTS,
    )  # fmt: skip
