"""Curves through a coefficient's values in time, and the coefficient's later values."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from relex_ext.forecasts import fit_line, r_squared

Float64: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """A fitted curve: its value ``at`` any times, its parameters, R² over the fitted values.

    ``parameters``: of a line a·x + b: (a, b); of a polynomial its coefficients, the highest power
    first; of a sine A·sin(2πf x + φ) + C: (A, f, φ, C).
    """

    at: Callable[[Float64], Float64]
    parameters: tuple[float, ...]
    r2: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A kind of curve. ``least``: a polynomial's degree → the values that it needs."""

    through: Callable[[Float64, Float64, int], Curve]
    """(x, y, degree) → the least-squares curve."""
    least: Callable[[int], int]


# ---- the kinds of curves -----------------------------------------------------------------------


def _line(x: Float64, y: Float64, degree: int) -> Curve:
    slope, intercept, r2 = fit_line(x, y)
    return Curve(lambda at: slope * at + intercept, (slope, intercept), r2)


def _polynomial(x: Float64, y: Float64, degree: int) -> Curve:
    found = Polynomial.fit(x, y, degree)  # over [−1, 1] inside: powers of step numbers overflow

    def at(times: Float64) -> Float64:
        values: Float64 = found(times)
        return values

    plain = np.zeros(degree + 1)
    coefficients = found.convert().coef
    plain[: len(coefficients)] = coefficients
    return Curve(at, tuple(plain[::-1].tolist()), r_squared(y, at(x)))


SLOWEST = 1e-4
"""The lowest frequency tried, in cycles over the fitted span. There the best sine is a parabola to
nine digits, which is its limit, and its amplitude has not yet left what float64 resolves."""

GRID = 8
"""Frequencies tried per cycle over the span. A minimum is about one cycle wide."""

MINIMA, ZOOMS, POINTS = 4, 9, 33
"""Of the best minima on the grid each is narrowed by (POINTS − 1)/2, so many times."""


def _sine(x: Float64, y: Float64, degree: int) -> Curve:
    """Least squares over A, φ, C and all frequencies up to one cycle in two values.

    For a given f the rest is linear, so that the search is over f alone (variable projection,
    Golub & Pereyra 1973); it has many minima, of which the lowest is taken.
    """
    middle, span = float(x.mean()), float(x[-1] - x[0])
    centred = x - middle
    highest = GRID * (len(x) - 1) // 2
    slow = np.geomspace(SLOWEST, 1.0 / GRID, GRID, endpoint=False)
    grid = np.concatenate([slow, np.arange(1, highest + 1) / GRID]) / span
    errors = _sine_error(grid, centred, y)
    inside = np.pad(errors, 1, constant_values=np.inf)
    minima = np.flatnonzero((errors <= inside[:-2]) & (errors <= inside[2:]))
    best, frequency = math.inf, float(grid[0])
    for i in minima[np.argsort(errors[minima], kind="stable")][:MINIMA]:
        low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
        for _ in range(ZOOMS):
            near = np.linspace(low, high, POINTS)
            found = _sine_error(near, centred, y)
            k = int(found.argmin())
            low, high = near[max(k - 1, 0)], near[min(k + 1, POINTS - 1)]
        if found[k] < best:
            best, frequency = float(found[k]), float(near[k])
    return _sine_curve(frequency, middle, x, y)


def _sine_curve(frequency: float, middle: float, x: Float64, y: Float64) -> Curve:
    def basis(times: Float64) -> Float64:
        angle = 2 * np.pi * frequency * (times - middle)
        # 1 − cos as 2 sin²: at low frequencies the three must stay apart.
        return np.stack([np.sin(angle), 2 * np.sin(angle / 2) ** 2, np.ones_like(angle)], axis=-1)

    columns = basis(x)
    sizes = np.linalg.norm(columns, axis=0)
    sizes[sizes == 0.0] = 1.0
    shares = np.linalg.lstsq(columns / sizes, y, rcond=None)[0] / sizes
    sine, versine, offset = shares.tolist()

    def at(times: Float64) -> Float64:
        values: Float64 = basis(times) @ shares
        return values

    phase = math.atan2(-versine, sine) - 2 * math.pi * frequency * middle
    parameters = (
        math.hypot(sine, versine), frequency, math.remainder(phase, 2 * math.pi), offset + versine,
    )  # fmt: skip
    return Curve(at, parameters, r_squared(y, at(x)))


