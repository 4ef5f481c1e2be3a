"""Explained variance, lines and straightness of a stack of Gram matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relex_ext.evidence.nulls import Float64, sizes_of, walk_gram

RANKS = 5


@dataclass(frozen=True, slots=True)
class Measures:
    """Of n tensors with T checkpoints, k = min(T, RANKS); ``null_…``: walks with the same updates.

    ``shares`` (n, k): cumulative; ``r2``, ``straightness`` (n,); ``missed`` and ``varied`` (n,):
    the sums of squares whose quotient r2_outside is made of, in units of the tensor's energy, zero
    where there is nothing to predict.
    """

    shares: Float64
    null_shares: Float64
    r2: Float64
    null_r2: Float64
    missed: Float64
    varied: Float64
    straightness: Float64


def measure(grams: Float64, steps: Sequence[int]) -> Measures:
    """Everything of a stack (n, T, T) of nonzero Gram matrices, each divided by its trace."""
    x = np.array(steps, np.float64)
    sizes = sizes_of(grams)
    shares, r2 = _fits(grams, x)
    walks = walk_gram(sizes)
    walks /= np.trace(walks, axis1=1, axis2=2)[:, None, None]
    null_shares, null_r2 = _fits(walks, x)
    missed, varied = _outside(grams, x)
    straightness = grams[:, -1, -1] / sizes.sum(axis=1)
    return Measures(shares, null_shares, r2, null_r2, missed, varied, straightness)


def line_r2(x: Float64, y: Float64) -> Float64:
    """R² of the least-squares line of each row of y (…, T) over x (T,): as forecasts.fit_line."""
    centred = x - x.mean()
    about = y - y.mean(axis=-1, keepdims=True)
    total = (about**2).sum(axis=-1)
    floor = (len(x) * np.finfo(np.float64).eps) ** 2 * (y**2).sum(axis=-1)
    explained = (about @ centred) ** 2 / (centred @ centred)
    share = np.divide(explained, total, out=np.zeros_like(total), where=total > floor)
    return np.asarray(np.minimum(share, 1.0))


def _fits(grams: Float64, x: Float64) -> tuple[Float64, Float64]:
    values, vectors = np.linalg.eigh(grams)
    leading = np.maximum(values[:, ::-1][:, :RANKS], 0.0)
    shares = np.minimum(np.cumsum(leading, axis=1), 1.0)  # of unit traces
    return shares, line_r2(x, vectors[:, :, -1])


def _outside(grams: Float64, x: Float64) -> tuple[Float64, Float64]:
    """Σ (c_t − ĉ_t)² and Σ (c_t − mean)² over the second half of the checkpoints, (n,) each, with
    c_t = ⟨Δ_t, v⟩ = G[t, :P] u / σ and the line ĉ of the first half, P = ⌊T/2⌋."""
    first = len(x) // 2
    missed, varied = np.zeros((2, len(grams)))
    if first < 2:
        return missed, varied
    values, vectors = np.linalg.eigh(grams[:, :first, :first])
    u = vectors[:, :, -1]
    moved = values[:, -1] > len(x) * np.finfo(np.float64).eps  # of a unit trace
    sigma = np.sqrt(np.where(moved, values[:, -1], 1.0))
    c = np.einsum("nts,ns->nt", grams[:, :, :first], u) / sigma[:, None]
    before, after = c[:, :first], c[:, first:]
    mean = x[:first].mean()
    centred = x[:first] - mean
    slope = before @ centred / (centred @ centred)
    line = before.mean(axis=1, keepdims=True) + slope[:, None] * (x[first:] - mean)
    about = after - after.mean(axis=1, keepdims=True)
    floor = (len(x) * np.finfo(np.float64).eps) ** 2 * (after**2).sum(axis=1)
    varies = moved & ((about**2).sum(axis=1) > floor)
    missed[varies] = ((after - line) ** 2).sum(axis=1)[varies]
    varied[varies] = (about**2).sum(axis=1)[varies]
    return missed, varied
