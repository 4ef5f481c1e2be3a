"""Windows: the same columns of one tensor in all its checkpoints and the base, in memory.

``Memory`` is where they are brought, and where results are left to be written: this process's
memory, here, or a device's (staging.py).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from relex_ext import _core
from relex_ext.backends.contract import Strips
from relex_ext.dtypes import CODES
from relex_ext.files import Files, check_strips, extents
from relex_ext.headers import TensorEntry
from relex_ext.plan import TensorPlan
from relex_ext.room import window_bytes


@dataclass(frozen=True, slots=True)
class Pass:
    """One reading of a tensor's strips. ``rows``: which checkpoints, None for all."""

    plan: TensorPlan
    rows: tuple[int, ...] | None = None

    @property
    def entries(self) -> list[TensorEntry]:
        """The base's, then those of the rows."""
        tensor = self.plan.tensor
        rows = tensor.rows if self.rows is None else [tensor.rows[t] for t in self.rows]
        return [tensor.base, *rows]


@dataclass(frozen=True, slots=True)
class Window:
    """Columns [begin, end) of a tensor in memory, until ``release()``.

    ``arrive()``: what is computed from now on sees the strips; on a device nobody waits for that.
    """

    begin: int
    end: int
    strips: Strips
    nbytes: int
    arrive: Callable[[], None]
    release: Callable[[], None]


class Results(Protocol):
    """Output buffers, one for each target, ``addresses`` in the memory of who computes."""

    @property
    def addresses(self) -> NDArray[np.uint64]: ...

    def send(self) -> None:
        """What computes them has been asked for: start them on their way to this process."""

    def wait(self) -> Sequence[NDArray[np.uint8]]:
        """The buffers in this process's memory, once they are there. On any thread."""


class Memory(Protocol):
    """Where windows are brought and results are left."""

    @property
    def loaders(self) -> int:
        """Threads that load windows."""

    def admit(self, item: Pass, columns: int) -> Any:
        """Room for a window, in order, as soon as there is some; None once :meth:`stop` is called.

        On one thread, ahead of :meth:`load`.
        """

    def load(self, item: Pass, begin: int, end: int, room: Any) -> Window:
        """Bring columns [begin, end). On a loading thread, in any order."""

    def results(self, turn: int, targets: int, nbytes: int) -> Results:
        """One of two sets (``turn`` 0 or 1), whose last results have been written."""

    def computing(self) -> AbstractContextManager[object]:
        """Around whatever asks the backend for something."""

    def reporting(self, about: str = "") -> AbstractContextManager[object]:
        """Errors of a device become one line that begins with ``about``; what was computed inside
        is believed only once it is left."""

    def stop(self) -> None:
        """Wake whoever waits for room, and end the reading early."""

    def close(self) -> None:
        """After all loading threads have ended: nothing is under way any more."""


def strips_at(
    entries: Sequence[TensorEntry], addresses: NDArray[np.uint64], columns: int
) -> Strips:
    """The strips of a base and its rows, at their addresses in that order."""
    dtypes = np.array([CODES[entry.dtype] for entry in entries], np.uint8)
    return Strips(addresses[1:], dtypes[1:], int(addresses[0]), int(dtypes[0]), columns)


# ---- in this process ---------------------------------------------------------------------------


class Budget:
    """A count of bytes. A request larger than all of it waits to be alone.

    Bytes come back through a SimpleQueue: Ctrl-C is raised wherever the main thread is, and inside
    of a Condition, which is Python, it can leave the lock taken and who needs it waiting for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._closed = False
        self._returned: queue.SimpleQueue[int] = queue.SimpleQueue()

    def acquire(self, size: int) -> bool:
        """Wait for room; False when the budget was closed meanwhile. Always on the same thread."""
        while not self._closed and self._used > 0 and self._used + size > self._limit:
            self._used -= self._returned.get()
        self._used += size
        return not self._closed

    def release(self, size: int) -> None:
        self._returned.put(size)

    def close(self) -> None:
        self._closed = True
        self._returned.put(0)  # for who waits


class Buffers:
    """Buffers for pread, used again: fresh pages cost more than the copy into them.

    Sizes are those of :func:`relex_ext.room.buffer_size`, by which the budget admits windows, so
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


class HostMemory:
    """Windows mapped where they are, or read into buffers, within a budget of bytes."""

    loaders = 4
    """Enough requests in flight for a fast disk, few enough to stay in order."""

    def __init__(self, budget: int, io: str) -> None:
        self._budget = Budget(budget)
        self._buffers = Buffers(budget)
        self._map = io == "mmap"
        self._files = Files(self._map)
        self._results: list[list[NDArray[np.uint8]]] = [[], []]

    def admit(self, item: Pass, columns: int) -> int | None:
        size = window_bytes(item.entries, columns, self._map)
        return size if self._budget.acquire(size) else None

    def load(self, item: Pass, begin: int, end: int, room: int) -> Window:
        name, entries = item.plan.tensor.name, item.entries
        offsets, lengths = extents(entries, begin, end)
        if self._map:
            files = [self._files.open(entry.shard) for entry in entries]
            addresses = np.array([file.address for file in files], np.uint64) + offsets
            _core.announce(addresses, lengths)
            stop = self._files.stop
            check_strips(_core.populate(addresses, lengths, stop), name, entries)
            let_go = partial(_core.release, addresses, lengths)
        else:
            buffer = self._buffers.take(room)
            ends = np.cumsum(lengths, dtype=np.uint64)
            addresses = np.uint64(buffer.ctypes.data) + ends - lengths
            self._files.read(name, entries, (offsets, lengths), addresses)
            let_go = partial(self._buffers.give, buffer)
        strips = strips_at(entries, addresses, end - begin)
        release = partial(self._release, let_go, room)
        return Window(begin, end, strips, int(lengths.sum()), _nothing, release)

    def _release(self, let_go: Callable[[], None], room: int) -> None:
        let_go()
        self._budget.release(room)

    def results(self, turn: int, targets: int, nbytes: int) -> Results:
        held = self._results[turn]
        if len(held) < targets or held[0].size < nbytes:
            self._results[turn] = held = [np.empty(nbytes, np.uint8) for _ in range(targets)]
        return HostResults([buffer[:nbytes] for buffer in held[:targets]], self._files.check)

    def computing(self) -> AbstractContextManager[object]:
        return nullcontext()

    @contextmanager
    def reporting(self, about: str = "") -> Iterator[None]:
        yield
        self._files.check()

    def stop(self) -> None:
        self._files.stop.set()
        self._budget.close()

    def close(self) -> None:
        pass


class HostResults:
    """Written where they are, unless what they were computed from was lost meanwhile."""

    def __init__(self, buffers: Sequence[NDArray[np.uint8]], check: Callable[[], None]) -> None:
        self._buffers = buffers
        self._check = check
        self.addresses = np.array([buffer.ctypes.data for buffer in buffers], np.uint64)

    def send(self) -> None:
        pass

    def wait(self) -> Sequence[NDArray[np.uint8]]:
        self._check()
        return self._buffers


def _nothing() -> None:
    pass
