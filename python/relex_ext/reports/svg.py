"""A scene as inline SVG whose colours are the page's CSS variables."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from relex_ext.reports.scene import (
    Dots,
    Point,
    Polygon,
    Polyline,
    Rect,
    Scene,
    Segments,
    Shape,
    Text,
)


def to_svg(scene: Scene, label: str, css_class: str) -> str:
    """``label`` is what a screen reader says."""
    size = f"{scene.width:g} {scene.height:g}"
    shapes = "\n".join(_shape(shape) for shape in scene.shapes)
    return (
        f'<svg class="{css_class}" viewBox="0 0 {size}" role="img" '
        f'aria-label="{escape(label)}">\n{shapes}\n</svg>'
    )


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)


def _shape(shape: Shape) -> str:
    if isinstance(shape, Polyline):
        return f'<path class="{shape.style}" d="{_path(shape.points)}"/>'
    if isinstance(shape, Polygon):
        return f'<path class="{shape.style}" d="{_path(shape.points)}Z"/>'
    if isinstance(shape, Segments):
        paths = "".join(_path(pair) for pair in shape.pairs)
        return f'<path class="{shape.style}" d="{paths}"/>'
    if isinstance(shape, Dots):
        return _dots(shape)
    if isinstance(shape, Rect):
        return _rect(shape)
    return _text(shape)


def _dots(shape: Dots) -> str:
    circles = "".join(
        f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(shape.radius)}"/>'
        for x, y in shape.points
    )
    return f'<g class="{shape.style}">{circles}</g>'


def _rect(shape: Rect) -> str:
    place = " ".join(
        f'{name}="{_number(value)}"'
        for name, value in (
            ("x", shape.x), ("y", shape.y), ("width", shape.width), ("height", shape.height),
        )
    )  # fmt: skip
    if not shape.title:
        return f'<rect class="{shape.style}" {place}/>'
    return f'<rect class="{shape.style}" {place}><title>{escape(shape.title)}</title></rect>'


def _text(shape: Text) -> str:
    anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
    place = f'x="{_number(shape.x)}" y="{_number(shape.y)}"'
    return f'<text class="{shape.style}" {place}{anchor}>{escape(shape.text)}</text>'
