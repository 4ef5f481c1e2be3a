"""Everything a report says, as numbers: gathered once, drawn by the figures, kept in the JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from relex_ext.errors import InputError
from relex_ext.evidence import backtest as backtests
from relex_ext.evidence.backtest import Backtest
from relex_ext.evidence.gathering import gather
from relex_ext.evidence.portraits import Evidence
from relex_ext.evidence.verdict import Verdict, judge
from relex_ext.reports.paths import (
    Cell,
    Coefficient,
    cells,
    coefficient,
    telling_tensors,
    update_sizes,
)
from relex_ext.reports.publish import FORMAT
from relex_ext.scans import Scan
from relex_ext.scores import Score

POOLED = ""
"""The name of the coefficient of all tensors as one vector."""

CHOSEN = 5
"""Tensors whose coefficient is drawn where none are asked for."""


@dataclass(frozen=True, slots=True)
class Contents:
    """``about``: the scan's file, the command, versions; ``updates``: ‖Δ_t − Δ_{t−1}‖ a step."""

    about: Mapping[str, str]
    evidence: Evidence
    backtest: Backtest
    verdict: Verdict
    curves: tuple[Coefficient, ...]
    updates: tuple[float, ...]
    cells: tuple[Cell, ...]
    scores: tuple[Score, ...]

    def as_json(self) -> dict[str, Any]:
        folds = [
            asdict(fold)
            | {"skill": fold.skill, "cosine": fold.cosine, "best_strength": fold.best_strength}
            for fold in self.backtest.folds
        ]
        grid = [
            asdict(cell.place)
            | {"energy": cell.energy, "last": cell.last, "path": cell.path}
            | {"straightness": cell.straightness}
            for cell in self.cells
        ]
        everything: dict[str, Any] = {
            "format": FORMAT,
            "about": dict(self.about),
            "verdict": asdict(self.verdict),
            "evidence": asdict(self.evidence),
            "backtest": folds,
            "coefficients": [asdict(curve) for curve in self.curves],
            "updates": list(self.updates),
            "cells": grid,
            "scores": [asdict(score) for score in self.scores],
        }
        found: dict[str, Any] = _finite(everything)
        return found


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: null stands for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def gather_contents(
    scan: Scan,
    steps: Sequence[int],
    target: float,
    tensors: Sequence[str],
    scores: Sequence[Score],
    about: Mapping[str, str],
) -> Contents:
    """Raises:
    InputError: a scan by power iteration, too few steps, or a tensor that it does not have or
        that never moves.
    """
    if scan.spectra:
        name = next(iter(scan.spectra))
        raise InputError(
            f"scan: tensor {name}: holds power iteration's vectors; a report needs a scan with "
            "solver gram"
        )
    for name in tensors:
        if name not in scan.grams:
            raise InputError(f"tensor: expected one of the scan's, found {name}")
    if len(steps) < 3:
        raise InputError(f"scan: expected at least 3 steps for a report, found {len(steps)}")
    evidence = gather(scan, steps)
    for name in tensors:
        if name in evidence.frozen:
            raise InputError(f"tensor {name}: never moves, nothing to draw")
    backtest = backtests.run(scan, steps)
    verdict = judge(scan, target, steps=steps, tested=backtest)

    end = scan.rows_of(steps)[-1] + 1  # steps ascend: those up to the last one asked for
    grams = {name: gram[:end, :end] for name, gram in scan.grams.items()}
    pooled = np.sum(list(grams.values()), axis=0)
    energies = {p.name: p.energy for p in evidence.tensors}
    names = tuple(dict.fromkeys(tensors)) or telling_tensors(energies, CHOSEN)
    fitted = max(2, len(steps) // 2)
    curves = [coefficient(POOLED, pooled, steps, fitted)]
    curves += [coefficient(name, grams[name], steps, fitted) for name in names]
    return Contents(
        about=about,
        evidence=evidence,
        backtest=backtest,
        verdict=verdict,
        curves=tuple(curves),
        updates=tuple(map(float, update_sizes(pooled))),
        cells=cells(grams),
        scores=tuple(scores),
    )
