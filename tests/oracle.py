"""RELEX in numpy float64, from the definition: materialise M, take its SVD, fit, add up.

Written apart from the package: nothing here is imported from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def on_rows(
    steps: Sequence[int], targets: Sequence[float], step_scale: float = 1.0, window: int = 0
) -> tuple[Float64, Float64]:
    """The axis of the authors' script: rows 0 … W−1 of the window, and targets beyond them."""
    rows = np.arange(window or len(steps), dtype=np.float64)
    wanted = [round(target * step_scale) for target in targets]
    return rows, np.array([rows[-1] + (target - steps[-1]) for target in wanted], np.float64)


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


# ---- other methods than a line through all coefficients -----------------------------------------

Function = Callable[[Float64], Float64]


def curve(x: Float64, y: Float64, fit: str, degree: int = 2) -> Function:
    """The least-squares curve of a kind."""
    if fit == "sine":
        return sine(x, y)
    powers = np.vander(x - x[0], 2 if fit == "linear" else degree + 1)
    found = np.linalg.lstsq(powers, y, rcond=None)[0]
    return lambda at: np.polyval(found, np.asarray(at, np.float64) - x[0])


def sine(x: Float64, y: Float64) -> Function:
    """A·sin(2πf x + φ) + C: every frequency of a dense grid is tried, the best one's neighbourhood
    is searched."""

    def solved(f: float) -> tuple[float, Float64]:
        angle = 2 * np.pi * f * (x - x[0])
        basis = np.stack([np.sin(angle), np.cos(angle), np.ones_like(x)], axis=1)
        shares = np.linalg.lstsq(basis, y, rcond=None)[0]
        return float(np.sum((y - basis @ shares) ** 2)), shares

    span = x[-1] - x[0]
    grid = np.concatenate([np.geomspace(1e-3, 0.1, 60), np.arange(0.1, (len(x) - 1) / 2, 0.02)])
    best = int(np.argmin([solved(f / span)[0] for f in grid]))
    low, high = grid[max(best - 1, 0)] / span, grid[min(best + 1, len(grid) - 1)] / span
    for _ in range(90):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if solved(left)[0] < solved(right)[0]:
            high = right
        else:
            low = left
    f = (low + high) / 2
    a, b, c = solved(f)[1]

    def at(times: Float64) -> Float64:
        angle = 2 * np.pi * f * (np.asarray(times, np.float64) - x[0])
        return a * np.sin(angle) + b * np.cos(angle) + c

    return at


def leading(m: Float64, rank: int) -> list[tuple[Float64, Float64]]:
    """(c_k, v_k) of the leading directions."""
    u, sigma, vt = svd(m)
    return [(sigma[k] * u[:, k], vt[k]) for k in range(min(rank, len(sigma)))]


def movement(
    method: str,
    m: Float64,
    steps: Sequence[int],
    targets: Sequence[float],
    rank: int = 1,
    fit: str = "linear",
    degree: int = 2,
    window: int | None = None,
    alpha: float | None = None,
    decay: float = 0.9,
    step_scale: float = 1.0,
) -> Float64:
    """θ̂ − θ₀ at each target, by the method's definition on M itself; times are step numbers."""
    s = np.asarray(steps, np.float64)
    at = np.asarray(targets, np.float64) * step_scale
    rows = [list(steps).index(t) for t in targets if t in steps]
    if method == "reconstruct":
        return sum(np.outer(c[rows], v) for c, v in leading(m, rank))
    if method in ("relex", "fit-reconstruct", "pinned"):
        start = -window if window else 0
        found = np.zeros((len(targets), m.shape[1]))
        for c, v in leading(m, rank):
            predicted = curve(s[start:], c[start:], fit, degree)
            values = predicted(at) - (predicted(s[-1:]) if method == "pinned" else 0.0)
            found += np.outer(values, v)
        return found + m[-1] if method == "pinned" else found
    if method == "latest":
        return np.stack([m[-1]] * len(targets))
    if method == "secant":
        return np.stack([m[-1] / s[-1] * t for t in at])
    if method == "two-point":
        j = 0 if window is None else len(s) - 1 - window
        return np.stack([m[-1] + (t - s[-1]) * (m[-1] - m[j]) / (s[-1] - s[j]) for t in at])
    if method == "first-update":
        return np.stack([m[0] * (t / s[0] if alpha is None else alpha) for t in at])
    assert method == "ema"
    average, total = m[0], 1.0
    for gap, row in zip(np.diff(s), m[1:], strict=True):
        faded = total * decay**gap
        average, total = (average * faded + row) / (faded + 1.0), faded + 1.0
    return np.stack([average] * len(targets))
