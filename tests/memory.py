"""Tensors in memory as the kernels are given them: raw words at any byte address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import oracle
from oracle import Float64, Words
from relex_ext.backends import Strips

CODES = {"F32": 0, "F16": 1, "BF16": 2}
"""Of the compiled core, stated here once more: they are its contract."""


@dataclass
class Memory:
    """A base (or none) and rows, with their float64 values for the oracle."""

    base: Words | None
    base_dtype: str
    rows: list[Words]
    dtypes: list[str]
    offset: int = 0
    """Bytes from 64-byte alignment at which every strip starts, one more for each row."""
    _held: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def columns(self) -> int:
        return self.rows[0].size

    @property
    def values(self) -> list[Float64]:
        return [oracle.to_float64(w, d) for w, d in zip(self.rows, self.dtypes, strict=True)]

    @property
    def base_values(self) -> Float64:
        if self.base is None:
            return np.zeros(self.columns)
        return oracle.to_float64(self.base, self.base_dtype)

    @property
    def deltas(self) -> Float64:
        return oracle.deltas(self.base_values, self.values)

    def strips(self, begin: int = 0, end: int | None = None) -> Strips:
        """Columns [begin, end), copied to their odd places."""
        cut = slice(begin, self.columns if end is None else end)
        base = 0 if self.base is None else self._place(self.base[cut], self.offset)
        rows = [self._place(w[cut], self.offset + t + 1) for t, w in enumerate(self.rows)]
        return Strips(
            np.array(rows, np.uint64),
            np.array([CODES[d] for d in self.dtypes], np.uint8),
            base,
            CODES[self.base_dtype],
            self.rows[0][cut].size,
        )

    def _place(self, words: Words, offset: int) -> int:
        shift = offset if self.offset else 0  # 0: all aligned
        buffer = np.full(words.nbytes + 192, 0xFF, np.uint8)  # NaN around it
        start = -buffer.ctypes.data % 64 + shift % 64
        buffer[start : start + words.nbytes] = np.ascontiguousarray(words).view(np.uint8)
        self._held.append(buffer)
        return int(buffer.ctypes.data + start)


def addresses(buffers: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """Where writable buffers lie, as combine is given its outputs."""
    assert all(buffer.flags.c_contiguous and buffer.flags.writeable for buffer in buffers)
    return np.array([buffer.ctypes.data for buffer in buffers], np.uint64)


def training_run(
    rows: int,
    columns: int,
    base_dtype: str = "BF16",
    row_dtypes: Sequence[str] = ("BF16",),
    *,
    seed: int = 0,
    offset: int = 0,
    step: float = 1e-4,
    with_base: bool = True,
) -> Memory:
    """Weights of a network's size drifting along one direction, with noise, in the given dtypes.

    ``step``: how far a weight moves per row; by default half a per cent of its size, already
    several times what RLVR does.
    """
    rng = np.random.default_rng([seed, rows, columns])
    base = oracle.round_to(rng.normal(0, 0.02, columns), base_dtype)
    start = oracle.to_float64(base, base_dtype)
    direction = rng.normal(0, step, columns)
    dtypes = [row_dtypes[t % len(row_dtypes)] for t in range(rows)]
    words = []
    for t, dtype in enumerate(dtypes):
        moved = start + direction * (t + 1) ** 0.9 + rng.normal(0, step / 3, columns)
        words.append(oracle.round_to(moved, dtype))
    return Memory(base if with_base else None, base_dtype, words, dtypes, offset)
