"""Trajectories whose future is known: a course along random directions, and a random walk on top.

The unit of time is the mean distance between checkpoints and that of length what the walk covers in
it, so that a drift of ``rho`` (squared distance per squared time) stands as far out of the noise
however many steps lie between two checkpoints. ``course`` goes on for a window behind the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relex_ext import Scan
from relex_ext.forecasts import Source
from relex_ext.methods import METHODS, Options

Float64 = NDArray[np.float64]

KINDS = ("walk", "drift", "saturating", "oscillating", "jumping")
DIMENSIONS = (256, 1024, 4096)
REACHES = (0.25, 0.5, 1.0)
"""How far a drift is asked about, in windows."""
WORTH = 0.2
"""The least skill that a drift's secant has, noise and all."""
FINE = 300
"""Points in the window behind the newest checkpoint at which the truth is known."""


@dataclass(frozen=True)
class Run:
    """One draw."""

    kind: str
    steps: tuple[int, ...]
    reach: float
    """What is asked about, in windows."""
    scan: Scan
    course: dict[str, Float64]
    """Without noise, per tensor (T + FINE, 3): in orthonormal directions."""

    @property
    def target(self) -> float:
        return self.steps[-1] * (1.0 + self.reach)

    def later(self) -> Float64:
        """The steps at which the truth is known."""
        found: Float64 = self.steps[-1] * (1.0 + np.arange(1, FINE + 1) / FINE)
        return found

    def skill(self, options: Options, moved: bool = False) -> Float64:
        """Of the method's forecasts, in full, of the course alone: 1 − ‖f − D‖²/‖D‖², at each of
        :meth:`later`. ``moved``: f from where the method sees the newest checkpoint, not from there
        itself, as Case.horizon has it (relex's line passes by it)."""
        count, (along, own, far) = len(self.steps), np.zeros((3, FINE))
        asked = [*self.later().tolist(), float(self.steps[-1])]
        for name, course in self.course.items():
            source = Source(name, self.scan.grams[name])
            weights, _ = METHODS[options.method].weigh(source, self.steps, asked, options)
            seen = weights @ course[:count]
            f = seen[:-1] - (seen[-1] if moved else course[count - 1])
            true = course[count:] - course[count - 1]
            along += (f * true).sum(axis=1)
            own += (f * f).sum(axis=1)
            far += (true * true).sum(axis=1)
        return (2.0 * along - own) / np.maximum(far, np.finfo(np.float64).tiny)

    def skill_at_target(self, options: Options) -> float:
        return float(self.skill(options)[round(self.reach * FINE) - 1])

    def horizon(self, options: Options) -> float:
        """How far ahead, in windows, the forecast stays nearer to the course than the newest
        checkpoint is, up to the target."""
        bad = np.flatnonzero(self.skill(options, moved=True) <= 0.0)
        return min(self.reach, float(bad[0]) / FINE if len(bad) else np.inf)


def draw(
    kind: str,
    rng: np.random.Generator,
    steps: Sequence[int],
    tensors: int = 1,
    rho: float | None = None,
) -> Run:
    """A run of a kind, with its course's shape, strength and dimension drawn from wide ranges."""
    count, columns = len(steps), int(rng.choice(DIMENSIONS))
    window = np.array(steps) / steps[-1]
    time = count * np.concatenate([window, 1.0 + np.arange(1, FINE + 1) / FINE])
    directions = _directions(rng, columns, tensors)
    noise = rng.normal(size=(count, columns)) / np.sqrt(columns)
    noise *= np.sqrt(np.diff(time[:count], prepend=0.0))[:, None]
    reach = float(rng.choice(REACHES)) if kind == "drift" else 1.0
    if rho is None:
        rho = _strength(kind, rng, reach, count)
    if kind == "walk" and rng.random() < 0.5:
        _remember(noise, float(rng.choice([0.5, 0.9])))
    # Along the three directions: where it is at each time.
    course = np.zeros((len(time), 3))
    course[:, 0] = time
    if kind == "saturating":
        scale = count * rng.uniform(0.3, 3.0)
        course[:, 0] = _saturating(time, scale) / _saturating(count, scale) * count
    elif kind == "oscillating":
        course[:, 0] = _oscillating(rng, time, count)
    course *= np.sqrt(rho)
    if kind == "jumping":
        at = int(rng.integers(count // 7, count - count // 5))
        course[at:, 1] = 10.0 ** rng.uniform(0.7, 1.5) * np.sqrt(1.0 + rho)
        if rng.random() < 0.5:
            course[at:, 2] = (time[at:] - time[at]) * np.sqrt(rho)
            course[at:, 0] -= course[at:, 2]
    seen = course[:count] @ directions + np.cumsum(noise, axis=0)
    grams, courses = {}, {}
    for i, part in enumerate(np.array_split(np.arange(columns), tensors)):
        name = f"model.layers.{i}.mlp.up_proj.weight"
        grams[name] = seen[:, part] @ seen[:, part].T
        # The same lengths and angles in three numbers.
        angles = np.linalg.cholesky(directions[:, part] @ directions[:, part].T)
        courses[name] = course @ angles
    return Run(kind, tuple(steps), reach, Scan(tuple(steps), grams, {}, {}), courses)


def _directions(rng: np.random.Generator, columns: int, tensors: int) -> Float64:
    """Three of length 1, (3, columns); of several tensors some move far more than others."""
    found = rng.normal(size=(3, columns))
    if tensors > 1:
        parts = np.array_split(np.arange(columns), tensors)
        found *= np.concatenate([np.full(len(p), np.exp(rng.normal())) for p in parts])
    found /= np.linalg.norm(found, axis=1)[:, None]
    return found


def _remember(noise: Float64, momentum: float) -> None:
    for t in range(1, len(noise)):
        noise[t] += momentum * noise[t - 1]


def _strength(kind: str, rng: np.random.Generator, reach: float, count: int) -> float:
    """The drift's; of a plain one enough for a secant to ``reach`` windows ahead to have a skill of
    ``WORTH`` and more."""
    if kind != "drift":
        return 0.0 if kind == "walk" else float(10.0 ** rng.uniform(-1.0, 0.5))
    ahead = reach * count
    while True:
        rho = 10.0 ** rng.uniform(-2.5, 0.5)
        if (ahead * rho - reach) / (ahead * rho + 1.0) >= WORTH:
            return float(rho)


def _saturating(time: Float64 | float, scale: float) -> Float64:
    found: Float64 = scale * -np.expm1(-np.asarray(time) / scale)
    return found


def _oscillating(rng: np.random.Generator, time: Float64, count: int) -> Float64:
    """A drift whose velocity swings, 0.3 to 1.5 times its mean to either side."""
    period, phase = count * rng.uniform(0.4, 1.1), rng.uniform(0.0, 2.0 * np.pi)
    swing = rng.uniform(0.3, 1.5) * period / (2.0 * np.pi)
    found: Float64 = time + swing * (np.sin(2.0 * np.pi * time / period + phase) - np.sin(phase))
    return found
