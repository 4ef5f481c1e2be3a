"""Skill and cosine of back-tested forecasts, by prefix and horizon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from statistics import median

from relex_ext.evidence.backtest import Fold
from relex_ext.reports.figures import Figure
from relex_ext.reports.scene import TEXT, Scene, text_width
from relex_ext.reports.theme import DIVERGING, diverging
from relex_ext.reports.words import fixed, listed, number, step

_CELL = 30.0
_COLUMNS = 9

Panel = tuple[str, Callable[[Fold], float]]


def figure(folds: Sequence[Fold], method: str, strength: float) -> Figure:
    """``folds`` of one method, drawn at one strength."""
    skills = [fold.skill_at(strength) for fold in folds]
    good = sum(skill > 0 for skill in skills)
    power = "full strength" if strength == 1.0 else f"λ = {number(strength)}"
    lead = (
        f"{method} at {power} beats staying at the newest checkpoint in {good} of "
        f"{len(folds)} back-tests; median skill {number(median(skills))}, "
        f"median cosine {number(median(fold.cosine for fold in folds))}."
    )

    def draw(width: float) -> Scene:
        side_by_side = width > 600
        panels: tuple[Panel, ...] = (
            ("skill", lambda fold: fold.skill_at(strength)),
            ("cosine", lambda fold: fold.cosine),
        )
        size = (width - 36) / 2 if side_by_side else width
        scene = Scene(width)
        top = 0.0
        for i in range(len(panels)):
            left = i * (size + 36) if side_by_side else 0.0
            bottom = _heat(scene, left, 0.0 if side_by_side else top, size, folds, panels, i)
            top = bottom + 26
        scene.height = _key(scene, top)
        return scene

    return Figure(
        "skill",
        "Forecasts of steps that are already there",
        lead,
        f"Heat maps of skill and cosine of {method} over prefix and horizon. {lead}",
        "Row: the newest step the forecast saw. Column: how far it went; forecasts of "
        "about the same distance share a cell. Skill is "
        "1 − SSE/SSE of staying at the newest checkpoint: 1 perfect, 0 no gain, below 0 worse than "
        "no forecast. Cosine: between the forecast's and the true displacement.",
        draw,
    )


def _heat(
    scene: Scene,
    left: float,
    top: float,
    width: float,
    folds: Sequence[Fold],
    panels: Sequence[Panel],
    shown: int,
) -> float:
    """One of the panels; returns where it ends."""
    title, value = panels[shown]
    prefixes = sorted({fold.prefix for fold in folds})
    columns, places = _merged(folds)
    head = max(text_width(step(p)) for p in prefixes) + 10
    cell = min(64.0, (width - head) / len(columns))
    height = max(14.0, min(_CELL, 360 / len(prefixes)))
    scene.text(left, top + TEXT, title, "title")
    scene.text(left, top + 2 * TEXT + 8, "prefix", "soft")
    start, y0 = left + head, top + 2 * TEXT + 16
    for row, prefix in enumerate(prefixes):
        if height >= TEXT + 2 or row % 2 == 0:
            y = y0 + (row + 0.5) * height + TEXT * 0.35
            scene.text(start - 8, y, step(prefix), "soft", "end")
    pooled = {place: _pooled(found) for place, found in places.items()}
    form = _form([of(fold) for fold in pooled.values() for _, of in panels], cell)
    for (prefix, column), fold in pooled.items():
        x = start + columns.index(column) * cell
        y = y0 + prefixes.index(prefix) * height
        found = value(fold)
        targets = listed([step(f.target) for f in places[prefix, column]])
        words = f"up to step {prefix}, forecast of {targets}: {title} {number(found)}"
        scene.rect(x + 1, y + 1, cell - 2, height - 2, diverging(found), words)
        if form is not None and height >= TEXT + 4:
            middle = y + height / 2 + TEXT * 0.35
            scene.text(x + cell / 2, middle, form(found), "text", "middle")
    floor = y0 + len(prefixes) * height
    every = max(1, -(-int(max(text_width(step(h)) for h in columns) + 8) // max(1, int(cell))))
    for column in range(0, len(columns), every):
        x = start + (column + 0.5) * cell
        scene.text(x, floor + TEXT + 4, step(columns[column]), "soft", "middle")
    scene.text(start, floor + 2 * TEXT + 10, "steps beyond the prefix", "soft")
    return floor + 2 * TEXT + 14


def _merged(folds: Sequence[Fold]) -> tuple[list[int], dict[tuple[int, int], list[Fold]]]:
    """Columns, as horizons, and what falls into each (prefix, column): all of a few horizons, the
    nearest of a geometric series of many."""
    horizons = sorted({fold.target - fold.prefix for fold in folds})
    columns = horizons
    if len(horizons) > _COLUMNS:
        ratio = (horizons[-1] / horizons[0]) ** (1 / (_COLUMNS - 1))
        columns = sorted({round(horizons[0] * ratio**i) for i in range(_COLUMNS)})
    found: dict[tuple[int, int], list[Fold]] = {}
    for fold in folds:
        horizon = fold.target - fold.prefix
        nearest = min(columns, key=lambda c: abs(log(c / horizon)))
        found.setdefault((fold.prefix, nearest), []).append(fold)
    used = {column for _, column in found}
    return [column for column in columns if column in used], found


def _pooled(folds: Sequence[Fold]) -> Fold:
    """Several folds as one of all their vectors."""
    sums = (sum(getattr(f, name) for f in folds) for name in ("along", "forecast", "moved"))
    return Fold(folds[0].prefix, folds[-1].target, folds[0].method, *sums)


def _brief(value: float, digits: int) -> str:
    """0.93, −2.1, −12."""
    size = abs(round(value, digits))
    if size >= 99.5:
        return "≪" if value < 0 else "≫"
    return fixed(value, max(0, digits - (size >= 1.0) - (size >= 9.95)))


_FORMS: tuple[Callable[[float], str], ...] = (
    lambda value: _brief(value, 2),
    lambda value: _brief(value, 1),
    lambda value: _brief(value, 1).replace("0.", "."),
)
"""What a cell may say, the most telling first: 0.93, 0.9, .9."""


def _form(values: Sequence[float], cell: float) -> Callable[[float], str] | None:
    """The most telling that fits for all of them."""
    for form in _FORMS:
        if max(text_width(form(value)) for value in values) + 5 <= cell:
            return form
    return None


def _key(scene: Scene, top: float) -> float:
    """The ramp, with its ends named."""
    size = 9.0
    low = "−1 or less"
    x = text_width(low) + 8
    scene.text(0, top + TEXT, low, "soft")
    for bin_ in range(-DIVERGING, DIVERGING + 1):
        scene.rect(x + (bin_ + DIVERGING) * size, top + 2, size, 14, f"d{bin_}")
    middle = x + (DIVERGING + 0.5) * size
    scene.text(middle, top + 14 + TEXT + 4, "0", "soft", "middle")
    scene.text(x + (2 * DIVERGING + 1) * size + 7, top + TEXT, "1", "soft")
    return top + 14 + TEXT + 10