def _sine_error(frequencies: Float64, centred: Float64, y: Float64) -> Float64:
    """SSE of the best sine of each frequency."""
    angles = 2 * np.pi * frequencies[:, None] * centred
    rest = np.broadcast_to(y - y.mean(), angles.shape)
    first = _unit(_without_mean(np.sin(angles)))
    second = _without_mean(2 * np.sin(angles / 2) ** 2)
    second = _unit(second - first * (first * second).sum(axis=1, keepdims=True))
    for direction in (first, second):
        rest = rest - direction * (direction * rest).sum(axis=1, keepdims=True)
    squares: Float64 = (rest * rest).sum(axis=1)
    return squares


def _without_mean(rows: Float64) -> Float64:
    centred: Float64 = rows - rows.mean(axis=1, keepdims=True)
    return centred


def _unit(rows: Float64) -> Float64:
    """Rows of length 1; rows that are nothing but rounding (a sine at its zeros) become 0."""
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float64 = np.divide(rows, sizes, out=np.zeros_like(rows), where=sizes > 1e-12)
    return unit


FITS: Mapping[str, Fit] = {
    "linear": Fit(_line, lambda degree: 2),
    "polynomial": Fit(_polynomial, lambda degree: degree + 1),
    "sine": Fit(_sine, lambda degree: 5),  # four parameters meet any four values, at many f
}


# ---- where values lie in time ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Course:
    """How a coefficient is followed through time.

    ``by_row``: the axis counts the rows of the window from 0, and a step after the newest lies that
    many rows after the last; otherwise it is the step number. ``window``: the newest values that
    are fitted. ``refit``: predict step by step, each prediction joining the window, and fit again
    after so many.
    """

    fit: str = "linear"
    degree: int = 2
    by_row: bool = False
    window: int | None = None
    refit: int | None = None

    def fitted(self, steps: Sequence[int], values: Float64) -> Curve:
        """The curve through the window of ``values``, one per step."""
        count = self.window or len(steps)
        return self._through(steps[-count:], values[-count:])

    def follow(
        self, steps: Sequence[int], values: Float64, at: Sequence[float]
    ) -> tuple[Float64, Curve]:
        """The coefficient at the steps ``at``, and the curve through the observed ones."""
        count = self.window or len(steps)
        curve = self.fitted(steps, values)
        found = curve.at(self._places(np.array(at, np.float64), steps[-1], count))
        if self.refit is not None:
            later = self._step_by_step(steps, values, curve, int(max(at)))
            found = np.array([later.get(int(s), v) for s, v in zip(at, found, strict=True)])
        return found, curve

    def _through(self, steps: Sequence[int], values: Float64) -> Curve:
        x = np.arange(len(steps)) if self.by_row else np.array(steps)
        return FITS[self.fit].through(x.astype(np.float64), values, self.degree)

    def _places(self, at: Float64, newest: int, count: int) -> Float64:
        return count - 1 + (at - newest) if self.by_row else at

    def _step_by_step(
        self, steps: Sequence[int], values: Float64, curve: Curve, last: int
    ) -> dict[int, float]:
        """Predictions of every step after the newest."""
        assert self.refit is not None
        count = self.window or len(steps)
        recent = deque(zip(steps[-count:], values[-count:].tolist(), strict=True), maxlen=count)
        predicted: dict[int, float] = {}
        for step in range(steps[-1] + 1, last + 1):
            if predicted and len(predicted) % self.refit == 0:
                times, known = zip(*recent, strict=True)
                curve = self._through(times, np.array(known))
            # By rows the authors' script asks for the row after the window until the next fit, so
            # that a value repeats within ``refit`` steps.
            place = count if self.by_row else step
            predicted[step] = float(curve.at(np.array([place], np.float64))[0])
            recent.append((step, predicted[step]))
        return predicted
