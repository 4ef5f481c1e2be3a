"""The CUDA kernels run on this processor (relex_ext._cuda_emulated), in memory that is watched."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from memory import CODES, Memory
from oracle import Float64, Words
from relex_ext.backends import Strips

cuda: Any = pytest.importorskip(
    "relex_ext._cuda_emulated", reason="relex_ext was not built with RELEX_EMULATION=ON"
)

ROWS = (1, 2, 15, 16, 17, 33, 75, 160, 161, 200)
"""Around the tensor cores' 16 rows, a tile's 32, a job's 160."""

COLUMNS = (1, 7, 8, 9, 63, 127, 255, 1000, 8191, 8192, 8193, 24653)
"""Around a vector's 8 bf16 numbers, a chunk, a part's 8192; the last is four parts."""

SHAPES = (
    *((t, n) for t in ROWS for n in (9, 1000)),
    *((t, n) for t in (2, 17) for n in COLUMNS),
    (75, 24653),
    (161, 8192),
    (200, 8193),
)
"""(T, columns): every T with few columns, every number of columns with few rows, and large ones."""

SCHEDULES = (
    {},
    {"RELEX_EMULATED_ORDER": "descending"},
    {"RELEX_EMULATED_ORDER": "random:7", "RELEX_EMULATED_COPIES": "early"},
)
"""A kernel that computes different bytes under these lacks a barrier or a wait."""

SHARED = (99, 163, 227)
"""KiB of shared memory that a block may have on sm_86 and sm_89, sm_80, and sm_90 and later."""

_MARGIN = 64


class Watched:
    """An array amid bytes that must not change."""

    def __init__(self, values: NDArray[Any], alignment: int = 16) -> None:
        self._buffer = np.full(values.nbytes + 2 * _MARGIN + alignment, 0x5A, np.uint8)
        begin = _MARGIN + -(self._buffer.ctypes.data + _MARGIN) % alignment
        self._range = slice(begin, begin + values.nbytes)
        self.address = int(self._buffer.ctypes.data + begin)
        self._buffer[self._range] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self.array = self._buffer[self._range].view(values.dtype).reshape(values.shape)

    def check(self) -> None:
        rest = self._buffer.copy()
        rest[self._range] = 0x5A
        assert (rest == 0x5A).all(), "wrote outside its array"


@dataclass(frozen=True)
class Emulated:
    """The three operations on host memory; ``workspace``: 0 is the least that works, 1 the most."""

    workspace: float = 1.0

    def _space(self, needs: tuple[int, int]) -> Watched:
        least, most = needs
        assert 0 < least <= most
        # Whole numbers of bytes, most of them no multiple of anything.
        return Watched(np.full(round(least + self.workspace * (most - least)), 0xFF, np.uint8))

    def gram(self, strips: Strips, gram: Float64) -> None:
        rows, out = len(strips.rows), Watched(gram)
        space = self._space(cuda.gram_needs(rows, strips.columns))
        cuda.gram(*common(strips), out.address, space.address, space.array.size, 0)
        out.check(), space.check()
        gram[...] = out.array

    def power_step(
        self, strips: Strips, u: NDArray[np.float32], y: Float64, energy: Float64 | None
    ) -> None:
        rows, k = u.shape
        vectors, sums = Watched(u), Watched(y)
        squares = None if energy is None else Watched(energy)
        space = self._space(cuda.power_step_needs(rows, strips.columns, k))
        cuda.power_step(
            *common(strips), vectors.address, k, sums.address,
            0 if squares is None else squares.address, space.address, space.array.size, 0,
        )  # fmt: skip
        for watched in (vectors, sums, space):
            watched.check()
        y[...] = sums.array
        if energy is not None and squares is not None:
            squares.check()
            energy[...] = squares.array

    def combine(
        self, strips: Strips, weights: Float64, out: NDArray[np.uint64], out_dtype: int
    ) -> None:
        targets, rows = weights.shape
        held = Watched(weights)
        space = self._space(cuda.combine_needs(rows, targets))
        cuda.combine(
            *common(strips), held.address, targets, out, out_dtype, space.address,
            space.array.size, 0,
        )  # fmt: skip
        held.check(), space.check()


def common(strips: Strips) -> tuple[Any, ...]:
    """The arguments that the operations begin with."""
    return strips.rows, strips.dtypes, strips.base, strips.base_dtype, strips.columns


class Fenced:
    """Strips that lie against pages which cannot be touched: an access beyond them is an error."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._held: list[Any] = []

    def place(self, words: Words, at_end: bool) -> int:
        """Their address, right before such a page, or right after one."""
        page = mmap.PAGESIZE
        room = -(-words.nbytes // page) * page
        memory = mmap.mmap(-1, room + 2 * page)
        view = np.frombuffer(memory, np.uint8)
        begin = page + (room - words.nbytes if at_end else 0)
        view[begin : begin + words.nbytes] = np.ascontiguousarray(words).view(np.uint8)
        for fence in (0, page + room):
            place = ctypes.c_void_p(view.ctypes.data + fence)
            assert self._libc.mprotect(place, ctypes.c_size_t(page), 0) == 0
        self._held.append((memory, view))
        return int(view.ctypes.data + begin)

    def strips(self, memory: Memory, at_end: bool) -> Strips:
        base = 0 if memory.base is None else self.place(memory.base, at_end)
        return Strips(
            np.array([self.place(row, at_end) for row in memory.rows], np.uint64),
            np.array([CODES[d] for d in memory.dtypes], np.uint8),
            base,
            CODES[memory.base_dtype],
            memory.columns,
        )

    @staticmethod
    def words(address: int, like: Words) -> bytes:
        """What was written to a place as large as that array."""
        return ctypes.string_at(address, like.nbytes)
