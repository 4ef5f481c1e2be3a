"""What a random walk would show: in closed form, and drawn by flipping the signs of updates.

Notation: d_t = Δ_t − Δ_{t−1} with Δ_0 = 0 is the update that leads to checkpoint t,
H = (⟨d_t, d_u⟩) the updates' Gram matrix (T, T), L the lower triangle of ones: G = L H Lᵀ.

In high dimension the updates of a random walk are mutually orthogonal, H = diag(h), and
(L diag(h) Lᵀ)_{ij} = Σ_{t ≤ min(i, j)} h_t: everything a walk shows follows from the sizes of its
updates alone. Whether a trajectory shows more than chance is decided by sign flips (Fisher's
randomisation test): without drift, an update's opposite is as likely as the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

SHORTEST = 8
"""Updates below which nothing is said about their memory; also the fewest blocks."""

ITERATIONS = 5
BYTES = 16 << 20
"""Of each stack of matrices or vectors that is worked on at once."""


def updates_of(gram: Float64) -> Float64:
    """G (…, T, T) → H (…, T, T), differences along both axes from the base's zero row."""
    rows = np.diff(gram, axis=-2, prepend=0.0)
    return np.diff(rows, axis=-1, prepend=0.0)


def sizes_of(gram: Float64) -> Float64:
    """G (…, T, T) → ‖d_t‖² (…, T), never negative."""
    own = np.diagonal(gram, axis1=-2, axis2=-1)
    cross = np.diagonal(gram, offset=1, axis1=-2, axis2=-1)
    sizes = own.copy()
    sizes[..., 1:] += own[..., :-1] - 2.0 * cross
    return np.asarray(np.maximum(sizes, 0.0))


def walk_gram(sizes: Float64) -> Float64:
    """‖d_t‖² (…, T) → the Gram matrix (…, T, T) of a walk whose updates are orthogonal."""
    reached = np.cumsum(sizes, axis=-1)
    earlier = np.minimum.outer(np.arange(sizes.shape[-1]), np.arange(sizes.shape[-1]))
    return np.asarray(reached[..., earlier])


def cosine(updates: Float64, gap: int) -> float:
    """Σ_t ⟨d_t, d_{t+g}⟩ / √(Σ ‖d_t‖² Σ ‖d_{t+g}‖²) of H (T, T); 0 where nothing moves."""
    sizes = np.maximum(np.diagonal(updates), 0.0)  # a path on a line leaves e little but rounding
    scale = np.sqrt(sizes[:-gap].sum()) * np.sqrt(sizes[gap:].sum())
    return float(np.trace(updates, gap) / scale) if scale > 0.0 else 0.0


def innovations(updates: Float64, phi: float) -> Float64:
    """H (…, T, T) → that of e_t = d_t − φ d_{t−1}."""
    found = np.array(updates)
    found[..., 1:, :] -= phi * updates[..., :-1, :]
    found[..., 1:] -= phi * found[..., :-1]
    return found


@dataclass(frozen=True, slots=True)
class Memory:
    """How updates remember the ones before: d_t = ``coefficient``·d_{t−1} + e_t, and what is left
    of the memory in e reaches less than ``block`` updates back."""

    coefficient: float = 0.0
    block: int = 1


