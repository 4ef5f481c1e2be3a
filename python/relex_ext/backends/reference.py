"""The same operations in plain numpy float64: slow, obvious, what the others are tested against."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.backends.contract import Strips
from relex_ext.dtypes import ITEM_SIZE, NAMES, from_float64, to_float32


def _values(address: int, dtype: int, columns: int) -> NDArray[np.float64]:
    name = NAMES[dtype]
    memory = (ctypes.c_uint8 * (columns * ITEM_SIZE[name])).from_address(address)
    return to_float32(np.frombuffer(bytes(memory), np.uint8), name).astype(np.float64)


def _base(strips: Strips) -> NDArray[np.float64]:
    if strips.base == 0:
        return np.zeros(strips.columns)
    return _values(strips.base, strips.base_dtype, strips.columns)


def _deltas(strips: Strips) -> NDArray[np.float64]:
    base = _base(strips)
    rows = zip(strips.rows.tolist(), strips.dtypes.tolist(), strict=True)
    return np.stack([_values(row, dtype, strips.columns) - base for row, dtype in rows])


class ReferenceBackend:
    name = "reference (numpy float64)"

    def zeros(self, *shape: int) -> NDArray[np.float64]:
        return np.zeros(shape)

    def fetch(self, sums: Any) -> NDArray[np.float64]:
        return np.asarray(sums, np.float64)

    def gram(self, strips: Strips, gram: Any) -> None:
        deltas = _deltas(strips)
        gram += deltas @ deltas.T

    def power_step(
        self,
        strips: Strips,
        u: NDArray[np.float32],
        y: Any,
        energy: Any | None,
    ) -> None:
        deltas = _deltas(strips)
        y += deltas @ (deltas.T @ u.astype(np.float64))
        if energy is not None:
            energy += np.einsum("td,td->t", deltas, deltas)

    def combine(
        self,
        strips: Strips,
        weights: NDArray[np.float64],
        out: NDArray[np.uint64],
        out_dtype: int,
    ) -> None:
        base, deltas = _base(strips), _deltas(strips)
        for address, w in zip(out.tolist(), weights, strict=True):
            sums = base + w @ deltas if w.any() else base  # −0 + 0 would lose a frozen −0
            values = from_float64(sums, NAMES[out_dtype])
            words = np.ascontiguousarray(values)
            ctypes.memmove(address, words.ctypes.data, words.nbytes)
