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

from dataclasses import dataclass

import numpy as np

from relex_ext.evidence.nulls import Flips, Float64, Memory, memory_of
from relex_ext.evidence.velocities import Velocity, fit_velocity

SHORTEST = 8
"""Updates below which a drift cannot be told from chance: 2⁷ distinct sign flips."""

STRETCHES = 16
"""At most: of fewer updates, each is one."""

ROUNDS = 100
"""Of alternating least squares for one direction."""


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
    scatter: float
    """Σ of the squares of single updates' noise, per step."""
    noise: float
    """The noise's squared distance per step of a walk as long as the window."""
    velocities: Float64
    """Of each stretch B, as a multiple of the mean: x_B / X over its share of the window."""
    times: Float64
    """Its middle, in windows: −1 … 0."""
    velocity: Velocity
    memory: Memory
    """Of the noise: its block is not misled by a drift that swings, as memory_of's is."""

    @property
    def over_noise(self) -> float:
        """The drift's squared distance over the window as a multiple of that of a walk in the
        noise, momentum and all."""
        return self.mean * self.span / self.noise if self.noise > 0.0 else np.inf

    @property
    def ratio(self) -> float:
        """The drift's squared distance over the window as a multiple of what the noise of single
        updates adds up to; what momentum makes of that noise is not counted in it."""
        return self.mean * self.span / self.scatter if self.scatter > 0.0 else np.inf


def find_drift(
    updates: Float64, distances: Float64, draws: int = 999, seed: int = 0
) -> Drift | None:
    """The drift in H (T, T) of updates over ``distances`` (T,) steps; None for fewer than eight."""
    count = len(updates)
    sizes = np.diagonal(updates)
    if count < SHORTEST or not sizes.sum() > 0.0:
        return None
    cautious = _cautious(updates)
    walks = Flips(count, cautious, draws, seed).straightness(updates[None])[0]
    memory = Memory(memory_of(updates).coefficient, cautious.block)
    span = float(distances.sum())
    mean, noise = _apart(updates, distances, memory)

    parts = np.array_split(np.arange(count), min(STRETCHES, count))
    inside = np.array([np.isin(np.arange(count), part) for part in parts], np.float64)
    across = inside @ (updates - noise) @ (1.0 - inside).T
    lengths = inside @ distances
    moved = _shares(np.diagonal(across))
    times = (np.cumsum(lengths) - lengths / 2.0) / span - 1.0
    remembered = (1.0 + memory.coefficient) / (1.0 - memory.coefficient)
    scatter = float(np.trace(noise)) / span
    return Drift(
        updates=count,
        span=span,
        straightness=float(updates.sum() / sizes.sum()),
        p=float(np.mean(walks >= walks[0] - 1e-9 * np.abs(walks).max())),
        limit=float(np.quantile(walks[1:], 0.99)),
        mean=mean,
        scatter=scatter,
        noise=remembered * scatter,
        velocities=moved * span / lengths,
        times=times,
        velocity=fit_velocity(times, moved * span / lengths),
        memory=memory,
    )


def _cautious(updates: Float64) -> Memory:
    """The memory of the walks that the updates are held against.

    All likeness of neighbours counts as momentum's, drift's or not: what a walk with so much of it
    does not reach is no walk's (of short ones, the plateau of memory_of would take momentum for
    drift). But a drift that swings is alike over many gaps, as if memory reached far, and blocks so
    long hide it. It is also alike at gaps where memory has faded, and in one direction: that one is
    found there, x_i x_j ≈ H_ij, and taken out before blocks are measured.
    """
    count = len(updates)
    gap = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    far = np.where(gap >= count // SHORTEST, 1.0, 0.0)
    values, vectors = np.linalg.eigh(far * updates)
    x = vectors[:, -1] * np.sqrt(max(0.0, float(values[-1])))
    least = np.finfo(np.float64).tiny
    for _ in range(ROUNDS):
        x = (x + (far * updates) @ x / np.maximum(far @ x**2, least)) / 2.0
    rest = updates - np.outer(x, x)
    np.fill_diagonal(rest, np.maximum(np.diagonal(rest), 0.0))
    # By regression, d_t on d_{t−1}: also right where updates differ in size, or start from rest.
    phi = float(np.trace(updates, 1)) / max(float(np.trace(updates[:-1, :-1])), least)
    phi = float(np.clip(phi, 0.0, 0.95))
    return Memory(phi, memory_of(rest).block)


def _apart(updates: Float64, distances: Float64, memory: Memory) -> tuple[float, Float64]:
    """(mean squared velocity m, Gram matrix of the noise), of updates with a memory φ.

    In the mean over updates H_ij is m δ_i δ_j + n φ^|i−j|: its trace and the sum of what lies off
    it, beyond the memory's block, are two equations for m and the noise's n. A single update's
    noise is what m leaves of H_ii; within the block, the noise that neighbours share is what m
    leaves of their products: rounded checkpoints make it negative.
    """
    count, sizes = len(updates), np.diagonal(updates)
    gap = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    remembered = np.power(memory.coefficient, gap)  # 0⁰ = 1
    other, squares = gap > memory.block, distances**2
    shared = float(remembered[other].sum()) / count
    mean = float(updates[other].sum() - shared * sizes.sum()) / float(
        np.outer(distances, distances)[other].sum() - shared * squares.sum()
    )
    own = np.sqrt(np.maximum(sizes - max(mean, 0.0) * squares, 0.0))
    for g in range(1, memory.block + 1):
        alike = float(np.trace(updates, g) - mean * (distances[:-g] @ distances[g:]))
        both = float(own[:-g] @ own[g:])
        remembered[gap == g] = alike / both if both > 0.0 else 0.0
    return mean, np.asarray(np.outer(own, own) * remembered)


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
    shares: Float64 = moved / moved.sum()
    return shares
