"""Σ_t w_t s_t B_t A_t at some elements, in float64, by the definition: to check others with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relex_ext.adapters.stacks import sides
from relex_ext.adapters.trajectory import LowRank
from relex_ext.files import Files

Float64 = NDArray[np.float64]


def movement_of(
    tensor: LowRank, weights: Float64, files: Files, begin: int, end: int
) -> tuple[Float64, Float64, int]:
    """Of elements [begin, end): the movement, the sum of its terms' magnitudes, and how many terms
    there are."""
    moved, moves = np.zeros((2, end - begin))
    used = np.flatnonzero(weights).tolist() if tensor.pairs else []
    if not used:
        return moved, moves, 0
    left, right = sides(tensor)
    first, last = begin // right.width, -(-end // right.width)
    inside = slice(begin - first * right.width, end - first * right.width)
    for step in used:
        scale = float(weights[step]) * tensor.pairs[step].scale
        rows = left.read(files, [step], first, last, np.float64).T
        columns = right.read(files, [step], 0, right.width, np.float64)
        moved += scale * (rows @ columns).ravel()[inside]
        moves += abs(scale) * (np.abs(rows) @ np.abs(columns)).ravel()[inside]
    return moved, moves, sum(tensor.pairs[step].rank for step in used)
