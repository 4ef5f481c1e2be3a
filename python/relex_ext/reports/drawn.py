"""Which figures a report has."""

from __future__ import annotations

from relex_ext.reports.contents import POOLED, Contents
from relex_ext.reports.figures import (
    Figure,
    accuracy,
    coefficients,
    modules,
    skill,
    updates,
    variance,
)


def figures_of(contents: Contents) -> list[Figure]:
    """From top to bottom; what there are no numbers for is left out."""
    evidence = contents.evidence
    found: list[Figure] = []
    if evidence.whole.explained_variance:
        found.append(variance.figure(evidence.whole))
    if contents.curves[0].r2_outside is not None:
        found.append(coefficients.figure(contents.curves, evidence.steps, POOLED))
    if contents.backtest.folds:
        found.append(_skill(contents))
    moving = [cell for cell in contents.cells if cell.energy > 0.0]
    if moving:
        found.append(modules.figure(moving, len(evidence.steps)))
        found.append(updates.figure(evidence, contents.updates))
    if contents.scores:
        found.append(accuracy.figure(contents.scores))
    return found


def _skill(contents: Contents) -> Figure:
    """Of the recommended method as recommended; of the first that was tried, at full strength,
    where that one was not."""
    verdict, backtest = contents.verdict, contents.backtest
    if folds := backtest.of(verdict.method):
        return skill.figure(folds, verdict.method, verdict.strength or 1.0)
    first = backtest.methods[0]
    return skill.figure(backtest.of(first), first, 1.0)
