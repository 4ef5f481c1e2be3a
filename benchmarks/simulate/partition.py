"""Which columns of which tensors each rank has, as the product shares them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from relex_ext.plan import TensorPlan
from relex_ext.room import SPAN
from relex_ext.world.partition import cut_large, shares_of
from simulate.models import trajectory


class Part(NamedTuple):
    tensor: int
    begin: int
    end: int

    @property
    def columns(self) -> int:
        return self.end - self.begin


def partition(columns: Sequence[int], whole: Sequence[bool], ranks: int) -> list[list[Part]]:
    """Each rank's parts. ``whole``: tensors that are never cut, as those of power iteration."""
    sizes = {str(tensor): count for tensor, count in enumerate(columns)}
    # One row: only the sizes' proportions count, and the product adds up every row's bytes.
    tensors = trajectory(sizes, rows=1).tensors
    items = [
        TensorPlan(tensor, SPAN, False, "power" if uncut else "gram")
        for tensor, uncut in zip(tensors, whole, strict=True)
    ]
    shares = shares_of(cut_large(items, ranks), ranks)
    return [[Part(int(item.tensor.name), *item.columns) for item in mine] for mine in shares]
