"""What is coherent in a trajectory: its drift apart from its noise, and where the drift leads.

Noise dominates the distance between checkpoints while drift moves the function, so the two have to
be told apart. The noise of one update has nothing to do with that of another. So every product of
*different* updates is, but for chance, a product of drifts: with H_ij = ⟨d_i, d_j⟩ of the updates
d_i over δ_i steps, and B a stretch of neighbouring updates,

    a_B = Σ_{i ∈ B, j ∉ B} H_ij = x_B (X − x_B) ,     X = Σ_B x_B ,

for a drift along one direction that moves by x_B in B: the noise's own square, and what momentum
makes neighbours share, are left out. The course of x over the stretches says whether the drift
lasts (constant), dies away (a saturating run) or turns (an oscillating one), and how far a straight
line may follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from relex_ext.evidence.nulls import Flips, Float64, Memory, memory_of

Course: TypeAlias = Callable[[Float64], Float64]

SHORTEST = 8
"""Updates below which a drift cannot be told from chance: 2⁷ distinct sign flips."""

STRETCHES = 16
"""At most, of at least three updates (four stretches at least)."""

RATES = np.geomspace(0.05, 30.0, 24)
"""Decay rates tried, per span of the window."""

CYCLES = np.linspace(0.3, 4.0, 38)
"""Frequencies tried, in cycles per window."""

COST = {"constant": 1, "decaying": 3, "turning": 7}


@dataclass(frozen=True, slots=True)
class Velocity:
    """A fitted course of the drift's velocity. Times are in windows before (< 0) and after the
    newest checkpoint; velocities in units of the mean one."""

    kind: str
    """``constant``, ``decaying`` or ``turning``."""
    at: Course
    moved: Course
    """∫₀ᵗ of it: how far the drift gets along its mean direction."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The coherent part of a window of updates."""

    updates: int
    span: float
    """Steps that the window covers."""
    straightness: float
    """‖Σ d_j‖² / Σ ‖d_j‖²: 1 for a wander; above it by the drift's share."""
    p: float
    """Of that, among walks with the same updates."""
    limit: float
    """The straightness that one walk in a hundred exceeds."""
    mean: float
    """The drift's mean squared velocity, per step²: of products of different updates."""
    noise: float
    """The noise's squared distance per step of a walk as long as the window."""
    velocities: Float64
    """Of each stretch B, as a multiple of the mean: x_B / X over its share of the window."""
    times: Float64
    """Its middle, in windows: −1 … 0."""
    velocity: Velocity

    @property
    def ratio(self) -> float:
        """The drift's squared distance over the window as a multiple of the noise's."""
        return self.mean * self.span / self.noise if self.noise > 0.0 else np.inf