def memory_of(updates: Float64) -> Memory:
    """The short memory of H (T, T), apart from the drift.

    Momentum makes neighbouring updates alike, d_t = φ d_{t−1} + e_t, without any drift. A drift
    makes updates alike at every distance. So the plateau c that the cosines have at gaps of T/2
    and more is taken for drift, and φ = (cos₁ − c) / (1 − c), not below 0: the noise of rounded
    checkpoints makes neighbours unlike, and draws that leave it out of account are straighter.
    The block is the smallest gap from which on three cosines of e in a row are within two standard
    deviations (of sign flips) or 0.02 of e's own plateau; at most T/8, which leaves eight blocks.

    Flipping blocks of d itself does not do: in high dimension the likeness of neighbours across a
    block's border stands out against draws that lack it, and momentum passes for drift
    (tests/test_evidence_nulls.py). Prewhitening before resampling blocks is Andrews & Monahan's
    (Econometrica 60, 1992) remedy.
    """
    count = len(updates)
    if count < SHORTEST:
        return Memory()
    plateau = _plateau(updates)
    phi = float(np.clip((cosine(updates, 1) - plateau) / (1.0 - plateau), 0.0, 0.95))
    inner = innovations(updates, phi)
    plateau = _plateau(inner)
    most = count // SHORTEST
    quiet = [_is_quiet(inner, gap, plateau) for gap in range(1, most + 3)]
    blocks = (b for b in range(1, most) if all(quiet[b - 1 : b + 2]))
    return Memory(phi, next(blocks, most))


