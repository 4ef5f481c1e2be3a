"""Which columns of which tensors each rank has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SPAN = 1 << 22
"""Columns that are never divided: enough for a rank to be busy, whole segments of the kernels."""


class Part(NamedTuple):
    tensor: int
    begin: int
    end: int

    @property
    def columns(self) -> int:
        return self.end - self.begin


def partition(columns: Sequence[int], ranks: int) -> list[list[Part]]:
    """About the same number of columns to each rank: the largest parts first, each to the rank that
    has the least so far. A tensor larger than a rank's fair share comes in equal parts of whole
    spans, none larger than that share. A rank's parts of divided tensors come first, in the same
    order on all ranks, so that ranks which add up their sums never wait for each other in a circle.
    """
    fair = max(SPAN, sum(columns) // ranks)
    parts = [part for i, n in enumerate(columns) for part in _parts(i, n, fair)]
    loads = [0] * ranks
    taken: list[list[Part]] = [[] for _ in range(ranks)]
    for part in sorted(parts, key=lambda part: (-part.columns, part)):
        least = loads.index(min(loads))
        loads[least] += part.columns
        taken[least].append(part)
    return [sorted(mine, key=lambda p: (p.columns == columns[p.tensor], p)) for mine in taken]


def _parts(tensor: int, columns: int, fair: int) -> list[Part]:
    count = -(-columns // fair)
    width = columns if count == 1 else -(-columns // count // SPAN) * SPAN
    return [Part(tensor, b, min(b + width, columns)) for b in range(0, columns, max(1, width))]
