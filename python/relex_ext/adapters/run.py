"""The run over adapters: scan and combine tensor by tensor, as the engine does for whole ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.adapters.gram import gram
from relex_ext.adapters.movement import BLOCK, movements
from relex_ext.adapters.trajectory import LowRank
from relex_ext.backends import Backend, Strips
from relex_ext.backends.reference import ReferenceBackend
from relex_ext.dtypes import CODES, ITEM_SIZE
from relex_ext.files import Files, extents
from relex_ext.output import Output
from relex_ext.plan import Plan, TensorPlan
from relex_ext.writer import Ticket, Writer, settle

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class AdapterRun:
    """Has the methods of :class:`relex_ext.engine.Run`. A context manager."""

    def __init__(
        self,
        plan: Plan,
        steps: tuple[int, ...],
        backend: Backend,
        output: Output | None,
        tick: Callable[[int], None],
    ) -> None:
        self._keep = plan.strip_budget
        self._steps = steps
        self._backend = backend
        self._output = output
        self._tick = tick
        self._files = Files(mapped=False)
        self._writer = Writer()
        self._written: list[Ticket] = []

    def __enter__(self) -> AdapterRun:
        self._writer.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.__exit__()

    def scan(self, item: TensorPlan) -> Float64:
        """G (T, T); zeros where no adapter touches the tensor."""
        tensor = _low_rank(item)
        if not tensor.pairs:
            return np.zeros((len(self._steps), len(self._steps)))
        self._tick(tensor.nbytes - tensor.base.nbytes)
        return gram(tensor, self._files, self._steps)

    def combine(self, item: TensorPlan, weights: Float64) -> None:
        """Write every target of one tensor. ``weights``: (targets, T)."""
        tensor, output = _low_rank(item), self._output
        if output is None or tensor.columns == 0:
            return
        dtype = output.dtype_of(tensor)
        wide = dtype == "F32" or isinstance(self._backend, ReferenceBackend)
        for begin, end, sums in self._movements(tensor, weights, wide):
            base = self._base(tensor, begin, end)
            buffers = []
            for total in sums:
                parts = _parts(total, wide)
                buffers.append(self._rounded(tensor, base, parts, dtype, end - begin))
            self._write(partial(output.write, tensor, begin, end, buffers))
        self._tick(tensor.nbytes)

    def skip(self, item: TensorPlan) -> None:
        """Nothing is held between scan and combine."""

    def finish(self) -> None:
        """All results are written."""
        while self._written:
            settle(self._written.pop(0))

    def _movements(
        self, tensor: LowRank, weights: Float64, wide: bool
    ) -> Iterator[tuple[int, int, Sequence[Float64 | None]]]:
        """(first element, end, each target's movement, None where it has none)."""
        if not tensor.pairs or not weights.any():
            for begin in range(0, tensor.columns, BLOCK):
                yield begin, min(begin + BLOCK, tensor.columns), [None] * len(weights)
            return
        kind = np.float64 if wide else np.float32
        width = tensor.shape[1]
        found = movements(tensor, weights, self._files, kind, self._keep)
        for begin, end, sums in found:
            yield begin * width, end * width, [total.ravel() for total in sums]

    def _base(self, tensor: LowRank, begin: int, end: int) -> NDArray[np.uint8]:
        strip = np.empty((end - begin) * ITEM_SIZE[tensor.base.dtype], np.uint8)
        where = extents([tensor.base], begin, end)
        address = np.array([strip.ctypes.data], np.uint64)
        self._files.read(tensor.name, [tensor.base], where, address)
        return strip

    def _rounded(
        self,
        tensor: LowRank,
        base: NDArray[np.uint8],
        parts: Sequence[Float32],
        dtype: str,
        columns: int,
    ) -> NDArray[np.uint8]:
        """base + Σ parts in the output's dtype. Without parts its very bits, if that is theirs."""
        if not parts and dtype == tensor.base.dtype:
            return base
        rows = [base.ctypes.data, *(part.ctypes.data for part in parts)]
        codes = [CODES[tensor.base.dtype], *(CODES["F32"] for _ in parts)]
        start = 0 if parts else rows[0]  # the sum, or base + 0·(base − base)
        strips = Strips(
            np.array(rows, np.uint64), np.array(codes, np.uint8), start, codes[0], columns
        )
        weights = np.full((1, len(rows)), 1.0 if parts else 0.0)
        found = np.empty(columns * ITEM_SIZE[dtype], np.uint8)
        address = np.array([found.ctypes.data], np.uint64)
        self._backend.combine(strips, weights, address, CODES[dtype])
        return found

    def _write(self, task: Callable[[], Any]) -> None:
        """Beside the arithmetic; two blocks wait at most."""
        if len(self._written) == 2:
            settle(self._written.pop(0))
        self._written.append(self._writer.submit(task))


def _parts(total: Float64 | None, wide: bool) -> list[Float32]:
    """A movement as fp32 numbers that add up to it."""
    if total is None:
        return []
    with np.errstate(over="ignore", invalid="ignore"):
        high = total.astype(np.float32)
        if not wide:
            return [high]
        low = (total - high).astype(np.float32)
    return [high, np.where(np.isfinite(high), low, np.float32(0.0))]


def _low_rank(item: TensorPlan) -> LowRank:
    assert isinstance(item.tensor, LowRank)
    return item.tensor