def _plateau(updates: Float64) -> float:
    count = len(updates)
    return float(np.clip(np.mean([cosine(updates, g) for g in range(count // 2, count)]), 0, 0.9))


def _is_quiet(updates: Float64, gap: int, plateau: float) -> bool:
    sizes = np.maximum(np.diagonal(updates), 0.0)  # a path on a line leaves e little but rounding
    scale = np.sqrt(sizes[:-gap].sum()) * np.sqrt(sizes[gap:].sum())
    spread = np.linalg.norm(np.diagonal(updates, gap)) / scale if scale > 0.0 else 0.0
    return abs(cosine(updates, gap) - plateau) <= max(2.0 * spread, 0.02)


class Flips:
    """Random walks with the updates of a trajectory and its short memory.

    A draw flips the signs of whole blocks of the innovations e_t = d_t − φ d_{t−1} and puts the
    path together again: with A the matrix of e = A d, draws have the Gram matrix
    L A⁻¹ (s sᵀ ∘ A H Aᵀ) A⁻ᵀ Lᵀ. The first "draw" flips nothing: it is the trajectory itself.
    """

    def __init__(self, count: int, memory: Memory, draws: int, seed: int = 0) -> None:
        blocks = -(-count // memory.block)
        flips = np.random.default_rng(seed).integers(0, 2, (1 + draws, blocks))
        flips[0] = 0
        self.signs: Float64 = np.ascontiguousarray(1.0 - 2.0 * flips.T)
        """(blocks, 1 + draws)."""
        self._memory = memory
        self._block_of = np.arange(count) // memory.block
        behind = np.subtract.outer(np.arange(count), np.arange(count))
        powers = np.power(memory.coefficient, np.maximum(behind, 0.0))  # 0⁰ = 1
        self.filter: Float64 = np.where(behind >= 0, powers, 0.0)
        """A⁻¹ (T, T): d = A⁻¹ e."""
        self.path: Float64 = np.cumsum(self.filter, axis=0)
        """L A⁻¹ (T, T): Δ = L A⁻¹ e."""

    def quadratic(self, tables: Float64) -> Float64:
        """Σ_{tu} s_t s_u M_{tu} for every draw and every symmetric M of (m, T, T): (m, 1 + draws).

        Products of signs serve all matrices at once, and only those of one triangle are made.
        """
        if self._memory.block > 1:
            starts = np.arange(0, tables.shape[-1], self._memory.block)
            tables = np.add.reduceat(np.add.reduceat(tables, starts, axis=1), starts, axis=2)
        found = np.zeros((len(tables), self.signs.shape[1]))
        for b in range(len(self.signs)):
            row = 2.0 * tables[:, b, b:]
            row[:, 0] /= 2.0
            found += row @ (self.signs[b:] * self.signs[b])
        return found

    def straightness(self, updates: Float64) -> Float64:
        """‖Δ_T‖² / Σ ‖d_t‖² of every draw, (n, 1 + draws), of tensors (n, T, T) that move."""
        inner = innovations(updates, self._memory.coefficient)
        forms = (np.outer(self.path[-1], self.path[-1]), self.filter.T @ self.filter)
        found = self.quadratic(np.concatenate([inner * form for form in forms]))
        return np.asarray(found[: len(inner)] / found[len(inner) :])

    def cosines(self, updates: Float64, gaps: Sequence[int]) -> Float64:
        """:func:`cosine` of every draw of H (T, T), (gaps, 1 + draws)."""
        inner, rows = innovations(updates, self._memory.coefficient), self.filter
        across = [rows[:-g].T @ rows[g:] for g in gaps]
        forms = [
            *((form + form.T) / 2.0 for form in across),
            *(rows[:-g].T @ rows[:-g] for g in gaps),
            *(rows[g:].T @ rows[g:] for g in gaps),
        ]
        found = self.quadratic(inner * np.array(forms)).reshape(3, len(gaps), -1)
        scale = np.sqrt(np.maximum(found[1], 0.0)) * np.sqrt(np.maximum(found[2], 0.0))
        return np.asarray(np.divide(found[0], scale, np.zeros_like(scale), where=scale > 0.0))

    def spectra(self, updates: Float64, rank: int) -> tuple[Float64, Float64]:
        """Of every draw's G: cumulative shares of the leading ``rank`` eigenvalues, (1 + draws,
        rank), and the leading eigenvector, (1 + draws, T).

        By subspace iteration for many draws at once, so that each multiplication by H is one matrix
        product. It starts from the eigenvectors of a walk with equal updates, sines, and has more
        than the rank to spare; a walk's eigenvalues fall like 1/k², and a few rounds suffice.
        """
        inner = innovations(updates, self._memory.coefficient)
        count = len(inner)
        total = self.quadratic((inner * (self.path.T @ self.path))[None])[0]
        width = min(count, 2 * rank + 2)
        batch = max(1, BYTES // (8 * count * width))
        parts = [
            self._leading(inner, self.signs[self._block_of, i : i + batch], width)
            for i in range(0, self.signs.shape[1], batch)
        ]
        values = np.concatenate([values for values, _ in parts])[:, ::-1][:, :rank]
        shares = np.cumsum(np.maximum(values, 0.0), axis=1) / total[:, None]
        return np.minimum(shares, 1.0), np.concatenate([vectors for _, vectors in parts])

    def _leading(self, inner: Float64, signs: Float64, width: int) -> tuple[Float64, Float64]:
        """Ritz values (n, width), ascending, and the leading Ritz vector (n, T) for ``signs``
        (T, n)."""
        count, draws = signs.shape
        phase = np.outer(np.arange(1, count + 1), np.arange(width) + 0.5) * np.pi / (count + 0.5)
        basis = np.broadcast_to(np.sin(phase)[:, None], (count, draws, width))

        def product(matrix: Float64, x: Float64) -> Float64:
            return (matrix @ x.reshape(count, -1)).reshape(x.shape)

        def gram(x: Float64) -> Float64:
            e = product(inner, product(self.path.T, x) * signs[..., None])
            return product(self.path, e * signs[..., None])

        for _ in range(ITERATIONS):
            q = np.linalg.qr(gram(basis).transpose(1, 0, 2))[0]
            basis = np.ascontiguousarray(q.transpose(1, 0, 2))
        small = q.transpose(0, 2, 1) @ gram(basis).transpose(1, 0, 2)
        values, vectors = np.linalg.eigh(small)
        return values, np.einsum("ntk,nk->nt", q, vectors[:, :, -1])


def share_reaching(draws: Float64) -> float | None:
    """p of the first of ``draws`` among all: (1 + #{draw ≥ value}) / (1 + draws); None for none.

    What is equal but for rounding counts as reached: flipping all signs changes nothing.
    """
    if len(draws) < 2:
        return None
    floor = draws[0] - 1e-9 * float(np.abs(draws).max())
    return float(np.mean(draws >= floor))
