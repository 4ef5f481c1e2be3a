"""A window of checkpoints, the drift in it, and how a method's forecasts compare with that."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from relex_ext.errors import InputError
from relex_ext.evidence import findings
from relex_ext.evidence.drift import SHORTEST, Drift, find_drift
from relex_ext.evidence.nulls import Float64, sizes_of, updates_of
from relex_ext.forecasts import Source
from relex_ext.methods import METHODS, Options
from relex_ext.scans import Scan

FORECASTS = ("relex", "pinned", "secant", "two-point", "first-update")
"""Methods that look ahead, which a verdict can be about."""

CHANCE = 0.01
"""p above which straightness is no drift."""

STRAIN, EXPONENT, FLOOR, CAP = 0.2, 1.5, 0.12, 4.0
"""Of :func:`strain_limit`; fitted by benchmarks/bench_verdict.py."""

FARTHEST, LADDER = 8.0, 64
"""Windows ahead within which a horizon is looked for, and targets tried for it."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """For each target: the λ with which the forecast meets the drift, the λ that the strain limit
    allows, and the strain at full strength."""

    lasting: Float64
    bearable: Float64
    strain: Float64

    @property
    def strengths(self) -> tuple[float, ...]:
        """The λ that both allow."""
        found: list[float] = np.clip(np.minimum(self.lasting, self.bearable), 0.0, 1.0).tolist()
        return tuple(found)


class Case:
    """A scan's window of checkpoints and a method in question.

    After a jump the window begins behind it: what came before says nothing about what follows. Then
    only a method that does not look behind it will do.
    """

    def __init__(
        self,
        scan: Scan,
        steps: Sequence[int] | None,
        options: Options,
        draws: int = 999,
        seed: int = 0,
    ) -> None:
        if options.method not in FORECASTS:
            known = ", ".join(FORECASTS)
            raise InputError(
                f"method: expected one that looks ahead ({known}), found {options.method}"
            )
        self.steps = tuple(scan.steps if steps is None else sorted(steps))
        self._scan = scan
        total = np.zeros((len(self.steps), len(self.steps)))
        for name in scan.names:
            total += scan.source(name, self.steps).gram
        self.jumps = findings.jumps(sizes_of(total), self.steps)
        self.first = self.steps.index(self.jumps[-1][0]) + 1 if self.jumps else 0
        """The window's first update, as a row."""
        if self.first:
            options = Options(method="two-point", window=len(self.steps) - self.first)
        self.options = replace(options, strength=1.0)
        self._distances = findings.distances_of(self.steps)
        self._updates = updates_of(total)
        window = slice(self.first, None)
        self.drift: Drift | None = find_drift(
            self._updates[window, window], self._distances[window], draws, seed
        )

    def about(self, options: Options) -> Case:
        """The same checkpoints, another method."""
        other = copy(self)
        if not self.first:
            other.options = replace(options, strength=1.0)
        return other

    @property
    def drifts(self) -> bool:
        """There is a drift, beyond chance."""
        return self.drift is not None and self.drift.mean > 0.0 and self.drift.p <= CHANCE

    def strengths(self, targets: Sequence[float]) -> tuple[float, ...]:
        """λ for each target, which are ahead."""
        if not targets or not self.drifts:
            return (0.0,) * len(targets)
        return self.look_ahead(targets).strengths

    def look_ahead(self, targets: Sequence[float]) -> Ahead:
        """How the method's forecasts, in full, compare with drift and with the movement seen."""
        drift = self.found
        along, own, size = np.zeros((3, len(targets)))
        # A forecast is a sum of updates, f = Σ α_i d_i. Products of an update with itself are noise
        # for the most part: drift is estimated from the others, in proportion to the steps covered.
        method = METHODS[self.options.method]
        window = np.zeros(len(self.steps))
        window[self.first :] = 1.0
        apart = 1.0 - np.eye(len(self.steps))
        lengths = np.outer(self._distances, self._distances)
        for name in self._scan.names:
            gram = np.array(self._scan.source(name, self.steps).gram)
            source = Source(name, gram)
            weights, _ = method.weigh(source, self.steps, targets, self.options)
            weights[:, -1] -= 1.0
            updates = updates_of(gram)
            alphas = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
            size += _product(alphas, updates, alphas)
            along += _coherent(alphas, window, updates, apart, lengths)
            own += _coherent(alphas, alphas, updates, apart, lengths)
        reach = (np.array(targets) - self.steps[-1]) / drift.span
        moved = drift.velocity.moved(reach)
        with np.errstate(divide="ignore", invalid="ignore"):
            lasting = np.where(own > 0.0, np.maximum(moved * along, 0.0) / own, 0.0)
            seen = float(self._updates[self.first :, self.first :].sum())
            strain = np.sqrt(np.maximum(size, 0.0) / seen)
            bearable = strain_limit(drift.ratio) / strain
        return Ahead(lasting, bearable, strain)

    def horizon(self) -> float | None:
        """The last step at which the full forecast is nearer to the drift than the newest
        checkpoint; None if it never is, Inf if it still is when the search ends."""
        drift = self.found
        reach = np.geomspace(0.02, FARTHEST, LADDER)
        ends = self.steps[-1] + reach * drift.span
        lasting = self.look_ahead(ends.tolist()).lasting
        good = lasting > 0.5
        if not good.any():
            return None
        first = int(good.argmax())  # nearer by, relex's line may start away from the newest
        if good[first:].all():
            return float("inf")
        at = first + int((~good[first:]).argmax())
        share = (lasting[at - 1] - 0.5) / (lasting[at - 1] - lasting[at])
        return float(ends[at - 1] + share * (ends[at] - ends[at - 1]))

    @property
    def found(self) -> Drift:
        """The drift, which has to be there."""
        if self.drift is None:
            raise InputError(f"checkpoints: expected at least {SHORTEST}, found {len(self.steps)}")
        return self.drift


def strain_limit(ratio: float) -> float:
    """The most of the movement seen that may be added to it, by the drift's ``ratio`` to the noise.

    Fitted to forecasts of real GRPO runs that were scored on held-out problems (docs/evidence.md):
    a run still deep in its noise has hardly begun to change what its model does, and goes on for
    several times its length; where drift stands out of the noise the model has come far along it,
    and a straight line soon leaves the valley that training follows.
    """
    if ratio <= 0.0:
        return 0.0
    return float(np.clip(STRAIN * ratio**-EXPONENT, FLOOR, CAP))


def _coherent(
    left: Float64, right: Float64, updates: Float64, apart: Float64, lengths: Float64
) -> Float64:
    """Σ_ij α_i β_j ⟨drift_i, drift_j⟩, from the products of different updates, (targets,)."""
    known = _product(left, updates * apart, right)
    whole = _product(left, lengths, right)
    covered = _product(left, lengths * apart, right)
    return known * np.divide(whole, covered, np.ones_like(whole), where=np.abs(covered) > 0.0)


def _product(left: Float64, form: Float64, right: Float64) -> Float64:
    """α form βᵀ for each row of ``left``, and of ``right`` where it has as many."""
    return np.asarray(((left @ form) * right).sum(axis=1))
