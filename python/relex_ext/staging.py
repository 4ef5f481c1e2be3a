"""Windows in a device's memory: shards → pinned slots → windows → results → pinned results.

Three of the device's streams work side by side, and none is waited for while there is a window to
go on with:

- inward: one copy moves a whole window from its slot. It waits for the last kernels that read what
  the window's buffer held before; a loading thread waits for it before it fills the slot again.
- compute: kernels wait for the copy of their window.
- outward: results come home when their kernels are done; the thread that writes them waits for it.

Every wait is for an event that was recorded before it is asked for, so none can be for ever.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from relex_ext.backends.gds import Gds, GdsError
from relex_ext.errors import InputError
from relex_ext.files import Extents, Files, extents
from relex_ext.room import Staging, staged_bytes, staged_places
from relex_ext.windows import Pass, Results, Window, strips_at

if TYPE_CHECKING:
    from torch import Tensor

    from relex_ext.backends.device import DeviceBackend, Event

LOG = logging.getLogger("relex_ext")

LOADERS = 8
"""Loading threads of a device: one copies 5 to 10 GB/s out of the page cache, the bus takes 25 to
50."""


@dataclass(slots=True)
class Buffer:
    """A piece of memory, and until when queued work uses it."""

    memory: Tensor
    busy: Event | None = None

    def idle(self) -> bool:
        return self.busy is None or self.busy.query()


class Pool:
    """So many buffers of one size, made as they are needed.

    They are given back through a SimpleQueue for the reason that windows.Budget states.
    """

    def __init__(self, count: int, make: Callable[[], Tensor]) -> None:
        self._left = count
        self._make = make
        self._returned: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        self._oldest: Buffer | None = None
        """The one given back longest ago, if it was still busy when looked at."""
        self._closed = False
        self._taking = threading.Lock()

    def take(self) -> Buffer | None:
        """An idle one; else a new one; else the one given back longest ago, as soon as there is
        one. None when the pool was closed meanwhile."""
        with self._taking:
            if self._oldest is None and not self._returned.empty():
                self._oldest = self._returned.get()
            if self._closed:
                return None
            if self._left == 0 or (self._oldest is not None and self._oldest.idle()):
                found, self._oldest = self._oldest, None
                return found or self._returned.get()
            self._left -= 1
        return Buffer(self._make())

    def give(self, buffer: Buffer) -> None:
        self._returned.put(buffer)

    def close(self) -> None:
        self._closed = True
        self._returned.put(None)  # for who waits


class DeviceMemory:
    """Windows and results of one device, as a plan laid them out."""

    loaders = LOADERS

    def __init__(self, staging: Staging, backend: DeviceBackend, gds: Gds | None = None) -> None:
        """``gds``: what reads straight into device memory; without it, or where it is optional and
        fails, pread does, through pinned slots."""
        device = self._device = backend.accelerator
        self._backend = backend
        self._workspace = staging.workspace
        self._limit = staging.device_limit
        self._gds = gds
        self._giving_up = threading.Lock()
        self._files = Files(mapped=False)
        self._inward, self._compute, self._outward = (device.stream() for _ in range(3))
        size = staging.window_bytes
        self._windows = Pool(staging.windows, partial(device.empty, size, self._inward))
        self._slots = Pool(staging.slots, partial(device.pinned, size))
        self._results: list[DeviceResults | None] = [None, None]
        self._result_bytes = staging.result_bytes

    # ---- windows -------------------------------------------------------------------------------

    def admit(self, item: Pass, columns: int) -> Buffer | None:
        return self._windows.take()

    def load(self, item: Pass, begin: int, end: int, room: Buffer) -> Window:
        entries = item.entries
        extent = extents(entries, begin, end)
        places = staged_places(extent[1])
        copied = None
        if not self._read_directly(item, extent, places, room):
            size = staged_bytes(entries, end - begin)
            copied = self._read_and_copy(item, extent, places, room, size)
        strips = strips_at(entries, places + np.uint64(room.memory.data_ptr()), end - begin)
        arrive, release = partial(self._arrive, copied), partial(self._release, room)
        return Window(begin, end, strips, int(extent[1].sum()), arrive, release)

    def _read_and_copy(
        self, item: Pass, extent: Extents, places: NDArray[np.uint64], room: Buffer, size: int
    ) -> Event | None:
        slot = self._slots.take()
        if slot is None:
            return None  # stopped: nobody will use the window
        device = self._device
        try:
            if slot.busy is not None:
                slot.busy.synchronize()
            addresses = places + np.uint64(slot.memory.data_ptr())
            self._files.read(item.plan.tensor.name, item.entries, extent, addresses)
            if room.busy is not None:
                device.wait(self._inward, room.busy)
            device.copy(self._inward, room.memory[:size], slot.memory[:size])
            slot.busy = device.record(self._inward)
            return slot.busy
        finally:  # after a failure, too: earlier windows may be waiting for a slot
            self._slots.give(slot)

    def _read_directly(
        self, item: Pass, extent: Extents, places: NDArray[np.uint64], room: Buffer
    ) -> bool:
        gds = self._gds
        if gds is None:
            return False
        if room.busy is not None:
            room.busy.synchronize()  # what reads is no stream that could wait
        try:
            gds.read([entry.shard.path for entry in item.entries], extent, room.memory, places)
        except GdsError as error:
            if gds.required:
                raise InputError(f"tensor {item.plan.tensor.name}: {error}") from error
            with self._giving_up:  # other loaders may have failed meanwhile
                if self._gds is not None:
                    LOG.info("io: pread into pinned memory from here on: %s", error)
                self._gds = None
            return False
        return True

    def _arrive(self, copied: Event | None) -> None:
        if copied is not None:
            self._device.wait(self._compute, copied)

    def _release(self, room: Buffer) -> None:
        room.busy = self._device.record(self._compute)
        self._windows.give(room)

    # ---- results -------------------------------------------------------------------------------

    def results(self, turn: int, targets: int, nbytes: int) -> Results:
        device = self._device
        results = self._results[turn]
        if results is None:
            away = device.empty(self._result_bytes, self._compute)
            home = device.pinned(self._result_bytes)
            self._results[turn] = results = DeviceResults(self, away, home)
        results.lay_out(targets, nbytes)
        return results

    def bring_home(self, home: Tensor, away: Tensor) -> Event:
        """Queue a copy of what has been asked for so far to pinned memory."""
        device = self._device
        device.wait(self._outward, device.record(self._compute))
        device.copy(self._outward, home, away)
        return device.record(self._outward)

    # ---- the rest ------------------------------------------------------------------------------

    @contextmanager
    def computing(self) -> Iterator[None]:
        with self._device.on(self._compute):
            with self._device.reporting(limit=self._limit):
                self._backend.reserve(self._workspace)
            yield

    def reporting(self, about: str = "") -> AbstractContextManager[object]:
        return self._device.reporting(about, self._limit)

    def stop(self) -> None:
        self._files.stop.set()
        self._windows.close()
        self._slots.close()

    def close(self) -> None:
        """Memory that a copy still uses must not be given back; what none uses, at once."""
        self._device.settle(self._inward, self._compute, self._outward)
        self._results = [None, None]  # they know this object: only a collection would end them


class DeviceResults:
    """A set of output buffers in one stretch of device memory, and its image in pinned memory: one
    copy brings all targets home."""

    def __init__(self, memory: DeviceMemory, away: Tensor, home: Tensor) -> None:
        self._memory, self._away, self._home = memory, away, home
        self._sent: Event | None = None

    def lay_out(self, targets: int, nbytes: int) -> None:
        """Begin anew. What was sent before has been waited for."""
        places = staged_places(np.full(targets, nbytes, np.uint64))
        self._cuts = [slice(place, place + nbytes) for place in places.tolist()]
        self.addresses: NDArray[np.uint64] = places + np.uint64(self._away.data_ptr())

    def send(self) -> None:
        size = self._cuts[-1].stop
        self._sent = self._memory.bring_home(self._home[:size], self._away[:size])

    def wait(self) -> Sequence[NDArray[np.uint8]]:
        assert self._sent is not None
        self._sent.synchronize()
        home = self._home.numpy()
        return [home[cut] for cut in self._cuts]
