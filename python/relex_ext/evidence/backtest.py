"""Forecasts of checkpoints that are already there, made from the ones before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from relex_ext import power
from relex_ext.evidence.nulls import Float64
from relex_ext.forecasts import Source, Spectrum, spectrum_of_gram
from relex_ext.methods import METHODS, Options
from relex_ext.scans import Scan

METHODS_TRIED = ("relex", "pinned", "secant")
PREFIXES, TARGETS, LEAST = 8, 12, 3
"""Prefixes tried, targets tried from each, checkpoints in the shortest prefix."""

LARGE, TOLERANCE, PASSES = 200, 1e-10, 12
"""Checkpoints from which the leading pair is found by power iteration; the residual of σ² at which
it has converged; passes after which it is given up."""


@dataclass(frozen=True, slots=True)
class Fold:
    """A forecast of step ``target`` from the checkpoints up to step ``prefix``.

    With f the forecast's displacement from the newest checkpoint of the prefix and D the true one,
    ``along`` = ⟨f, D⟩, ``forecast`` = ‖f‖² and ``moved`` = ‖D‖², each summed over all tensors.
    """

    prefix: int
    target: int
    method: str
    along: float
    forecast: float
    moved: float

    def skill_at(self, strength: float) -> float:
        """1 − SSE/SSE(newest) of the forecast shrunk to ``strength`` (λ): 0 for λ = 0."""
        if self.moved == 0.0:
            return 0.0
        return (2.0 * strength * self.along - strength**2 * self.forecast) / self.moved

    @property
    def skill(self) -> float:
        """At full strength."""
        return self.skill_at(1.0)

    @property
    def cosine(self) -> float:
        """Between the forecast and the true displacement."""
        size = (self.forecast * self.moved) ** 0.5
        return self.along / size if size > 0.0 else 0.0

    @property
    def best_strength(self) -> float:
        """The λ that would have been best, never negative."""
        return max(0.0, self.along / self.forecast) if self.forecast > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """A method over folds that ask for about the same: mean, and standard deviation over folds."""

    method: str
    folds: int
    skill: float
    skill_spread: float
    cosine: float
    cosine_spread: float
    best_strength: float
    """Of all folds together: Σ⟨f, D⟩ / Σ‖f‖²."""


@dataclass(frozen=True, slots=True)
class Backtest:
    """Every prefix × target × method that was tried."""

    folds: tuple[Fold, ...]

    def of(self, method: str) -> tuple[Fold, ...]:
        return tuple(fold for fold in self.folds if fold.method == method)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(fold.method for fold in self.folds))

    def summary(self, method: str, reach: float, start: float = 0.0) -> Summary | None:
        """The folds that look about ``reach`` times as far ahead as their prefix is long: those
        whose own reach is nearest to it in proportion, one of each prefix.

        ``start``: the step at which prefixes begin. None where the method was not tried.
        """
        nearest: dict[int, Fold] = {}

        def off(fold: Fold) -> float:
            return abs(float(np.log((fold.target - fold.prefix) / (fold.prefix - start) / reach)))

        for fold in self.of(method):
            best = nearest.get(fold.prefix)
            if fold.prefix > start and (best is None or off(fold) < off(best)):
                nearest[fold.prefix] = fold
        if not nearest:
            return None
        closest = min(off(fold) for fold in nearest.values())
        chosen = [fold for fold in nearest.values() if off(fold) <= closest + np.log(1.5)]
        skills = np.array([fold.skill for fold in chosen])
        cosines = np.array([fold.cosine for fold in chosen])
        energy = sum(fold.forecast for fold in chosen)
        along = sum(fold.along for fold in chosen)
        return Summary(
            method, len(chosen), float(skills.mean()), float(skills.std()), float(cosines.mean()),
            float(cosines.std()), max(0.0, along / energy) if energy > 0.0 else 0.0,
        )  # fmt: skip

    def horizon(self, method: str) -> int:
        """The longest distance, in steps, up to which all forecasts from one prefix had positive
        skill at full strength; 0 where none had."""
        longest = 0
        for prefix in {fold.prefix for fold in self.of(method)}:
            ours = [fold for fold in self.of(method) if fold.prefix == prefix]
            for fold in sorted(ours, key=lambda fold: fold.target):
                if fold.skill <= 0.0:
                    break
                longest = max(longest, fold.target - prefix)
        return longest


def run(
    scan: Scan, steps: Sequence[int] | None = None, methods: Sequence[str] = METHODS_TRIED
) -> Backtest:
    """Backtest of ``methods`` over prefixes of a scan's steps, from G alone.

    (w − e_t)ᵀ G (w − e_t) is the squared error of the weights w at the observed step t, so every
    fold costs a few products of T-vectors and no shard is read.

    Raises:
        InputError: a tensor with power iteration's vectors only.
    """
    rows = scan.rows_of(scan.steps if steps is None else sorted(steps))
    chosen = tuple(scan.steps[row] for row in rows)
    cases = [(p, _targets(p, len(rows))) for p in _prefixes(len(rows))]
    options = {method: Options(method=method) for method in methods}
    sums = {p: np.zeros((3, len(methods), len(targets))) for p, targets in cases}
    for name in scan.names:
        gram = scan.source(name).gram[np.ix_(rows, rows)]
        if not np.trace(gram) > 0.0:
            continue
        for prefix, targets in cases:
            source = CachedSource(name, gram[:prefix, :prefix])
            asked = [float(chosen[t]) for t in targets]
            weights = np.stack(
                [METHODS[m].weigh(source, chosen[:prefix], asked, options[m])[0] for m in methods]
            )
            weights[:, :, -1] -= 1.0
            sums[prefix] += _products(gram, weights, targets)
    return Backtest(
        tuple(
            Fold(chosen[p - 1], chosen[t], m, *sums[p][:, k, i].tolist())
            for k, m in enumerate(methods)
            for p, targets in cases
            for i, t in enumerate(targets)
        )
    )


@dataclass(frozen=True)
class CachedSource(Source):
    """One decomposition for all methods."""

    @classmethod
    def of(cls, source: Source) -> CachedSource:
        return cls(source.name, source.found, source.rows)

    @cached_property
    def _spectrum(self) -> Spectrum:
        return _leading(self.gram)

    def spectrum(self, rank: int) -> Spectrum:
        return self._spectrum if rank == 1 else Source.spectrum(self, rank)


def _leading(gram: Float64) -> Spectrum:
    """The leading pair of G (T, T): of a large one by power iteration, a few products with G where
    LAPACK finds all pairs, unless it takes long to converge."""
    if len(gram) >= LARGE:
        u, values, residuals, _ = power.solve(
            lambda block: gram @ block.astype(np.float64), len(gram), 1, TOLERANCE, most=PASSES
        )
        if residuals[0] <= TOLERANCE:
            return power.spectrum(u, values, float(np.trace(gram)))
    return spectrum_of_gram(gram, 1)


def _products(gram: Float64, moved: Float64, targets: Sequence[int]) -> Float64:
    """⟨f, D⟩, ‖f‖² and ‖D‖² for each method and target, (3, methods, targets); f = ``moved`` · Δ,
    (methods, targets, prefix)."""
    prefix = moved.shape[-1]
    own, newest = np.diagonal(gram), prefix - 1
    ahead = gram[:prefix, targets] - gram[:prefix, newest, None]
    far = own[targets] - 2.0 * gram[newest, targets] + own[newest]
    return np.stack([
        np.einsum("mtp,pt->mt", moved, ahead),
        np.einsum("mtp,mtp->mt", moved @ gram[:prefix, :prefix], moved),
        np.broadcast_to(far, moved.shape[:2]),
    ])  # fmt: skip


def _prefixes(count: int) -> list[int]:
    """Lengths of prefixes, evenly spread, each with a checkpoint after it."""
    if count <= LEAST:
        return []
    even = np.linspace(0, count, PREFIXES + 2)[1:-1]
    return sorted({max(LEAST, min(count - 1, round(float(p)))) for p in even})


def _targets(prefix: int, count: int) -> list[int]:
    """Rows after the prefix, denser near it."""
    ahead = np.geomspace(1, count - prefix, TARGETS)
    return sorted({prefix - 1 + round(float(a)) for a in ahead})
