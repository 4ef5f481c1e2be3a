"""base + Σ_t w_t s_t B_t A_t in blocks of rows: products of stacked factors, rounded once.

Products are in fp32 where the output is BF16 and else in fp64, sums of products in fp64. Blocks and
their order depend on the shapes alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.adapters.beside import Beside
from relex_ext.adapters.stacks import Side, groups, sides
from relex_ext.adapters.trajectory import LowRank
from relex_ext.files import Files

Float64 = NDArray[np.float64]

BLOCK = 1 << 20
"""Elements of a block; at least a row."""

CHUNK = 512
"""Rows of factors in one product."""


def block_rows(tensor: LowRank) -> int:
    """Rows of the tensor that are computed at once."""
    return max(1, BLOCK // tensor.shape[1])


def memory(tensor: LowRank, targets: int) -> int:
    """Bytes that each worker takes at most, without the factors that are kept."""
    ranks = [pair.rank for pair in tensor.pairs]
    chunk = min(sum(ranks), max(CHUNK, *ranks))
    rows, columns = min(block_rows(tensor), tensor.shape[0]), tensor.shape[1]
    # Sums, one product and its parts; the results of three blocks, two of them being written.
    return 8 * (rows * columns * (3 * targets + 3) + chunk * (3 * rows + 2 * columns))


def stack_bytes(tensor: LowRank, item: int) -> int:
    """Bytes of all the factors that each block needs whole."""
    return item * tensor.shape[1] * sum(pair.rank for pair in tensor.pairs)


def movements(
    tensor: LowRank,
    weights: Float64,
    files: Files,
    kind: type[np.floating[Any]],
    keep: int,
    beside: Beside,
) -> Iterator[tuple[int, int, Sequence[Float64]]]:
    """(first row, end, each target's Σ_t w_t Δ_t there), from the first row to the last.

    ``weights``: (targets, T); ``kind``: of the products; ``keep``: bytes of factors that may stay
    in memory from block to block, instead of being read again.
    """
    used = np.flatnonzero(weights.any(axis=0)).tolist()
    left, right = sides(tensor)
    chunks = groups(tensor.pairs, used, CHUNK)

    def whole(steps: Sequence[int]) -> NDArray[Any]:
        return right.read(files, steps, 0, right.width, kind)

    resident = stack_bytes(tensor, np.dtype(kind).itemsize) <= keep
    kept = [whole(steps) for steps in chunks] if resident else None
    size = block_rows(tensor)

    def one(begin: int) -> tuple[int, int, Sequence[Float64]]:
        end = min(begin + size, left.width)
        sums = [np.zeros((end - begin, right.width)) for _ in weights]
        for i, steps in enumerate(chunks):
            some = left.read(files, steps, begin, end, np.float64)
            others = whole(steps) if kept is None else kept[i]
            for total, w in zip(sums, weights, strict=True):
                total += (some * _scales(tensor, left, steps, w)).astype(kind).T @ others
        return begin, end, sums

    yield from beside.each(one, range(0, left.width, size))


def _scales(tensor: LowRank, side: Side, steps: Sequence[int], weights: Float64) -> Float64:
    """w_t s_t for each row of the factors, as a column."""
    scales = [float(weights[step]) * tensor.pairs[step].scale for step in steps]
    return np.repeat(scales, [side.rank(step) for step in steps])[:, None]
