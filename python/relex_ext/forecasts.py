"""What forecasts are made of: spectra, the fits of their coefficients, weights.

Notation (RELEX, arXiv 2605.21468): Δ_t = θ_t − θ₀ for T checkpoints, G = ΔΔᵀ = Σ_k σ_k² u_k u_kᵀ,
coefficients c_k = σ_k u_k, directions v_k = Δᵀu_k / σ_k. What becomes of them: methods.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relex_ext.errors import InputError

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
class Source:
    """What a scan knows of one tensor, for a method to ask.

    ``found``: G (T, T), power iteration's leading pairs, or None where nothing was scanned.
    ``rows``: the checkpoints that count, by their rows in it; None: all.
    """

    name: str
    found: NDArray[np.float64] | Spectrum | None
    rows: Sequence[int] | None = None

    @property
    def gram(self) -> NDArray[np.float64]:
        """G of the rows.

        Raises:
            InputError: there is none.
        """
        if isinstance(self.found, Spectrum):
            what = "this method" if self.rows is None else "a subset"
            raise InputError(
                f"scan: tensor {self.name}: holds power iteration's vectors of all "
                f"{len(self.found.u)} steps; {what} needs a scan with solver gram"
            )
        if self.found is None:
            raise InputError(f"scan: tensor {self.name}: missing")
        return self.found if self.rows is None else self.found[np.ix_(self.rows, self.rows)]

    def spectrum(self, rank: int) -> Spectrum:
        """The leading ``rank`` pairs, fewer if there are fewer rows.

        Raises:
            InputError: the scan does not hold them.
        """
        if not isinstance(self.found, Spectrum) or self.rows is not None:
            return spectrum_of_gram(self.gram, rank)
        u, sigma = self.found.u, self.found.sigma
        if min(rank, len(u)) > len(sigma):
            raise InputError(
                f"scan: tensor {self.name}: expected rank {rank}, found {len(sigma)}; "
                "scan again with that rank or solver gram"
            )
        return Spectrum(u[:, :rank], sigma[:rank], self.found.energy)


@dataclass(frozen=True, slots=True)
class Component:
    """One rank of one tensor: σ, its share of the energy, and the curve through c_t = σ u_t."""

    sigma: float
    explained_variance: float
    slope: float | None
    """Of a line: change of c per step (or per row, with ``time_axis="index"``)."""
    intercept: float | None
    r2: float | None
    """1 − SSE/SST of the curve over the steps it was fitted to; None where none was."""
    parameters: tuple[float, ...] = ()
    """The curve's: (a, b); a polynomial's, the highest power first; a sine's (A, f, φ, C)."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What to write: for every tensor one weight per checkpoint and target.

    ``tensors``: name → float64 of shape (targets, T); ``components``: name → the fits they came
    from, leading rank first, empty for a frozen tensor, a method without any, or hand-made weights;
    ``strengths``: λ of each target and ``method``: the method's name, empty for hand-made weights;
    ``carried``: tensors that are copied from the newest checkpoint, for they hold NaN or Inf.
    """

    steps: tuple[int, ...]
    targets: tuple[float, ...]
    tensors: Mapping[str, NDArray[np.float64]]
    components: Mapping[str, tuple[Component, ...]]
    strengths: tuple[float, ...] = ()
    method: str = ""
    carried: tuple[str, ...] = ()


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
    return slope, intercept, r_squared(y, slope * x + intercept)


def r_squared(y: NDArray[np.float64], fitted: NDArray[np.float64]) -> float:
    """1 − SSE/SST; 0 for a constant y."""
    residual = y - fitted
    total = float(((y - y.mean()) ** 2).sum())
    varies = total > (len(y) * np.finfo(np.float64).eps) ** 2 * float(y @ y)
    return 1.0 - float(residual @ residual) / total if varies else 0.0
