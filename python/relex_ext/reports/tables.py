"""The page's tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from relex_ext.evidence.backtest import Backtest
from relex_ext.evidence.portraits import Compared, Portrait
from relex_ext.reports.words import fixed, number, percent

MOST_ROWS = 1000
"""A page of more rows than this would be slow on a phone; the JSON has them all."""

Value = tuple[str, float | None]
"""What a cell shows (HTML) and what it is sorted by."""


def table(
    heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Value]]], *, sortable: bool = True
) -> str:
    """Each row is a name and its values."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "\n".join(
        f'<tr><th scope="row" data-v="{escape(name)}">{escape(name)}</th>'
        + "".join(f'<td data-v="{_key(key)}">{text}</td>' for text, key in values)
        + "</tr>"
        for name, values in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table{" data-sortable" if sortable else ""}>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _key(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _beside(compared: Compared, digits: int) -> Value:
    """The value, and in grey what a random walk has."""
    text = f"{number(compared.value, digits)}<i>{number(compared.null, digits)}</i>"
    return text, compared.value


def portraits(found: Sequence[Portrait], energy: float, what: str) -> str:
    """One row each; ``energy`` is that of the whole."""
    shown = found
    if len(found) > MOST_ROWS:
        shown = sorted(found, key=lambda p: -p.energy)[:MOST_ROWS]
    counted = any(p.elements is not None for p in found)
    heads = [what, "energy", "rank 1 <i>walk</i>", "R² <i>walk</i>", "R² outside"]
    heads.append("straightness <i>walk</i>")
    if counted:
        heads.append("weights")
    rows = []
    for p in shown:
        share = p.energy / energy if energy > 0 else 0.0
        values: list[Value] = [(percent(share), share)]
        if p.explained_variance:
            values.append(_beside(p.explained_variance[0], 3))
        else:
            values.append(("–", None))
        values += [
            _beside(p.r2, 3),
            (number(p.r2_outside), p.r2_outside),
            _beside(p.straightness, 1),
        ]
        if counted:
            text = "–" if p.elements is None else f"{p.elements:,}".replace(",", "\u2009")
            values.append((text, p.elements))
        rows.append((p.name, values))
    return table(heads, rows)


def methods(backtest: Backtest, recommended: str) -> str:
    """One row for each method that was back-tested, the recommended one first: medians and
    quartiles over its folds, and the steps up to which all forecasts from one prefix gained."""
    names = sorted(backtest.methods, key=lambda name: name != recommended)
    rows = []
    for name in names:
        folds = backtest.of(name)
        better = sum(fold.skill > 0 for fold in folds)
        values: list[Value] = [(f"{better} of {len(folds)}", better / len(folds))]
        values += [
            _spread([fold.skill for fold in folds]),
            _spread([fold.cosine for fold in folds]),
            _spread([fold.best_strength for fold in folds]),
            (str(backtest.horizon(name)), backtest.horizon(name)),
        ]
        rows.append((name, values))
    heads = ["", "gains in", "skill", "cosine", "best λ", "gains up to"]
    return table(heads, rows, sortable=False)


def _spread(found: Sequence[float]) -> Value:
    """The median, and the quartiles."""
    low, middle, high = np.quantile(found, [0.25, 0.5, 0.75]).tolist()
    short = [fixed(v, 2) if abs(v) < 100 else number(v) for v in (middle, low, high)]
    return f"{short[0]} ({short[1]} to {short[2]})", middle
