"""The run over adapters: scan and combine tensor by tensor, as the engine does for whole ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.adapters.beside import Beside
from relex_ext.adapters.gram import gram
from relex_ext.adapters.movement import BLOCK, movements
from relex_ext.adapters.planning import AdapterPlan
from relex_ext.adapters.trajectory import LowRank
from relex_ext.backends import Backend, Strips
from relex_ext.backends.reference import ReferenceBackend
from relex_ext.dtypes import CODES, ITEM_SIZE, converted, to_float32
from relex_ext.files import Files, extents
from relex_ext.output import Output
from relex_ext.plan import TensorPlan
from relex_ext.writer import Ticket, Writer, settle

Float64 = NDArray[np.float64]

CACHED = 1 << 14
"""Elements at a time that stay in a core's cache from one operation to the next."""

BEYOND_FP32 = np.uint64((1 << 29) - 1)
"""Bits of an fp64 significand that fp32 has no room for."""


class AdapterRun:
    """Has the methods of :class:`relex_ext.engine.Run`. A context manager."""

    def __init__(
        self,
        plan: AdapterPlan,
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
        self._beside = Beside(plan.workers)
        self._stack = ExitStack()
        self._written: list[Ticket] = []

    def __enter__(self) -> AdapterRun:
        self._stack.enter_context(self._writer)
        self._stack.enter_context(self._beside)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def scan(self, item: TensorPlan) -> Float64:
        """G (T, T); zeros where no adapter touches the tensor."""
        tensor = _low_rank(item)
        if not tensor.pairs:
            return np.zeros((len(self._steps), len(self._steps)))
        self._tick(tensor.nbytes - tensor.base.nbytes)
        return gram(tensor, self._files, self._steps, self._beside)

    def combine(self, item: TensorPlan, weights: Float64) -> None:
        """Write every target of one tensor. ``weights``: (targets, T)."""
        tensor, output = _low_rank(item), self._output
        if output is None or tensor.columns == 0:
            return
        dtype = output.dtype_of(tensor)
        narrow = dtype == "BF16" and not isinstance(self._backend, ReferenceBackend)
        kind = np.float32 if narrow else np.float64
        for begin, end, sums in self._movements(tensor, weights, kind):
            base = self._base(tensor, begin, end)
            buffers = [self._rounded(base, tensor.base.dtype, total, dtype) for total in sums]
            self._write(partial(output.write, tensor, begin, end, buffers))
        self._tick(tensor.nbytes)

    def skip(self, item: TensorPlan) -> None:
        """Nothing is held between scan and combine."""

    def finish(self) -> None:
        """All results are written."""
        while self._written:
            settle(self._written.pop(0))

    def _movements(
        self, tensor: LowRank, weights: Float64, kind: type[np.floating[Any]]
    ) -> Iterator[tuple[int, int, Sequence[Float64 | None]]]:
        """(first element, end, each target's movement, None where it has none)."""
        if not tensor.pairs or not weights.any():
            for begin in range(0, tensor.columns, BLOCK):
                yield begin, min(begin + BLOCK, tensor.columns), [None] * len(weights)
            return
        width = tensor.shape[1]
        found = movements(tensor, weights, self._files, kind, self._keep, self._beside)
        for begin, end, sums in found:
            yield begin * width, end * width, [total.ravel() for total in sums]

    def _base(self, tensor: LowRank, begin: int, end: int) -> NDArray[np.uint8]:
        strip = np.empty((end - begin) * ITEM_SIZE[tensor.base.dtype], np.uint8)
        where = extents([tensor.base], begin, end)
        address = np.array([strip.ctypes.data], np.uint64)
        self._files.read(tensor.name, [tensor.base], where, address)
        return strip

    def _rounded(
        self, base: NDArray[np.uint8], found: str, moved: Float64 | None, dtype: str
    ) -> NDArray[np.uint8]:
        """base + movement in the output's dtype; the base's very bits where it does not move."""
        if moved is None:
            return np.frombuffer(converted(base.tobytes(), found, dtype), np.uint8)
        values = _sums(base, found, moved, dtype)
        if dtype == "F32":
            return values.view(np.uint8)
        strips = Strips(
            np.array([values.ctypes.data], np.uint64), np.array([CODES["F32"]], np.uint8),
            0, CODES["F32"], len(values),
        )  # fmt: skip
        rounded = np.empty(len(values) * ITEM_SIZE[dtype], np.uint8)
        address = np.array([rounded.ctypes.data], np.uint64)
        self._backend.combine(strips, np.ones((1, 1)), address, CODES[dtype])
        return rounded

    def _write(self, task: Callable[[], Any]) -> None:
        """Beside the arithmetic; two blocks wait at most."""
        if len(self._written) == 2:
            settle(self._written.pop(0))
        self._written.append(self._writer.submit(task))


def _sums(base: NDArray[np.uint8], found: str, moved: Float64, dtype: str) -> NDArray[np.float32]:
    """base + movement in fp32: rounded to nearest for an F32 output, else rounded to odd, which
    leaves the one rounding that counts to who makes 16 bits of it."""
    item = ITEM_SIZE[found]
    sums = np.empty(len(base) // item, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # Inf and NaN pass through
        for begin in range(0, len(sums), CACHED):
            end = min(begin + CACHED, len(sums))
            values = to_float32(base[begin * item : end * item], found).astype(np.float64)
            values += moved[begin:end]
            if dtype != "F32":
                bits = values.view(np.uint64)
                lost = ((bits & BEYOND_FP32) != 0).astype(np.uint64)
                bits &= ~BEYOND_FP32
                bits |= lost << np.uint64(29)
            sums[begin:end] = values
    return sums


def _low_rank(item: TensorPlan) -> LowRank:
    assert isinstance(item.tensor, LowRank)
    return item.tensor