def find_drift(
    updates: Float64, distances: Float64, draws: int = 999, seed: int = 0
) -> Drift | None:
    """The drift in H (T, T) of updates over ``distances`` (T,) steps; None for fewer than eight."""
    count = len(updates)
    sizes = np.diagonal(updates)
    if count < SHORTEST or not sizes.sum() > 0.0:
        return None
    memory = memory_of(updates)
    walks = Flips(count, memory, draws, seed).straightness(updates[None])[0]
    span = float(distances.sum())
    mean, noise = _apart(updates, distances, memory)

    stretches = min(STRETCHES, max(4, count // 3))
    parts = np.array_split(np.arange(count), stretches)
    inside = np.array([np.isin(np.arange(count), part) for part in parts], np.float64)
    across = inside @ (updates - noise) @ (1.0 - inside).T
    lengths = inside @ distances
    moved = _shares(np.diagonal(across))
    times = (np.cumsum(lengths) - lengths / 2.0) / span - 1.0
    remembered = (1.0 + memory.coefficient) / (1.0 - memory.coefficient)
    return Drift(
        updates=count,
        span=span,
        straightness=float(updates.sum() / sizes.sum()),
        p=float(np.mean(walks >= walks[0] - 1e-9 * np.abs(walks).max())),
        limit=float(np.quantile(walks[1:], 0.99)),
        mean=mean,
        noise=remembered * float(np.trace(noise)) / span,
        velocities=moved * span / lengths,
        times=times,
        velocity=fit_velocity(times, moved * span / lengths),
    )


def _apart(updates: Float64, distances: Float64, memory: Memory) -> tuple[float, Float64]:
    """(mean squared velocity m, Gram matrix of the noise), of updates with a memory φ.

    In the mean over updates H_ij is m δ_i δ_j + n φ^|i−j|: its trace and the sum of what lies off
    it (by the memory's block at least) are two equations for m and the noise's n. A single update's
    noise is what m leaves of H_ii.
    """
    count, sizes = len(updates), np.diagonal(updates)
    gap = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    remembered = np.power(memory.coefficient, gap)  # 0⁰ = 1
    other, squares = gap >= memory.block, distances**2
    shared = float(remembered[other].sum()) / count
    mean = float(updates[other].sum() - shared * sizes.sum()) / float(
        np.outer(distances, distances)[other].sum() - shared * squares.sum()
    )
    own = np.sqrt(np.maximum(sizes - max(mean, 0.0) * squares, 0.0))
    return mean, np.outer(own, own) * remembered


def fit_velocity(times: Float64, values: Float64) -> Velocity:
    """The course that explains the velocities best for what it costs: constant, a·exp(−k t) with
    k ≥ 0, or a constant and a sine, by Schwarz's criterion. A parameter that had to be searched for
    counts as three: the best of many has more to choose from (so that noise passes for a turn in
    fewer than one case in a hundred; tests/test_evidence_drift.py)."""
    count = len(times)

    def decay(rate: float) -> Float64:
        values: Float64 = np.exp(-rate * (times + 1.0))[:, None]
        return values

    def turn(cycles: float) -> Float64:
        angle = 2.0 * np.pi * cycles * times
        return np.stack([np.ones(count), np.sin(angle), np.cos(angle)], axis=1)

    found = {
        "constant": (0.0, *_least_squares(decay(0.0), values)),
        "decaying": _search(decay, RATES, values),
        "turning": _search(turn, CYCLES, values),
    }
    floor = 1e-12 * float(values @ values) + np.finfo(np.float64).tiny

    def score(kind: str) -> float:
        return count * float(np.log(max(found[kind][1], floor))) + COST[kind] * float(np.log(count))

    kind = min(found, key=score)
    rate, _, parameters = found[kind]
    if kind == "turning":
        return _turning(parameters, rate)
    return _decaying(float(parameters[0]), rate)


def _search(
    basis: Callable[[float], Float64], rates: Float64, values: Float64
) -> tuple[float, float, Float64]:
    """(rate, SSE, parameters) of the best of ``rates``, narrowed down between its neighbours."""
    for _ in range(3):
        errors = [_least_squares(basis(float(rate)), values)[0] for rate in rates]
        best = int(np.argmin(errors))
        near = rates[max(best - 1, 0)], rates[min(best + 1, len(rates) - 1)]
        at, rates = float(rates[best]), np.linspace(*near, 9)
    error, parameters = _least_squares(basis(at), values)
    return at, error, parameters


def _shares(across: Float64) -> Float64:
    """x_B / X from a_B = x_B (X − x_B), by fixed-point iteration; its start neglects x_B beside X.
    Where there is no drift, equal shares."""
    total = float(across.sum())
    if not total > 0.0:
        return np.full(len(across), 1.0 / len(across))
    moved: Float64 = np.divide(across, np.sqrt(total))
    for _ in range(50):
        whole = float(moved.sum())
        moved = np.divide(across, np.maximum(whole - moved, 0.1 * whole))
    return np.divide(moved, moved.sum())


def _least_squares(basis: Float64, values: Float64) -> tuple[float, Float64]:
    found: Float64 = np.linalg.lstsq(basis, values, rcond=None)[0]
    residual = values - basis @ found
    return float(residual @ residual), found


def _decaying(start: float, rate: float) -> Velocity:
    if rate == 0.0:
        return Velocity("constant", lambda t: np.full_like(t, start), lambda t: start * t)
    now = start * np.exp(-rate)
    return Velocity(
        "decaying",
        lambda t: now * np.exp(-rate * t),
        lambda t: now * -np.expm1(-rate * t) / rate,
    )


def _turning(parameters: Float64, cycles: float) -> Velocity:
    constant, sine, cosine = parameters.tolist()
    angular = 2.0 * np.pi * cycles
    return Velocity(
        "turning",
        lambda t: constant + sine * np.sin(angular * t) + cosine * np.cos(angular * t),
        lambda t: (
            constant * t
            + sine / angular * (1.0 - np.cos(angular * t))
            + cosine / angular * np.sin(angular * t)
        ),
    )
