"""RELEX in numpy float64, from the definition: materialise M, take its SVD, fit, add up.

Written apart from the package: nothing here is imported from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Words = NDArray[Any]

WORD: dict[str, type] = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
_SIGNIFICAND = {"F32": (24, -125), "F16": (11, -13), "BF16": (8, -125)}
"""dtype → bits of its significand, and the frexp exponent of its smallest normal number."""


def to_float64(words: Words, dtype: str) -> Float64:
    """Raw words of a dtype → their values, exactly."""
    if dtype == "BF16":
        return (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return words.view({"F32": np.float32, "F16": np.float16}[dtype]).astype(np.float64)


def round_to(values: Float64, dtype: str) -> Words:
    """float64 → the words of the nearest numbers of ``dtype``, ties to even.

    Divides by the spacing of the target's numbers, a power of two, and lets rint round: exact.
    """
    bits, smallest = _SIGNIFICAND[dtype]
    values = np.asarray(values, np.float64)
    _, exponent = np.frexp(values)
    spacing = np.ldexp(1.0, np.maximum(exponent, smallest) - bits)
    with np.errstate(invalid="ignore", over="ignore"):
        exact = np.where(np.isfinite(values), np.rint(values / spacing) * spacing, values)
        exact = np.copysign(exact, values)
        if dtype == "F16":
            return np.atleast_1d(exact.astype(np.float16)).view(np.uint16).reshape(exact.shape)
        narrow = np.atleast_1d(exact.astype(np.float32)).view(np.uint32).reshape(exact.shape)
    return narrow if dtype == "F32" else (narrow >> 16).astype(np.uint16)


def ulps(a: Words, b: Words, dtype: str) -> NDArray[np.int64]:
    """How many representable numbers lie from a to b; −0 and +0 are one."""

    def order(words: Words) -> NDArray[np.int64]:
        sign = 1 << (8 * np.dtype(WORD[dtype]).itemsize - 1)
        numbers = words.astype(np.int64)
        return np.where(numbers >= sign, sign - numbers, numbers)

    return np.abs(order(a) - order(b))


@dataclass(frozen=True)
class Forecast:
    """The oracle's answer for one tensor; ranks along the last axis."""

    u: Float64
    sigma: Float64
    explained_variance: Float64
    slope: Float64
    intercept: Float64
    r2: Float64
    theta: Float64
    """(targets, d)"""
    weights: Float64
    """(targets, T): θ̂ − θ₀ = weights · M."""


def deltas(base: Float64 | None, rows: Sequence[Float64]) -> Float64:
    """M: stacked θ_t − θ₀."""
    stacked = np.stack(rows)
    return stacked if base is None else stacked - base


def svd(m: Float64) -> tuple[Float64, Float64, Float64]:
    """u (T, k), σ (k), vᵀ (k, d) with Σ_t u_t ≥ 0 in each column."""
    u, sigma, vt = np.linalg.svd(m, full_matrices=False)
    sign = np.where(u.sum(axis=0) < 0, -1.0, 1.0)
    return u * sign, sigma, vt * sign[:, None]


def forecast(
    base: Float64,
    rows: Sequence[Float64],
    steps: Sequence[float],
    targets: Sequence[float],
    rank: int = 1,
    step_scale: float = 1.0,
) -> Forecast:
    """θ̂(s*) = θ₀ + Σ_k ĉ_k(s*) v_k, with ĉ_k the least-squares line through σ_k u_k."""
    m = deltas(base, rows)
    if m.size == 0 or not m.any():
        none = np.zeros(0)
        theta = np.repeat(base[None], len(targets), axis=0)
        flat = np.zeros((len(targets), len(steps)))
        return Forecast(np.zeros((len(steps), 0)), none, none, none, none, none, theta, flat)
    u, sigma, vt = svd(m)
    rank = min(rank, int((sigma > sigma[0] * 1e-7).sum()))
    design = np.stack([np.asarray(steps, np.float64), np.ones(len(steps))], axis=1)
    at = np.stack([np.asarray(targets, np.float64) * step_scale, np.ones(len(targets))], axis=1)
    theta = np.repeat(base[None], len(targets), axis=0)
    weights = np.zeros((len(targets), len(steps)))
    lines, r2 = [], []
    for k in range(rank):
        c = sigma[k] * u[:, k]
        line = np.linalg.lstsq(design, c, rcond=None)[0]
        forecast = at @ line
        theta = theta + np.outer(forecast, vt[k])
        weights += np.outer(forecast / sigma[k], u[:, k])
        lines.append(line)
        scatter = np.sum((c - c.mean()) ** 2)
        r2.append(1.0 - np.sum((c - design @ line) ** 2) / scatter if scatter > 0 else 0.0)
    share = sigma[:rank] ** 2 / np.sum(m * m)
    slope, intercept = np.array(lines).T
    return Forecast(
        u[:, :rank], sigma[:rank], share, slope, intercept, np.array(r2), theta, weights
    )
