"""Shards → windows in memory, read ahead of the arithmetic within a budget of bytes.

One thread walks the passes in order and admits windows as the budget allows; a few others load
them. The consumer takes the windows in the same order and releases each when it is done with it.
"""

from __future__ import annotations

import os
import queue
import resource
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from relex_ext import _core
from relex_ext.backends.contract import Strips
from relex_ext.checkpoints import Shard, TensorEntry
from relex_ext.dtypes import CODES, ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.plan import TensorPlan, window_bytes

LOADERS = 4
"""Loading threads: enough requests in flight for a fast disk, few enough to stay in order."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of a tensor's strips. ``rows``: which checkpoints, None for all."""

    plan: TensorPlan
    rows: tuple[int, ...] | None = None


@dataclass(slots=True)
class Window:
    """Columns [begin, end) of a tensor in memory, until ``release()``."""

    begin: int
    end: int
    strips: Strips
    nbytes: int
    _stream: Stream
    _mapped: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None
    _buffer: NDArray[np.uint8] | None

    def release(self) -> None:
        if self._mapped is not None:
            _core.release(*self._mapped)
            self._mapped = None
        if self._buffer is not None:
            self._stream.buffers.give(self._buffer)
            self._buffer = None
        self._stream.budget.release(self.nbytes)


class Budget:
    """A counting semaphore of bytes. A request larger than all of it waits to be alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    def acquire(self, size: int) -> bool:
        """Wait for room; False when the budget was closed meanwhile."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._used == 0 or self._used + size <= self._limit
            )
            if self._closed:
                return False
            self._used += size
            return True

    def release(self, size: int) -> None:
        with self._changed:
            self._used -= size
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Buffers:
    """Buffers for pread, used again: fresh pages cost more than the copy into them.

    Sizes are those of :func:`relex_ext.plan.buffer_size`, by which the budget admits windows, so
    the buffers in use never exceed it; free ones are dropped when a new one would.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._free: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            for i, buffer in enumerate(self._free):
                if buffer.size == size:
                    return self._free.pop(i)
            while self._free and self._held + size > self._limit:
                self._held -= self._free.pop(0).size
            self._held += size
        return np.empty(size, np.uint8)

    def give(self, buffer: NDArray[np.uint8]) -> None:
        with self._lock:
            self._free.append(buffer)


class Stream:
    """The windows of a sequence of passes, in order. Use as a context manager."""

    def __init__(self, budget: int, io: str) -> None:
        self.budget = Budget(budget)
        self.buffers = Buffers(budget)
        self._map = io == "mmap"
        self._files: dict[Shard, _core.File] = {}
        self._opening = threading.Lock()
        self._stop = _core.StopToken()
        self._queue: queue.Queue[Future[Window] | BaseException | None] = queue.Queue(64)
        self._loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="relex-load")
        self._walker: threading.Thread | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self.budget.close()
        while self._walker is not None and self._walker.is_alive():
            try:  # make room for a walker that waits to hand something over
                self._queue.get(timeout=0.01)
            except queue.Empty:
                pass
        self._loaders.shutdown(wait=True, cancel_futures=True)

    def start(self, passes: Iterable[Pass]) -> None:
        """Begin reading; ``passes`` is consumed on another thread, as far ahead as memory goes."""
        self._walker = threading.Thread(target=self._walk, args=(passes,), name="relex-walk")
        self._walker.start()

    def windows(self) -> Iterator[Window]:
        """The windows of the next pass, each as soon as it is in memory."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.result()

    def _walk(self, passes: Iterable[Pass]) -> None:
        try:
            for item in passes:
                for begin, end in item.plan.windows:
                    size = window_bytes(_entries(item), end - begin, self._map)
                    if not self.budget.acquire(size):
                        return
                    self._queue.put(self._loaders.submit(self._load, item, begin, end, size))
                self._queue.put(None)
        except BaseException as error:  # the consumer raises it
            self._queue.put(error)

    def _file(self, shard: Shard) -> _core.File:
        with self._opening:
            file = self._files.get(shard)
            if file is None:
                try:
                    file = _core.File(str(shard.path), self._map)
                except OSError as error:
                    raise InputError(f"{shard.path}: {_reason(error.errno)}") from error
                if file.size != shard.size:
                    raise InputError(
                        f"{shard.path}: changed since its header was read: expected "
                        f"{shard.size} bytes, found {file.size}"
                    )
                self._files[shard] = file
            return file

    def _load(self, item: Pass, begin: int, end: int, size: int) -> Window:
        tensor = item.plan.tensor
        entries = _entries(item)
        files = [self._file(entry.shard) for entry in entries]
        sizes = [ITEM_SIZE[entry.dtype] for entry in entries]
        offsets = np.array(
            [e.offset + begin * s for e, s in zip(entries, sizes, strict=True)], np.uint64
        )
        lengths = np.array([(end - begin) * s for s in sizes], np.uint64)
        buffer = None
        if self._map:
            addresses = np.array([file.address for file in files], np.uint64) + offsets
            _core.announce(addresses, lengths)
            failed, code = _core.populate(addresses, lengths, self._stop)
        else:
            buffer = self.buffers.take(size)
            ends = np.cumsum(lengths, dtype=np.uint64)
            addresses = np.uint64(buffer.ctypes.data) + ends - lengths
            descriptors = np.array([file.descriptor for file in files], np.int32)
            failed, code = _core.read(descriptors, offsets, addresses, lengths, self._stop)
        if failed >= 0:
            raise InputError(f"{entries[failed].shard.path}: tensor {tensor.name}: {_reason(code)}")
        dtypes = np.array([CODES[entry.dtype] for entry in entries], np.uint8)
        strips = Strips(addresses[1:], dtypes[1:], int(addresses[0]), int(dtypes[0]), end - begin)
        mapped = (addresses, lengths) if self._map else None
        return Window(begin, end, strips, size, self, mapped, buffer)


def _entries(item: Pass) -> list[TensorEntry]:
    """The base's entry of a pass, then those of its rows."""
    tensor = item.plan.tensor
    rows = tensor.rows if item.rows is None else [tensor.rows[t] for t in item.rows]
    return [tensor.base, *rows]


def _reason(code: int | None) -> str:
    if not code:
        return "truncated since its header was read"
    hint = "; raise the limit with ulimit -n" if code == 24 else ""  # EMFILE
    return f"cannot be read: {os.strerror(code)}{hint}"


def allow_many_files() -> None:
    """Raise the soft limit on open files to the hard one: pread keeps every shard open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            pass  # a sandbox may forbid it; running out is reported when it happens
