"""⟨Δ_i, Δ_j⟩ = s_i s_j ⟨B_iᵀB_j, A_i A_jᵀ⟩: inner products of updates from those of their factors.

In float64. Blocks and their order depend on the shapes alone, and so do the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from relex_ext.adapters.beside import Beside
from relex_ext.adapters.stacks import Side, groups, sides
from relex_ext.adapters.trajectory import LowRank
from relex_ext.errors import InputError
from relex_ext.files import Files
from relex_ext.nonfinite import count_nonfinite

Float64 = NDArray[np.float64]

TILE = 1024
"""Rows of factors that meet others at once."""

COLUMNS = 2048
"""Of factors that are in memory at once."""


def memory(tensor: LowRank) -> int:
    """Bytes that each worker takes at most."""
    ranks = [pair.rank for pair in tensor.pairs]
    rows = min(sum(ranks), max(TILE, *ranks))
    return 8 * rows * (3 * min(max(tensor.shape), COLUMNS) + 4 * rows)


def gram(tensor: LowRank, files: Files, steps: Sequence[int], beside: Beside) -> Float64:
    """G (T, T), float64.

    Raises:
        InputError: a factor holds NaN or Inf.
    """
    count = len(tensor.pairs)
    found = np.zeros((count, count))
    left, right = sides(tensor)
    tiles = groups(tensor.pairs, range(count), TILE)
    with np.errstate(invalid="ignore", over="ignore"):  # found below, with the step
        for i, rows in enumerate(tiles):
            for columns in tiles[: i + 1]:
                product = _inner(left, files, rows, columns, beside)
                product *= _inner(right, files, rows, columns, beside)
                sums = np.add.reduceat(product, _starts(tensor, rows), axis=0)
                sums = np.add.reduceat(sums, _starts(tensor, columns), axis=1)
                found[np.ix_(rows, columns)] = sums
        scales = np.array([pair.scale for pair in tensor.pairs])
        found *= np.outer(scales, scales)
    for row in np.flatnonzero(~np.isfinite(found.diagonal())).tolist():
        raise _not_finite(tensor, row, steps[row])
    lower = np.tril(found)
    symmetric: Float64 = lower + np.tril(lower, -1).T
    return symmetric


def _inner(
    side: Side, files: Files, rows: Sequence[int], columns: Sequence[int], beside: Beside
) -> Float64:
    """Inner products of the rows of one side at some steps with those at others."""
    total = np.zeros((sum(map(side.rank, rows)), sum(map(side.rank, columns))))

    def one(begin: int) -> Float64:
        end = min(begin + COLUMNS, side.width)
        some = side.read(files, rows, begin, end, np.float64)
        others = some if rows == columns else side.read(files, columns, begin, end, np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # errstate is a thread's own
            product: Float64 = some @ others.T
        return product

    for product in beside.each(one, range(0, side.width, COLUMNS)):
        total += product
    return total


def _starts(tensor: LowRank, steps: Sequence[int]) -> list[int]:
    ranks = [tensor.pairs[step].rank for step in steps]
    return [sum(ranks[:i]) for i in range(len(ranks))]


def _not_finite(tensor: LowRank, row: int, step: int) -> InputError:
    pair = tensor.pairs[row]
    for entry in (pair.a, pair.b):
        count = count_nonfinite(entry)
        if count:
            what = f"{count} NaN or Inf"
            break
    else:
        entry, what = pair.b, "an update beyond float64"
    return InputError(f"{entry.shard.path}: tensor {entry.name}: {what} in step {step}")
