"""The streaming run: tensor by tensor, scan → forecast → combine over the same windows."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial, reduce
from operator import add
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from relex_ext import power
from relex_ext.backends import Backend, Strips
from relex_ext.dtypes import CODES, ITEM_SIZE
from relex_ext.forecasts import Spectrum, spectrum_of_gram
from relex_ext.headers import TensorEntry
from relex_ext.nonfinite import describe
from relex_ext.output import Output
from relex_ext.plan import TensorPlan
from relex_ext.stream import Stream
from relex_ext.trajectory import Supply
from relex_ext.windows import Memory, Pass, Results, Window
from relex_ext.world import World
from relex_ext.writer import Ticket, Writer, settle

Tick = Callable[[int], None]

Rows = dict[str, tuple[int, ...]]
"""Per tensor the checkpoints that combine has to read, where that is known."""

Read = Callable[[], Iterator[Window]]
"""Makes another pass over a tensor's windows."""

Found = TypeVar("Found")


class Stopped(Exception):
    """Another device's run failed."""


class Run:
    """One run over some of a plan's tensors. They are taken in order: for each, :meth:`scan` unless
    the plan has no solver for it, then :meth:`combine` if there are targets; then :meth:`finish`.
    A context manager, of the thread that computes.
    """

    def __init__(
        self,
        items: Sequence[TensorPlan],
        steps: tuple[int, ...],
        backend: Backend,
        memory: Memory,
        rank: int,
        output: Output | None,
        tick: Tick,
        rows: Rows | None = None,
        stop: threading.Event | None = None,
        world: World | None = None,
        supply: Supply | None = None,
    ) -> None:
        """``stop``: set by others to have this run raise :class:`Stopped` at its next window;
        ``world``: the processes that share the plan, of which this one has ``items``;
        ``supply``: asked for a tensor's bytes before it is read."""
        self._items = items
        self._steps = steps
        self._backend = backend
        self._memory = memory
        self._rank = rank
        self._output = output
        self._tick = tick
        self._rows = rows or {}
        self._stop = stop
        self._world = world or World()
        self._supply = supply
        self._over = False
        self._kept: list[Window] = []
        self._again: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._writer = Writer()
        self._written: list[Ticket | None] = [None, None]
        self._turn = 0
        self._stack = ExitStack()

    def __enter__(self) -> Run:
        with ExitStack() as stack:
            stream = self._stream = stack.enter_context(Stream(self._memory))
            stack.enter_context(self._writer)
            stack.callback(self._again.put, False)
            stack.callback(self._end)
            stack.enter_context(self._memory.computing())
            stream.start(self._passes())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _passes(self) -> Iterator[Pass]:
        """What will be read, in order. Runs on the stream's thread, ahead of the arithmetic."""
        for item in self._items:
            if item.tensor.columns == 0:
                continue
            self._bring(item)
            if item.solver != "none":
                yield Pass(item)
                while item.solver == "power" and not item.resident and self._again.get():
                    yield Pass(item)
            if self._output is not None and (item.solver == "none" or not item.resident):
                yield Pass(item, self._rows.get(item.tensor.name))

    def _read_of(self, item: TensorPlan) -> list[TensorEntry]:
        """All that is read of a tensor. One that no checkpoint has a weight in may be copied."""
        rows = self._rows.get(item.tensor.name) if item.solver == "none" else None
        return Pass(item, (len(self._steps) - 1,) if rows == () else rows).entries

    def _bring(self, item: TensorPlan) -> None:
        supply = self._supply
        if supply is not None and not supply.fetch(self._read_of(item), self._ended):
            raise Stopped

    def let_go(self, item: TensorPlan) -> None:
        """A tensor is done with."""
        if self._supply is not None and item.tensor.columns:
            self._supply.release(self._read_of(item))

    def _end(self) -> None:
        self._over = True

    def _ended(self) -> bool:
        return self._over or (self._stop is not None and self._stop.is_set())

    # ---- scan ----------------------------------------------------------------------------------

    def scan(self, item: TensorPlan) -> NDArray[np.float64] | Spectrum:
        """G (T, T), or the leading spectrum where the plan says power iteration.

        Raises:
            NonFinite: the tensor holds NaN or Inf.
            BackendError: a device failed.
        """
        if item.tensor.columns == 0:
            return self._empty(item)
        with self._memory.reporting(f"tensor {item.tensor.name}: "):
            if item.solver == "gram":
                return self._gram(item, self._read(item.resident))
            return self._passes_over(item, partial(self._power, item))

    def columns(self, item: TensorPlan, rows: Sequence[int]) -> NDArray[np.float64]:
        """G[:, rows] (T, k), where the rest of G is known: in the place of :meth:`scan`, under a
        plan for power iteration, of which it is one step.

        Raises:
            NonFinite, BackendError: as there.
        """
        if item.tensor.columns == 0:
            return np.zeros((len(self._steps), len(rows)))
        with self._memory.reporting(f"tensor {item.tensor.name}: "):
            return self._passes_over(item, partial(self._columns, item, list(rows)))

    def _passes_over(self, item: TensorPlan, work: Callable[[Read], Found]) -> Found:
        return self._with_kept(work) if item.resident else self._with_passes(work)

    def _with_kept(self, work: Callable[[Read], Found]) -> Found:
        windows = list(self._read(keep=True))
        found = work(lambda: iter(windows))
        if self._output is None:
            for _ in self._drain():
                pass
        return found

    def _with_passes(self, work: Callable[[Read], Found]) -> Found:
        first = True

        def another_pass() -> Iterator[Window]:
            nonlocal first
            if not first:
                self._again.put(True)
            first = False
            return self._read(keep=False)

        try:
            return work(another_pass)
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
            self._check_stop()

    def _check_stop(self) -> None:
        if self._stop is not None and self._stop.is_set():
            raise Stopped
        self._world.check()

    def _empty(self, item: TensorPlan) -> NDArray[np.float64] | Spectrum:
        t = len(self._steps)
        if item.solver == "gram":
            return np.zeros((t, t))
        k = min(self._rank, t)
        return Spectrum(np.eye(t)[:, :k], np.zeros(k), 0.0)

    def _gram(self, item: TensorPlan, windows: Iterator[Window]) -> NDArray[np.float64]:
        spans = self._spans(item, windows)
        if item.part is not None:
            spans = iter(self._world.together(item, list(spans)))
        lower = np.tril(self._backend.fetch(reduce(add, spans)))
        self._check_finite(item, np.diag(lower))
        gram: NDArray[np.float64] = lower + np.tril(lower, -1).T
        return gram

    def _spans(self, item: TensorPlan, windows: Iterator[Window]) -> Iterator[Any]:
        """The sums over each span, from zero."""
        t = len(self._steps)
        sums = None
        for window in windows:
            if sums is not None and window.begin % item.span == 0:
                yield sums
                sums = None
            if sums is None:
                sums = self._backend.zeros(t, t)
            self._backend.gram(window.strips, sums)
        yield sums

    def _columns(self, item: TensorPlan, rows: list[int], read: Read) -> NDArray[np.float64]:
        t = len(self._steps)
        chosen = np.ascontiguousarray(np.eye(t, dtype=np.float32)[:, rows])
        sums, squares = self._backend.zeros(t, len(rows)), self._backend.zeros(t)
        for window in read():
            self._backend.power_step(window.strips, chosen, sums, squares)
        found = self._backend.fetch(sums)
        try:
            power.check_range(found, self._backend.fetch(squares), item.tensor.columns)
        except power.OutOfRange:
            return self._gram(item, read())[:, rows]
        return found

    def _power(self, item: TensorPlan, read: Read) -> Spectrum:
        t = len(self._steps)
        energy = np.zeros(t)
        passes = 0

        def step(u: NDArray[np.float32]) -> NDArray[np.float64]:
            nonlocal passes, energy
            sums = self._backend.zeros(*u.shape)
            squares = self._backend.zeros(t) if passes == 0 else None
            for window in read():
                self._backend.power_step(window.strips, u, sums, squares)
            y = self._backend.fetch(sums)
            if squares is not None:
                energy = self._backend.fetch(squares)
                power.check_range(y, energy, item.tensor.columns)
            passes += 1
            return y

        try:
            u, values, _, _ = power.solve(step, t, self._rank)
        except power.OutOfRange:
            return spectrum_of_gram(self._gram(item, read()), min(self._rank, t))
        return power.spectrum(u, values, float(energy.sum()))

    def _check_finite(self, item: TensorPlan, squares: NDArray[np.float64]) -> None:
        for row, square in enumerate(squares.tolist()):
            if not np.isfinite(square):
                raise describe(item.tensor, self._steps, row)

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
        with self._memory.reporting(f"tensor {item.tensor.name}: "):
            for window in windows:
                self._combine_window(item, window, weights, self._output)

    def skip(self, item: TensorPlan) -> None:
        """Let go of a tensor that another way was found for: in the place of :meth:`combine`."""
        if item.tensor.columns == 0:
            return
        read_again = self._output is not None and (item.solver == "none" or not item.resident)
        for _ in self._read(keep=False) if read_again else self._drain():
            pass

    def _drain(self) -> Iterator[Window]:
        """The windows that scan kept, each released when the next is asked for."""
        kept, self._kept = self._kept, []
        for window in kept:
            yield window
            window.release()
            self._check_stop()

    def _combine_window(
        self, item: TensorPlan, window: Window, weights: NDArray[np.float64], output: Output
    ) -> None:
        dtype = output.dtype_of(item.tensor)
        strips = window.strips
        if len(strips.rows) == 0:  # every weight is zero: the base, through the same rounding
            strips = Strips(
                np.array([strips.base], np.uint64), np.array([strips.base_dtype], np.uint8),
                strips.base, strips.base_dtype, strips.columns,
            )  # fmt: skip
            weights = np.zeros((len(weights), 1))
        self._turn ^= 1  # of two sets of buffers, while one is written to disk the other is filled
        self._settle(self._turn)
        size = (window.end - window.begin) * ITEM_SIZE[dtype]
        results = self._memory.results(self._turn, len(weights), size)
        self._backend.combine(strips, weights, results.addresses, CODES[dtype])
        results.send()
        task = partial(_write, output, item, window, results)
        self._written[self._turn] = self._writer.submit(task)

    def _settle(self, turn: int) -> None:
        """Wait until what a set of buffers held last is written."""
        written, self._written[turn] = self._written[turn], None
        if written is not None:
            settle(written)

    def finish(self) -> None:
        """All results are written."""
        with self._memory.reporting():
            for turn in range(2):
                self._settle(turn)


def _write(output: Output, item: TensorPlan, window: Window, results: Results) -> None:
    whole = item.part is None
    output.write(item.tensor, window.begin, window.end, results.wait(), whole)
