"""How much strain a run stands: the limits of relex_ext.evidence.cases, fitted to scored forecasts.

A forecast at strain x = λ‖f‖/‖Δ_T‖ has the accuracy interpolated between those that were scored
along the same displacement. Of all limits x ≤ clip(a·ratio^−b, floor, cap) with at most 3 % of
forecasts worse than the newest checkpoint by more than its standard error, the one with the largest
mean gain is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from relex_ext.evidence.cases import CHANCE
from verdict.forecasting import ASKED, Scored

ALLOWED = 0.03


class Limit(NamedTuple):
    strain: float
    exponent: float
    floor: float
    cap: float

    def at(self, ratio: float) -> float:
        return float(np.clip(self.strain * ratio**-self.exponent, self.floor, self.cap))


UNLIMITED = Limit(1e9, 0.0, 1e9, 1e9)
"""Every forecast in full."""


class Course(NamedTuple):
    """One prefix and method: accuracy against strain."""

    strains: list[float]
    accuracies: list[float]
    asked: list[tuple[float, float]]
    """The strain of the forecasts a user asks for, in full and where the drift's course ends it."""
    ratio: float
    newest: float
    error: float

    def gain(self, strain: float) -> float:
        return float(np.interp(strain, self.strains, self.accuracies)) - self.newest


class Outcome(NamedTuple):
    gain: float
    """Mean accuracy over the newest checkpoint's."""
    worse: float
    """Share of forecasts worse by more than one standard error."""


def courses(scored: Sequence[Scored]) -> list[Course]:
    """Those in which a drift was found, of the methods that move in proportion."""
    groups: dict[tuple[str, int, str], list[Scored]] = {}
    for one in scored:
        if one.method in ("pinned", "secant") and one.p <= CHANCE and one.ratio > 0.0:
            groups.setdefault((one.run, one.prefix, one.method), []).append(one)
    found = []
    for (_, prefix, _), group in groups.items():
        group.sort(key=lambda one: one.strain)
        first = group[0]
        found.append(
            Course(
                [0.0, *(one.strain for one in group)],
                [first.newest, *(one.accuracy for one in group)],
                [
                    (one.strain, one.strain * min(1.0, one.lasting))
                    for one in group
                    if (one.target - prefix) / prefix >= min(ASKED) - 0.05
                ],
                first.ratio,
                first.newest,
                first.error,
            )
        )
    return found


def outcome(found: Sequence[Course], limit: Limit) -> Outcome:
    gains, worse = [], []
    for course in found:
        most = limit.at(course.ratio)
        for full, lasting in course.asked:
            gain = course.gain(min(full if limit == UNLIMITED else lasting, most))
            gains.append(gain)
            worse.append(gain < -course.error)
    return Outcome(float(np.mean(gains)), float(np.mean(worse)))


def fit(found: Sequence[Course]) -> tuple[Limit, Outcome]:
    grid = product(
        np.geomspace(0.03, 0.5, 13).tolist(), np.linspace(0.5, 2.5, 9).tolist(),
        (0.02, 0.05, 0.08, 0.12, 0.16), (1.0, 2.0, 4.0),
    )  # fmt: skip
    tried = [(limit, outcome(found, limit)) for limit in (Limit(*values) for values in grid)]
    fair = [pair for pair in tried if pair[1].worse <= ALLOWED]
    return max(fair or tried, key=lambda pair: pair[1].gain)
