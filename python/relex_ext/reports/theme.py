"""Colours and styles, once for the page's CSS and once for the PNGs."""

from __future__ import annotations

from dataclasses import dataclass

LIGHT = {
    "page": "#fdfdfc",
    "raised": "#f4f5f3",
    "ink": "#1b1f24",
    "soft": "#565e68",
    "rule": "#d5d9dd",
    "grid": "#e7e9eb",
    "measured": "#0a5fa5",
    "null": "#676f7a",
    "forecast": "#ad4a06",
    "rebuilt": "#00705f",
    "alarm": "#b3261e",
}
"""Name → colour. Whatever is read has a contrast of 4.5 on ``page`` and on ``raised``."""

DARK = {
    "page": "#14171a",
    "raised": "#1d2125",
    "ink": "#e8eaed",
    "soft": "#a9b1ba",
    "rule": "#3b4249",
    "grid": "#282d33",
    "measured": "#6cb2f3",
    "null": "#9ba4ae",
    "forecast": "#f0a05a",
    "rebuilt": "#5cc8b5",
    "alarm": "#ff8f86",
}

_ENDS = {
    "light": {"low": "#e88a45", "mid": "#f1f1ef", "high": "#5d9edb", "full": "#0a5fa5"},
    "dark": {"low": "#96500f", "mid": "#262b30", "high": "#23629c", "full": "#7fbdf5"},
}
"""The ends of the two ramps. The diverging one keeps to colours that ``ink`` can be read on."""

DIVERGING = 10
"""Steps of the diverging ramp to each side of its middle."""
SEQUENTIAL = 9
"""Colours of the sequential ramp."""


@dataclass(frozen=True, slots=True)
class Style:
    """Names of colours, and how they are put on."""

    fill: str | None = None
    stroke: str | None = None
    width: float = 0.0
    dash: tuple[float, float] | None = None
    opacity: float = 1.0
    bold: bool = False


STYLES = {
    "text": Style(fill="ink"),
    "title": Style(fill="ink", bold=True),
    "soft": Style(fill="soft"),
    "grid": Style(stroke="grid", width=1),
    "axis": Style(stroke="rule", width=1),
    "hole": Style(fill="page"),
    "within": Style(fill="raised"),
}
for _name in ("measured", "null", "forecast", "rebuilt", "alarm"):
    STYLES |= {
        _name: Style(fill=_name),
        f"{_name}-text": Style(fill=_name),
        f"{_name}-title": Style(fill=_name, bold=True),
        f"{_name}-line": Style(stroke=_name, width=2),
        f"{_name}-thin": Style(stroke=_name, width=1),
        f"{_name}-dash": Style(stroke=_name, width=2, dash=(5, 4)),
        f"{_name}-band": Style(fill=_name, opacity=0.16),
    }
for _step in range(-DIVERGING, DIVERGING + 1):
    STYLES[f"d{_step}"] = Style(fill=f"d{_step}")
for _step in range(SEQUENTIAL):
    STYLES[f"s{_step}"] = Style(fill=f"s{_step}")


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def mix(a: str, b: str, share: float) -> str:
    """``share`` of ``b`` in ``a``."""
    pairs = zip(_channels(a), _channels(b), strict=True)
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in pairs)


def _luminance(colour: str) -> float:
    parts = [c / 255 for c in _channels(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """The ratio of WCAG: 1 to 21."""
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def palette(theme: str) -> dict[str, str]:
    """Every colour of ``light`` or ``dark``, the ramps' among them."""
    found = dict(LIGHT if theme == "light" else DARK)
    ends = _ENDS[theme]
    for step in range(-DIVERGING, DIVERGING + 1):
        end = ends["low" if step < 0 else "high"]
        found[f"d{step}"] = mix(ends["mid"], end, abs(step) / DIVERGING)
    for step in range(SEQUENTIAL):
        found[f"s{step}"] = mix(ends["mid"], ends["full"], step / (SEQUENTIAL - 1))
    return found


def diverging(value: float, most: float = 1.0) -> str:
    """The style of a value on the ramp that is neutral at 0 and full at ±``most``."""
    share = max(-1.0, min(1.0, value / most))
    return f"d{round(share * DIVERGING)}"


def sequential(share: float) -> str:
    """The style of a share between 0 and 1."""
    return f"s{round(max(0.0, min(1.0, share)) * (SEQUENTIAL - 1))}"


def css() -> str:
    """Both themes' variables, and a class for every style."""
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in palette(theme).items())
        for theme in ("light", "dark")
    )
    rules = [
        f":root{{color-scheme:light dark;{light}}}",
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}",
    ]
    for name, style in STYLES.items():
        parts = [f"fill:var(--{style.fill})" if style.fill else "fill:none"]
        if style.stroke:
            parts.append(f"stroke:var(--{style.stroke});stroke-width:{style.width:g}")
        if style.dash:
            parts.append(f"stroke-dasharray:{style.dash[0]:g} {style.dash[1]:g}")
        if style.opacity < 1:
            parts.append(f"opacity:{style.opacity:g}")
        if style.bold:
            parts.append("font-weight:600")
        rules.append(f"svg .{name}{{{';'.join(parts)}}}")
    return "\n".join(rules)
