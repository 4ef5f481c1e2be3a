"""The streaming run: tensor by tensor, scan → forecast → combine over the same windows."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from relex_ext import power
from relex_ext.backends import Backend, Strips
from relex_ext.dtypes import CODES, ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.forecasts import Spectrum, spectrum_of_gram
from relex_ext.output import Output
from relex_ext.plan import Plan, TensorPlan
from relex_ext.stream import Pass, Stream, Window, allow_many_files

Tick = Callable[[int], None]


class Run:
    """One run over a plan. Tensors are taken in the plan's order: for each, :meth:`scan` unless the
    plan has no solver for it, then :meth:`combine` if there are targets. A context manager.
    """

    def __init__(
        self,
        plan: Plan,
        steps: tuple[int, ...],
        backend: Backend,
        rank: int,
        output: Output | None,
        tick: Tick,
        rows: dict[str, tuple[int, ...]] | None = None,
    ) -> None:
        """``rows``: per tensor the checkpoints that combine has to read, where that is known."""
        allow_many_files()
        self.plan = plan
        self._steps = steps
        self._backend = backend
        self._rank = rank
        self._output = output
        self._tick = tick
        self._rows = rows or {}
        self._kept: list[Window] = []
        self._again: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._buffers: list[list[NDArray[np.uint8]]] = [[], []]
        self._turn = 0
        self._stream = Stream(plan.strip_budget, plan.io)

    def __enter__(self) -> Run:
        self._stream.start(self._passes())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._again.put(False)
        self._stream.__exit__(kind, error, trace)

    def _passes(self) -> Iterator[Pass]:
        """What will be read, in order. Runs on the stream's thread, ahead of the arithmetic."""
        for item in self.plan.tensors:
            if item.tensor.columns == 0:
                continue
            if item.solver != "none":
                yield Pass(item)
                while item.solver == "power" and not item.resident and self._again.get():
                    yield Pass(item)
            if self._output is not None and (item.solver == "none" or not item.resident):
                yield Pass(item, self._rows.get(item.tensor.name))

    # ---- scan ----------------------------------------------------------------------------------

    def scan(self, item: TensorPlan) -> NDArray[np.float64] | Spectrum:
        """G (T, T), or the leading spectrum where the plan says power iteration.

        Raises:
            InputError: the tensor holds NaN or Inf.
        """
        keep = item.resident
        if item.tensor.columns == 0:
            return self._empty(item)
        if item.solver == "gram":
            return self._gram(item, self._read(keep))
        if keep:
            windows = list(self._read(keep))
            found = self._power(item, lambda: iter(windows))
            if self._output is None:
                for _ in self._drain():
                    pass
            return found

        first = True

        def another_pass() -> Iterator[Window]:
            nonlocal first
            if not first:
                self._again.put(True)
            first = False
            return self._read(keep=False)

        try:
            return self._power(item, another_pass)
        finally:
            self._again.put(False)

    def _read(self, keep: bool) -> Iterator[Window]:
        """The next pass; windows are released as the next one is asked for, unless kept."""
        for window in self._stream.windows():
            yield window
            self._tick(window.nbytes)
            if keep:
                self._kept.append(window)
            else:
                window.release()

    def _empty(self, item: TensorPlan) -> NDArray[np.float64] | Spectrum:
        t = len(self._steps)
        if item.solver == "gram":
            return np.zeros((t, t))
        k = min(self._rank, t)
        return Spectrum(np.eye(t)[:, :k], np.zeros(k), 0.0)

    def _gram(self, item: TensorPlan, windows: Iterator[Window]) -> NDArray[np.float64]:
        t = len(self._steps)
        gram = np.zeros((t, t))
        for window in windows:
            self._backend.gram(window.strips, gram)
        gram += np.tril(gram, -1).T
        self._check_finite(item, np.diag(gram))
        return gram

    def _power(self, item: TensorPlan, read: Callable[[], Iterator[Window]]) -> Spectrum:
        t = len(self._steps)
        energy = np.zeros(t)
        passes = 0

        def step(u: NDArray[np.float32]) -> NDArray[np.float64]:
            nonlocal passes
            y = np.zeros(u.shape)
            for window in read():
                squares = energy if passes == 0 else None
                self._backend.power_step(window.strips, u, y, squares)
            if passes == 0:
                power.check_range(y, energy, item.tensor.columns)
            passes += 1
            return y

        try:
            u, values, _, _ = power.solve(step, t, self._rank)
        except power.OutOfRange:
            return spectrum_of_gram(self._gram(item, read()), min(self._rank, t))
        return power.spectrum(u, values, float(energy.sum()))

    def _check_finite(self, item: TensorPlan, squares: NDArray[np.float64]) -> None:
        for step, square in zip(self._steps, squares.tolist(), strict=True):
            if not np.isfinite(square):
                raise InputError(
                    f"tensor {item.tensor.name}: NaN or Inf in step {step} or the base"
                )

    # ---- combine -------------------------------------------------------------------------------

    def combine(self, item: TensorPlan, weights: NDArray[np.float64]) -> None:
        """Write every target of one tensor. ``weights``: (targets, T)."""
        if self._output is None or item.tensor.columns == 0:
            return
        read_again = item.solver == "none" or not item.resident
        rows = self._rows.get(item.tensor.name) if read_again else None
        if rows is not None:
            weights = np.ascontiguousarray(weights[:, list(rows)])
        windows = self._read(keep=False) if read_again else self._drain()
        for window in windows:
            self._combine_window(item, window, weights)

    def _drain(self) -> Iterator[Window]:
        """The windows that scan kept, each released when the next is asked for."""
        kept, self._kept = self._kept, []
        for window in kept:
            yield window
            window.release()

    def _combine_window(
        self, item: TensorPlan, window: Window, weights: NDArray[np.float64]
    ) -> None:
        assert self._output is not None
        dtype = self._output.dtype_of(item.tensor)
        size = (window.end - window.begin) * ITEM_SIZE[dtype]
        buffers = self._out_buffers(len(weights), size)
        strips = window.strips
        if len(strips.rows) == 0:  # every weight is zero: the base, through the same rounding
            strips = Strips(
                np.array([strips.base], np.uint64), np.array([strips.base_dtype], np.uint8),
                strips.base, strips.base_dtype, strips.columns,
            )  # fmt: skip
            weights = np.zeros((len(weights), 1))
        addresses = np.array([buffer.ctypes.data for buffer in buffers], np.uint64)
        self._backend.combine(strips, weights, addresses, CODES[dtype])
        self._output.write(item.tensor, window.begin, buffers)

    def _out_buffers(self, targets: int, size: int) -> list[NDArray[np.uint8]]:
        """One of two alternating sets: while one is written to disk the other is filled."""
        self._turn ^= 1
        held = self._buffers[self._turn]
        if len(held) < targets or held[0].size < size:
            self._buffers[self._turn] = held = [np.empty(size, np.uint8) for _ in range(targets)]
        return [buffer[:size] for buffer in held[:targets]]
