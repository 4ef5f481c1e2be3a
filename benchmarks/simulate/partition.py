"""Which columns of which tensors each rank has, by the rules of the product's own partition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

SPAN = 1 << 22
"""Columns whose sums are taken together, and which are never divided."""

LARGE = 0.5
"""Of a rank's fair share: a tensor beyond it is cut."""


class Part(NamedTuple):
    tensor: int
    begin: int
    end: int

    @property
    def columns(self) -> int:
        return self.end - self.begin


def partition(columns: Sequence[int], whole: Sequence[bool], ranks: int) -> list[list[Part]]:
    """About the same number of columns to each rank: the largest first, each to the rank that has
    the least so far and no other part of the same tensor. ``whole``: tensors that are never cut.

    A rank's parts of cut tensors come first, in the same order everywhere, so that ranks which add
    up their sums never wait for each other in a circle.
    """
    most = LARGE * sum(columns) / ranks
    cut = [_cut(i, n, 1 if whole[i] else ranks, most) for i, n in enumerate(columns)]
    loads = [0] * ranks
    having: list[set[int]] = [set() for _ in columns]
    taken: list[list[Part]] = [[] for _ in range(ranks)]
    for part in sorted((part for parts in cut for part in parts), key=lambda p: (-p.columns, p)):
        free = set(range(ranks)) - having[part.tensor]
        least = min(free, key=lambda r: (loads[r], r))
        having[part.tensor].add(least)
        loads[least] += part.columns
        taken[least].append(part)
    return [sorted(parts, key=lambda part: (len(cut[part.tensor]) == 1, part)) for parts in taken]


def _cut(tensor: int, columns: int, ranks: int, most: float) -> list[Part]:
    spans = -(-columns // SPAN)
    count = max(1, min(ranks, spans, int(-(-columns // max(most, 1.0)))))
    bounds = [min(spans * i // count * SPAN, columns) for i in range(count + 1)]
    return [Part(tensor, *pair) for pair in pairwise(bounds)]
