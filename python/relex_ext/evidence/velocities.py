"""The course of a drift's velocity: lasting, dying away, or turning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from relex_ext.evidence.nulls import Float64

Course: TypeAlias = Callable[[Float64], Float64]

RATES = np.geomspace(0.05, 30.0, 24)
"""Decay rates tried, per span of the window."""

CYCLES = np.linspace(0.3, 4.0, 75)
"""Frequencies tried, in cycles per window; at most one in four stretches."""

DRAWS, CHANCE = 999, 0.01
"""Noise that a course has to fit better than, and the share of it that may do better."""


@dataclass(frozen=True, slots=True)
class Velocity:
    """A fitted course of the drift's velocity. Times are in windows before (< 0) and after the
    newest checkpoint; velocities in units of the mean one."""

    kind: str
    """``constant``, ``decaying`` or ``turning``."""
    at: Course
    moved: Course
    """∫₀ᵗ of it: how far the drift gets along its mean direction."""


def fit_velocity(times: Float64, values: Float64) -> Velocity:
    """The course that explains the velocities best for what it costs: constant, a·exp(−k t) with
    k ≥ 0, or a constant and a sine.

    A course that is searched for among many fits even noise. So it costs what it takes for one
    series of white noise in a hundred to be fitted so much better than by a constant, found by
    drawing: few stretches pass for nearly any sine.
    """
    count = len(times)
    noise = np.random.default_rng(0).normal(size=(DRAWS, count))
    fastest = max(1.0, count / 4)
    tried = {"decaying": RATES, "turning": CYCLES[fastest >= CYCLES]}
    flat = float(np.sum((values - values.mean()) ** 2))
    floor = 1e-12 * float(values @ values) + np.finfo(np.float64).tiny
    least = ((noise - noise.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    scores, rates = {"constant": np.log(max(flat, floor))}, {"constant": 0.0}
    for kind, grid in tried.items():
        by_chance = _errors(kind, grid, times, noise).min(axis=1)
        gains = np.log(least / np.maximum(by_chance, 1e-12 * least))
        rates[kind], error = _search(kind, grid, times, values)
        scores[kind] = np.log(max(error, floor)) + np.quantile(gains, 1.0 - CHANCE)
    kind = min(scores, key=lambda one: scores[one])
    basis = _basis(kind, np.array([rates[kind]]), times)[0]
    parameters = np.linalg.lstsq(basis, values, rcond=None)[0].tolist()
    if kind == "turning":
        return _turning(parameters, rates[kind])
    return _decaying(parameters[0], rates[kind])


def _basis(kind: str, rates: Float64, times: Float64) -> Float64:
    """(rates, times, parameters)."""
    if kind == "turning":
        angle = 2.0 * np.pi * np.outer(rates, times)
        return np.stack([np.ones_like(angle), np.sin(angle), np.cos(angle)], axis=2)
    return np.asarray(np.exp(-np.outer(rates, times + 1.0))[:, :, None])


def _errors(kind: str, rates: Float64, times: Float64, values: Float64) -> Float64:
    """Sums of squared residuals of the least-squares fits to ``values`` (n, times): (n, rates)."""
    q = np.linalg.qr(_basis(kind, rates, times))[0]
    fitted = np.tensordot(values, q, axes=(1, 1))
    errors = (values**2).sum(axis=1)[:, None] - (fitted**2).sum(axis=2)
    return np.asarray(np.maximum(errors, 0.0))


def _search(kind: str, rates: Float64, times: Float64, values: Float64) -> tuple[float, float]:
    """(rate, error) of the best of ``rates``, narrowed down between its neighbours."""
    for _ in range(7):
        errors = _errors(kind, rates, times, values[None])[0]
        best = int(np.argmin(errors))
        found = float(rates[best]), float(errors[best])
        rates = np.linspace(rates[max(best - 1, 0)], rates[min(best + 1, len(rates) - 1)], 9)
    return found


def _decaying(start: float, rate: float) -> Velocity:
    if rate == 0.0:
        return Velocity("constant", lambda t: np.full_like(t, start), lambda t: start * t)
    now = start * np.exp(-rate)
    return Velocity(
        "decaying",
        lambda t: now * np.exp(-rate * t),
        lambda t: now * -np.expm1(-rate * t) / rate,
    )


def _turning(parameters: list[float], cycles: float) -> Velocity:
    constant, sine, cosine = parameters
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
