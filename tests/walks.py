"""Simulated trajectories with known answers, and their statistics from the deltas themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from oracle import Float64
from relex_ext import Scan

BURN_IN = 60


def updates(
    rng: np.random.Generator,
    count: int,
    dimension: int,
    *,
    momentum: float = 0.0,
    drift: float = 0.0,
) -> Float64:
    """Updates (T, d): stationary AR(1) noise, plus a constant drift of ``drift`` per dimension."""
    noise = rng.normal(size=(count + BURN_IN, dimension))
    for t in range(1, len(noise)):
        noise[t] += momentum * noise[t - 1]
    return noise[BURN_IN:] + drift * rng.normal(size=dimension)


def scan_of(deltas: Mapping[str, Float64], steps: Sequence[int] | None = None) -> Scan:
    """A scan of materialised deltas (T, d)."""
    count = len(next(iter(deltas.values())))
    grams = {name: m @ m.T for name, m in deltas.items()}
    elements = {name: m.shape[1] for name, m in deltas.items()}
    return Scan(tuple(steps or range(1, count + 1)), grams, {}, {}, elements)


def shares(m: Float64) -> Float64:
    """Cumulative explained variance of deltas (T, d)."""
    energy = np.linalg.svd(m, compute_uv=False) ** 2
    return np.cumsum(energy)[:5] / energy.sum()


def leading(m: Float64) -> Float64:
    return np.linalg.svd(m, full_matrices=False)[0][:, 0]


def r2(x: Sequence[int], y: Float64) -> float:
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def straightness(m: Float64) -> float:
    steps = np.diff(m, axis=0, prepend=0.0)
    return float((m[-1] ** 2).sum() / (steps**2).sum())


def outside(m: Float64, steps: Sequence[int]) -> tuple[float, float]:
    """SSE and SST of the first half's line over the second half's projections."""
    first = len(m) // 2
    v = np.linalg.svd(m[:first], full_matrices=False)[2][0]
    c = m @ v
    a, b = np.polyfit(steps[:first], c[:first], 1)
    after, x = c[first:], np.array(steps[first:])
    return float(((after - a * x - b) ** 2).sum()), float(((after - after.mean()) ** 2).sum())


def finite(value: object) -> bool:
    """No NaN, no infinity, anywhere."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(finite(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return all(finite(one) for one in value.values())
    if isinstance(value, (tuple, list)):
        return all(finite(one) for one in value)
    return math.isfinite(value) if isinstance(value, float) else True
