"""G → weights. A method is a function of the Gram matrix, the steps and the target; nothing here
reads a shard.

Notation (RELEX, arXiv 2605.21468): Δ_t = θ_t − θ₀ for T checkpoints, G = ΔΔᵀ = Σ_k σ_k² u_k u_kᵀ,
coefficients c_k = σ_k u_k, a least-squares line ĉ_k(s) = a_k s + b_k through them, and

    θ̂(s*) = θ₀ + Σ_k ĉ_k(s*) v_k = θ₀ + Σ_t w_t Δ_t ,   w = Σ_k u_k ĉ_k(s*) / σ_k ,

because v_k = Δᵀu_k / σ_k.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relex_ext.errors import InputError

TIME_AXES = ("step", "index")

FARTHEST = 1e15
"""The largest step: float64 still counts by ones there, and a folder can be named after it."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The leading part of G's eigendecomposition, σ descending.

    ``u``: (T, k) float64, orthonormal columns, each with Σ_t u_t ≥ 0; ``sigma``: (k,) float64,
    singular values of the stacked deltas; ``energy``: Σ_t ‖Δ_t‖², the sum of all σ².
    """

    u: NDArray[np.float64]
    sigma: NDArray[np.float64]
    energy: float


@dataclass(frozen=True, slots=True)
class Component:
    """One rank of one tensor: σ, its share of the energy, and the line through c_t = σ u_t."""

    sigma: float
    explained_variance: float
    slope: float
    """Change of c per step (or per row, with ``time_axis="index"``)."""
    intercept: float
    r2: float
    """1 − SSE/SST of the line over the observed steps."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What to write: for every tensor one weight per checkpoint and target.

    ``tensors``: name → float64 of shape (targets, T); ``components``: name → the fits they came
    from, leading rank first, empty for a frozen tensor or hand-made weights.
    """

    steps: tuple[int, ...]
    targets: tuple[float, ...]
    tensors: Mapping[str, NDArray[np.float64]]
    components: Mapping[str, tuple[Component, ...]]


@dataclass(frozen=True, slots=True)
class Options:
    """How a target becomes weights. ``step_scale`` multiplies every target before the line."""

    rank: int = 1
    time_axis: str = "step"
    step_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"rank: expected at least 1, found {self.rank}")
        if self.time_axis not in TIME_AXES:
            expected = " or ".join(TIME_AXES)
            raise InputError(f"time_axis: expected {expected}, found {self.time_axis}")
        if not math.isfinite(self.step_scale):
            raise InputError(f"step_scale: expected a finite number, found {self.step_scale}")


def check_targets(targets: Iterable[float] | float) -> tuple[float, ...]:
    """Targets as a tuple of finite, distinct floats."""
    given = targets if isinstance(targets, Iterable) and not isinstance(targets, str) else [targets]
    try:
        numbers = tuple(float(target) for target in given)
    except (TypeError, ValueError):
        raise InputError(f"target_steps: expected numbers, found {targets!r}") from None
    if not numbers:
        raise InputError("target_steps: expected at least one, found none")
    for target in numbers:
        if not math.isfinite(target):
            raise InputError(f"target_steps: expected a finite step, found {target}")
        if abs(target) > FARTHEST:
            raise InputError(f"target_steps: expected at most {FARTHEST:.0e}, found {target}")
    if len(set(numbers)) != len(numbers):
        raise InputError("target_steps: expected each once, found one twice")
    return numbers


def spectrum_of_gram(gram: NDArray[np.float64], rank: int) -> Spectrum:
    """The leading ``rank`` pairs of a symmetric positive semidefinite G (T, T), by LAPACK."""
    values, vectors = np.linalg.eigh(gram)
    k = min(rank, len(values))
    sigma = np.sqrt(np.maximum(values[::-1][:k], 0.0))
    return Spectrum(orient(vectors[:, ::-1][:, :k]), sigma, float(np.trace(gram)))


def orient(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flip columns so that their coefficients sum to at least zero: the sign SVD leaves open."""
    return np.ascontiguousarray(u * np.where(u.sum(axis=0) < 0, -1.0, 1.0))


def fit_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Ordinary least squares y ≈ slope·x + intercept and its R²; a constant y has R² = 0."""
    mean = x.mean()
    centred = x - mean
    slope = float(centred @ y / (centred @ centred))
    intercept = float(y.mean() - slope * mean)
    residual = y - (slope * x + intercept)
    total = float(((y - y.mean()) ** 2).sum())
    varies = total > (len(y) * np.finfo(np.float64).eps) ** 2 * float(y @ y)
    return slope, intercept, 1.0 - float(residual @ residual) / total if varies else 0.0


def axis_of(steps: Sequence[int], options: Options) -> NDArray[np.float64]:
    """Where the rows lie on the time axis of the fit."""
    if options.time_axis == "index":  # the authors' script: row numbers against step targets
        return np.arange(len(steps), dtype=np.float64)
    return np.array(steps, np.float64)


def relex(
    spectrum: Spectrum, steps: Sequence[int], targets: Sequence[float], options: Options
) -> tuple[NDArray[np.float64], tuple[Component, ...]]:
    """Weights (targets, T) of the rank-r linear forecast of one tensor, and its fits.

    A frozen tensor (zero energy) gets zero weights and no component; so do ranks whose σ is zero.
    """
    x = axis_of(steps, options)
    weights = np.zeros((len(targets), len(steps)))
    components = []
    at = np.array(targets, np.float64) * options.step_scale
    floor = spectrum.energy * len(steps) * np.finfo(np.float64).eps
    for k in range(min(options.rank, len(spectrum.sigma))):
        sigma, u = float(spectrum.sigma[k]), spectrum.u[:, k]
        if sigma * sigma <= floor:
            break
        slope, intercept, r2 = fit_line(x, sigma * u)
        weights += np.outer((slope * at + intercept) / sigma, u)
        share = min(1.0, sigma**2 / spectrum.energy)  # fp32 sums may round it past 1
        components.append(Component(sigma, share, slope, intercept, r2))
    return weights, tuple(components)
