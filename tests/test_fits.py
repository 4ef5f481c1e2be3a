"""Curves through coefficients, against definitions and against scipy's least squares."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import optimize

import oracle
from oracle import Float64
from relex_ext.fits import FITS


def series(kind: str, count: int, seed: int) -> tuple[Float64, Float64]:
    """Times and coefficients of one kind."""
    rng = np.random.default_rng([seed, count])
    x = np.cumsum(rng.integers(1, 9, count)).astype(np.float64)
    if kind == "rows":
        x = np.arange(count, dtype=np.float64)
    t = (x - x[0]) / (x[-1] - x[0])
    noise = rng.normal(size=count)
    values = {
        "wave": 2 * np.sin(2 * np.pi * 1.3 * t + 0.7) + 5 + 0.05 * noise,
        "rows": np.sin(2 * np.pi * 2.6 * t) + 0.3 * noise,
        "line": 3 * t + 0.05 * noise,
        "bend": np.sqrt(t + 0.01) + 0.01 * noise,
        "walk": np.cumsum(noise),
        "noise": noise,
    }
    return x, values[kind]


KINDS = ("wave", "rows", "line", "bend", "walk", "noise")


def sse(y: Float64, fitted: Float64) -> float:
    return float(np.sum((y - fitted) ** 2))


@pytest.mark.parametrize("count", [6, 12, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sine_is_the_best_of_all_frequencies(kind: str, count: int) -> None:
    x, y = series(kind, count, 0)
    found = FITS["sine"].through(x, y, 2)
    best = sse(y, oracle.sine(x, y)(x))
    assert sse(y, found.at(x)) <= best * (1 + 1e-6) + 1e-12 * sse(y, y.mean())
    a, f, phase, c = found.parameters
    later = np.append(x, x[-1] * np.array([1.5, 3.0]))
    size = max(1.0, abs(a), abs(c))
    formula = a * np.sin(2 * np.pi * f * later + phase) + c
    assert np.allclose(found.at(later), formula, rtol=0, atol=1e-10 * size)
    assert found.r2 == pytest.approx(1 - sse(y, found.at(x)) / sse(y, y.mean()), abs=1e-12)


def fitted(wave: Callable[..., Float64], x: Float64, y: Float64, start: list, **more: Any) -> list:
    """curve_fit's parameters, the start's where it gives up."""
    with warnings.catch_warnings():  # it may not know their covariance
        warnings.simplefilter("ignore", optimize.OptimizeWarning)
        try:
            return list(optimize.curve_fit(wave, x, y, p0=start, maxfev=10000, **more)[0])
        except RuntimeError:
            return start


@pytest.mark.parametrize("count", [6, 12, 40])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_sine_is_as_good_as_curve_fit(kind: str, count: int, seed: int) -> None:
    """From the start of the authors' script, whichever minimum that leads to."""
    x, y = series(kind, count, seed)
    frequencies = np.fft.rfftfreq(count, (x[-1] - x[0]) / (count - 1))[1:]
    peak = frequencies[np.abs(np.fft.rfft(y - y.mean()))[1:].argmax()]

    def wave(t: Float64, a: float, f: float, phase: float, c: float) -> Float64:
        return a * np.sin(2 * np.pi * f * t + phase) + c

    start = [3 * y.std() / np.sqrt(2), peak, 0.0, y.mean()]
    highest = frequencies[-1] if kind != "rows" else np.inf
    parameters = fitted(wave, x, y, start)
    if abs(parameters[1]) > highest:  # more than a cycle in two checkpoints: as far as ours goes
        limits = np.array([np.inf, highest, np.inf, np.inf])
        parameters = fitted(wave, x, y, start, bounds=(-limits, limits))
    found = FITS["sine"].through(x, y, 2)
    theirs = sse(y, wave(x, *parameters))
    assert sse(y, found.at(x)) <= theirs * (1 + 1e-6) + 1e-12 * sse(y, y.mean())


def test_a_pure_sine_goes_on() -> None:
    x = np.arange(30.0)
    later = np.array([35.0, 60.5, 200.0])
    for f, phase in ((0.04, 0.3), (0.11, -2.0), (0.31, 1.0)):
        y = 3 * np.sin(2 * np.pi * f * x + phase) - 7
        found = FITS["sine"].through(x, y, 2)
        assert np.allclose(found.parameters, (3, f, phase, -7), rtol=1e-6)
        wanted = 3 * np.sin(2 * np.pi * f * later + phase) - 7
        assert np.allclose(found.at(later), wanted, rtol=0, atol=1e-5)


def test_a_constant_has_every_fit() -> None:
    x, y = np.arange(8.0), np.full(8, 4.0)
    for name, fit in FITS.items():
        found = fit.through(x, y, 2)
        assert np.allclose(found.at(np.array([3.0, 50.0])), 4.0), name
        assert found.r2 == 0.0


def test_a_polynomial_and_its_parameters() -> None:
    x = np.array([3.0, 10, 12, 40, 41, 90])
    y = 0.5 * x**2 - 3 * x + 7
    found = FITS["polynomial"].through(x, y, 2)
    assert np.allclose(found.parameters, (0.5, -3, 7))
    assert np.allclose(found.at(np.array([500.0])), 0.5 * 500**2 - 3 * 500 + 7)
