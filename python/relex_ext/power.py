"""The leading singular pairs without the Gram matrix, one pass over the data per iteration.

Block power iteration in u-space: a step returns Y = G U for a block of T-vectors U. Instead of
keeping the last block only, all blocks are kept and Rayleigh–Ritz is done in their span (a block
Krylov space, Golub & Van Loan, Matrix Computations, §10.3). That costs T-sized work and turns the
(σ₂/σ₁)² rate of plain power iteration into its square root's: at σ₂/σ₁ = 0.97 a handful of passes
instead of two hundred, and never more than T / k, when the span is all of R^T.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from relex_ext.forecasts import Spectrum, orient

GUARD = 3
"""Vectors in a block beyond the wanted rank: they widen the gap that convergence depends on."""

TINY = 1e-30
"""Mean squared delta below which the kernels' fp32 products would underflow."""

Step = Callable[[NDArray[np.float32]], NDArray[np.float64]]


class OutOfRange(Exception):
    """The deltas' products leave fp32: frozen, too small, too large or not finite. Gram can tell,
    and squares them in fp64."""


def check_range(y: NDArray[np.float64], energy: NDArray[np.float64], columns: int) -> None:
    """After the first pass, which fills ``energy``: ‖Δ_t‖² over so many columns.

    Raises:
        OutOfRange: this data is not for power iteration.
    """
    finite = np.isfinite(energy).all() and np.isfinite(y).all()
    if not finite or not energy.sum() > TINY * columns * len(energy):
        raise OutOfRange


def block_size(rows: int, rank: int) -> int:
    """Vectors per pass for T = ``rows``."""
    return min(rows, rank + GUARD)


def start_block(rows: int, k: int) -> NDArray[np.float64]:
    """(T, k): low polynomials in time, which a training trajectory is close to, and one random
    vector, so that no leading direction can be orthogonal to the start."""
    time = np.linspace(-1.0, 1.0, rows)
    block = np.stack([time**i for i in range(k)], axis=1)
    block[:, -1] = np.random.default_rng(0).standard_normal(rows)
    return np.linalg.qr(block)[0]


def solve(
    step: Step, rows: int, rank: int, tolerance: float = 1e-6, most: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    """The leading ``rank`` eigenpairs of G.

    Args:
        step: U (T, k) float32 → G U (T, k) float64; k varies.
        rows: T.
        rank: pairs wanted.
        tolerance: stop when ‖G u − σ² u‖ ≤ tolerance · σ² for each.
        most: passes at most; None: until the space is full.

    Returns:
        u (T, rank), σ² (rank,) descending, relative residuals (rank,), passes made.
    """
    rank = min(rank, rows)
    basis = np.empty((rows, 0))
    images = np.empty((rows, 0))
    block = start_block(rows, block_size(rows, rank))
    passes = 0
    while True:
        narrow = np.ascontiguousarray(block, np.float32)
        images = np.hstack([images, step(narrow)])
        basis = np.hstack([basis, narrow.astype(np.float64)])
        passes += 1
        # The kernels got the block rounded to fp32, so the basis is orthonormal to 1e-7 only:
        # images = G basis holds exactly, and R undoes the rest.
        q, r = np.linalg.qr(basis)
        applied = np.linalg.solve(r.T, images.T).T  # G q
        values, vectors = np.linalg.eigh((q.T @ applied + applied.T @ q) / 2)
        order = np.argsort(values)[::-1]
        values, vectors = values[order], vectors[:, order]
        ritz = q @ vectors
        defects = applied @ vectors - ritz * values
        wanted = values[:rank]
        floor = max(float(values[0]), np.finfo(np.float64).tiny)
        scale = np.maximum(wanted, floor * np.finfo(np.float32).eps)
        residuals = np.linalg.norm(defects[:, :rank], axis=0) / scale
        full = basis.shape[1] >= rows or (most is not None and passes >= most)
        if full or bool((residuals <= tolerance).all()):
            return orient(ritz[:, :rank]), np.maximum(wanted, 0.0), residuals, passes
        block = _extend(q, defects, block_size(rows, rank))
        if block.shape[1] == 0:
            return orient(ritz[:, :rank]), np.maximum(wanted, 0.0), residuals, passes


def spectrum(u: NDArray[np.float64], values: NDArray[np.float64], energy: float) -> Spectrum:
    return Spectrum(u, np.sqrt(values), energy)


def _extend(q: NDArray[np.float64], defects: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Orthonormal directions outside q, from the leading residuals; at most k and T − q's."""
    room = q.shape[0] - q.shape[1]
    fresh = defects[:, : min(k, room)].copy()
    for _ in range(2):  # once leaves what rounding lets through
        fresh -= q @ (q.T @ fresh)
    norms = np.linalg.norm(fresh, axis=0)
    fresh = fresh[:, norms > 0.0] / norms[norms > 0.0]
    if fresh.shape[1] == 0:
        return np.empty((q.shape[0], 0))
    left, sizes, _ = np.linalg.svd(fresh, full_matrices=False)
    block = left[:, sizes > 1e-6 * sizes[0]]
    block -= q @ (q.T @ block)
    orthonormal: NDArray[np.float64] = np.linalg.qr(block)[0]
    return orthonormal
