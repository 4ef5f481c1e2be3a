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


class ReferenceBackend:
    """``delta_dtype`` F16: base and rows are rounded to it, and so is their difference, as in the
    authors' delta store. The base that a movement is added to is not."""

    def __init__(self, delta_dtype: str = "F32") -> None:
        self._half = delta_dtype == "F16"
        self.name = "reference (numpy float64" + (", fp16 deltas)" if self._half else ")")

    def zeros(self, *shape: int) -> NDArray[np.float64]:
        return np.zeros(shape)

    def fetch(self, sums: Any) -> NDArray[np.float64]:
        return np.asarray(sums, np.float64)

    def _deltas(self, strips: Strips) -> NDArray[np.float64]:
        base = self._rounded(_base(strips))
        rows = zip(strips.rows.tolist(), strips.dtypes.tolist(), strict=True)
        values = (self._rounded(_values(row, dtype, strips.columns)) for row, dtype in rows)
        with np.errstate(invalid="ignore"):  # Inf − Inf: reported, with the tensor and the step
            return np.stack([self._rounded(row - base) for row in values])

    def _rounded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self._half:
            return values
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float64)

    def gram(self, strips: Strips, gram: Any) -> None:
        deltas = self._deltas(strips)
        gram += deltas @ deltas.T

    def power_step(
        self,
        strips: Strips,
        u: NDArray[np.float32],
        y: Any,
        energy: Any | None,
    ) -> None:
        deltas = self._deltas(strips)
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
        base, deltas = _base(strips), self._deltas(strips)
        for address, w in zip(out.tolist(), weights, strict=True):
            moved = w @ deltas
            sums = np.where(moved == 0.0, base, base + moved)  # −0 + 0 would lose a frozen −0
            values = from_float64(sums, NAMES[out_dtype])
            words = np.ascontiguousarray(values)
            ctypes.memmove(address, words.ctypes.data, words.nbytes)
