"""Factors of several steps side by side, read where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.adapters.opening import Pair
from relex_ext.adapters.trajectory import LowRank
from relex_ext.dtypes import ITEM_SIZE, to_float32
from relex_ext.files import Files
from relex_ext.headers import TensorEntry


@dataclass(frozen=True, slots=True)
class Side:
    """One factor of each step as a matrix (r, width): A as it is stored, or B's transpose."""

    name: str
    entries: tuple[TensorEntry, ...]
    is_b: bool

    @property
    def width(self) -> int:
        return self.entries[0].shape[0 if self.is_b else 1]

    def rank(self, step: int) -> int:
        return self.entries[step].shape[1 if self.is_b else 0]

    def read(
        self, files: Files, steps: Sequence[int], begin: int, end: int, kind: type[np.floating[Any]]
    ) -> NDArray[Any]:
        """Columns [begin, end) at ``steps``, (Σr, end − begin), exactly or rounded to ``kind``."""
        pieces = [piece for step in steps for piece in self._pieces(step, begin, end)]
        entries = [entry for entry, _, _ in pieces]
        lengths = np.array([length for _, _, length in pieces], np.uint64)
        starts = np.cumsum(lengths) - lengths
        data = np.empty(int(lengths.sum()), np.uint8)
        offsets = np.array([offset for _, offset, _ in pieces], np.uint64)
        files.read(self.name, entries, (offsets, lengths), starts + np.uint64(data.ctypes.data))
        found = np.empty((sum(map(self.rank, steps)), end - begin), kind)
        at = row = 0
        for step in steps:
            entry, rank = self.entries[step], self.rank(step)
            nbytes = rank * (end - begin) * ITEM_SIZE[entry.dtype]
            values = to_float32(data[at : at + nbytes], entry.dtype)
            block = values.reshape(-1, rank).T if self.is_b else values.reshape(rank, -1)
            found[row : row + rank] = block
            at, row = at + nbytes, row + rank
        return found

    def _pieces(self, step: int, begin: int, end: int) -> Iterator[tuple[TensorEntry, int, int]]:
        """(entry, offset, bytes) of what lies together in the file."""
        entry, rank = self.entries[step], self.rank(step)
        item = ITEM_SIZE[entry.dtype]
        if self.is_b or end - begin == self.width:
            length = rank * (end - begin) * item
            yield entry, entry.offset + begin * rank * item, length
        else:
            for i in range(rank):
                offset = entry.offset + (i * self.width + begin) * item
                yield entry, offset, (end - begin) * item


def sides(tensor: LowRank) -> tuple[Side, Side]:
    """(left, right) with Δ_t = s_t · left_tᵀ right_t as the tensor is stored."""
    a = Side(tensor.name, tuple(pair.a for pair in tensor.pairs), is_b=False)
    b = Side(tensor.name, tuple(pair.b for pair in tensor.pairs), is_b=True)
    return (a, b) if tensor.pairs[0].transposed else (b, a)


def groups(pairs: Sequence[Pair], steps: Sequence[int], most: int) -> list[list[int]]:
    """``steps`` in their order, cut so that each group's ranks sum to ``most``, or one step's."""
    found: list[list[int]] = []
    total = 0
    for step in steps:
        total += pairs[step].rank
        if not found or total > most:
            found.append([])
            total = pairs[step].rank
        found[-1].append(step)
    return found
