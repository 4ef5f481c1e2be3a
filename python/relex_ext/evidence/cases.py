"""A window of checkpoints, the drift in it, and how a method's forecasts compare with that."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from relex_ext.errors import InputError
from relex_ext.evidence import findings
from relex_ext.evidence.backtest import CachedSource
from relex_ext.evidence.drift import SHORTEST, Drift, find_drift
from relex_ext.evidence.nulls import Float64, sizes_of, updates_of
from relex_ext.methods import METHODS, Options
from relex_ext.scans import Scan

FORECASTS = ("relex", "pinned", "secant", "two-point", "first-update")
"""Methods that look ahead, which a verdict can be about."""

CHANCE = 0.01
"""p above which straightness is no drift."""

STRAIN, EXPONENT, FLOOR, CAP = 0.2, 1.5, 0.05, 4.0
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

    After a jump the window begins behind it: what came before says nothing about what follows.
    """

    def __init__(
        self,
        scan: Scan,
        steps: Sequence[int] | None,
        options: Options,
        draws: int = 999,
        seed: int = 0,
        *,
        switch: bool = True,
    ) -> None:
        """``switch``: after a jump, to a method that does not look behind it."""
        if options.method not in FORECASTS:
            known = ", ".join(FORECASTS)
            raise InputError(
                f"method: expected one that looks ahead ({known}), found {options.method}"
            )
        self.steps = tuple(scan.steps if steps is None else sorted(steps))
        if len(self.steps) < 2:
            raise InputError(f"scan: expected at least 2 steps, found {len(self.steps)}")
        self._sources = [CachedSource.of(scan.source(name, self.steps)) for name in scan.names]
        total = np.zeros((len(self.steps), len(self.steps)))
        for source in self._sources:
            total += source.gram
        self.jumps = findings.jumps(sizes_of(total), self.steps)
        self.first = self.steps.index(self.jumps[-1][0]) + 1 if self.jumps else 0
        """The window's first update, as a row."""
        if self.first and switch:
            behind = len(self.steps) - self.first  # none where the newest is the jump
            options = Options(method="two-point", window=max(1, behind))
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

    def look_ahead(self, targets: Sequence[float], moved_only: bool = False) -> Ahead:
        """How the method's forecasts, in full, compare with drift and with the movement seen.

        ``moved_only``: from where the method sees the newest checkpoint, and not from there itself:
        relex's line passes by it.
        """
        drift = self.found
        along, own, size = np.zeros((3, len(targets)))
        # A forecast is a sum of updates, f = Σ α_i d_i. Products of an update with itself are noise
        # for the most part, those with its neighbours have the noise of rounded checkpoints, which
        # one update adds and the next takes back, or momentum. Drift is known from the others; in
        # their place is its mean over the steps that they cover.
        method = METHODS[self.options.method]
        window = np.zeros(len(self.steps))
        window[self.first :] = 1.0
        order = np.arange(len(self.steps))
        near = drift.memory.block
        apart = (np.abs(np.subtract.outer(order, order)) > near).astype(np.float64)
        lengths = np.outer(self._distances, self._distances)
        inside = apart * np.outer(window, window)
        asked = [*targets, float(self.steps[-1])] if moved_only else targets
        for source in self._sources:
            gram = np.asarray(source.gram)
            weights, _ = method.weigh(source, self.steps, asked, self.options)
            if moved_only:
                weights = weights[:-1] - weights[-1]
            else:
                weights[:, -1] -= 1.0
            updates = updates_of(gram)
            alphas = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
            size += _product(alphas, updates, alphas)
            mean = float((updates * inside).sum() / (lengths * inside).sum())
            drifts = updates * apart + mean * lengths * (1.0 - apart)
            along += _product(alphas, drifts, window)
            own += _product(alphas, drifts, alphas)
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
        lasting = self.look_ahead(ends.tolist(), moved_only=True).lasting
        short = lasting <= 0.5
        if not short.any():
            return float("inf")
        at = int(short.argmax())
        if at == 0:
            return None
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


def _product(left: Float64, form: Float64, right: Float64) -> Float64:
    """α form βᵀ for each row of ``left``, and of ``right`` where it has as many."""
    return np.asarray(((left @ form) * right).sum(axis=1))
