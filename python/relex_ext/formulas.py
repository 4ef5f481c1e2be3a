"""Each method's weights for one tensor. methods.py has the table and what the options mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from relex_ext.forecasts import Component, Source, Spectrum

if TYPE_CHECKING:
    from relex_ext.methods import Options

Found: TypeAlias = "tuple[NDArray[np.float64], tuple[Component, ...]]"
"""Weights (targets, T) of one tensor, and the fits behind them."""

NEGLIGIBLE = 1e-6
"""σ_k/σ₁ up to which a direction is dropped: below it G holds rounding."""


def _directions(spectrum: Spectrum, rank: int) -> list[tuple[float, NDArray[np.float64], float]]:
    """(σ, u, share of the energy) of the leading directions that are more than rounding: none of
    a frozen tensor."""
    found = []
    for k in range(min(rank, len(spectrum.sigma))):
        sigma = float(spectrum.sigma[k])
        if sigma <= NEGLIGIBLE * float(spectrum.sigma[0]):
            break
        share = min(1.0, sigma**2 / spectrum.energy)  # fp32 sums may round it past 1
        found.append((sigma, spectrum.u[:, k], share))
    return found


def _followed(
    source: Source, steps: Sequence[int], at: Sequence[float], options: Options, pinned: bool
) -> Found:
    """Weights of Σ_k ĉ_k(s) v_k; pinned: of Σ_k (ĉ_k(s) − ĉ_k(s_T)) v_k."""
    weights = np.zeros((len(at), len(steps)))
    components = []
    for sigma, u, share in _directions(source.spectrum(options.rank), options.rank):
        values, curve = options.course.follow(steps, sigma * u, [*at, steps[-1]])
        moved = values[:-1] - values[-1] if pinned else values[:-1]
        weights += np.outer(moved / sigma, u)
        slope, intercept = curve.parameters if options.fit == "linear" else (None, None)
        components.append(Component(sigma, share, slope, intercept, curve.r2, curve.parameters))
    return weights, tuple(components)


def relex(
    source: Source, steps: Sequence[int], targets: Sequence[float], options: Options
) -> Found:
    return _followed(source, steps, options.scaled(targets).tolist(), options, pinned=False)


def pinned(
    source: Source, steps: Sequence[int], targets: Sequence[float], options: Options
) -> Found:
    """θ_T + Σ_k (ĉ_k(s*) − ĉ_k(s_T)) v_k."""
    weights, fits = _followed(source, steps, options.scaled(targets).tolist(), options, pinned=True)
    return weights + newest(steps, targets), fits


def reconstruct(
    source: Source, steps: Sequence[int], targets: Sequence[float], options: Options
) -> Found:
    """An observed step's delta in the span of the leading directions: Σ_k ⟨Δ_t, v_k⟩ v_k."""
    rows = [list(steps).index(int(target)) for target in targets]
    weights = np.zeros((len(targets), len(steps)))
    components = []
    for sigma, u, share in _directions(source.spectrum(options.rank), options.rank):
        weights += np.outer(u[rows], u)
        components.append(Component(sigma, share, None, None, None))
    return weights, tuple(components)


def fit_reconstruct(
    source: Source, steps: Sequence[int], targets: Sequence[float], options: Options
) -> Found:
    """The curve at an observed step; by rows, at that step's row."""
    at: Sequence[float] = targets
    if options.time_axis == "index":  # rows counted back from the newest
        at = [steps[-1] - (len(steps) - 1) + list(steps).index(int(t)) for t in targets]
    return _followed(source, steps, at, options, pinned=False)


def latest(
    source: Source, steps: Sequence[int], targets: Sequence[float], options: Options
) -> Found:
    return newest(steps, targets), ()


def secant(
    source: Source, steps: Sequence[int], targets: Sequence[float], options: Options
) -> Found:
    """Along the line from the base, step 0, to the newest: θ₀ + s*/s_T Δ_T."""
    return newest(steps, targets) * (options.scaled(targets) / steps[-1])[:, None], ()


def two_point(
    source: Source, steps: Sequence[int], targets: Sequence[float], options: Options
) -> Found:
    """Along the line through two checkpoints: θ_T + (s* − s_T)/(s_T − s_j) (Δ_T − Δ_j)."""
    j = 0 if options.window is None else len(steps) - 1 - options.window
    reach = (options.scaled(targets) - steps[-1]) / (steps[-1] - steps[j])
    weights = newest(steps, targets) * (1.0 + reach)[:, None]
    weights[:, j] = -reach
    return weights, ()


def first_update(
    source: Source, steps: Sequence[int], targets: Sequence[float], options: Options
) -> Found:
    """θ₀ + α Δ_1; by default α = s*/s_1."""
    weights = np.zeros((len(targets), len(steps)))
    scale = options.scaled(targets) / steps[0] if options.alpha is None else options.alpha
    weights[:, 0] = scale
    return weights, ()


def ema(source: Source, steps: Sequence[int], targets: Sequence[float], options: Options) -> Found:
    """The checkpoints' average, each weighted by decay^(s_T − s_t)."""
    decay = 0.9 if options.decay is None else options.decay
    shares = decay ** (steps[-1] - np.array(steps, np.float64))
    return np.tile(shares / shares.sum(), (len(targets), 1)), ()


def newest(steps: Sequence[int], targets: Sequence[float]) -> NDArray[np.float64]:
    """e_T, for every target."""
    weights = np.zeros((len(targets), len(steps)))
    weights[:, -1] = 1.0
    return weights
