"""How wide windows are and which tensors stay in memory: the processor's or a device's.

A tensor is read in windows of whole segments, all its checkpoints side by side. When every window
of a tensor fits together, they stay between scan and combine and the tensor is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from relex_ext import _core
from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.headers import TensorEntry
from relex_ext.sizes import enough, human
from relex_ext.trajectory import Tensor

WINDOW_BYTES = 256 << 20
"""A window's size where memory allows: enough segments to keep many threads busy."""

DEVICE_WINDOW_BYTES = 64 << 20
"""The same for a device, a power of two: 1 to 3 ms on the bus, beside which a launch (20 µs) does
not show, and a ring of pinned slots stays below a GiB."""

SPAN = 256 * _core.SEGMENT
"""Columns over which a Gram matrix is summed from zero; spans are added in their order. So
processes that have different spans of a tensor come to the bytes of one that has them all. Wide
enough for a window, narrow enough to share a matrix of some hundred million out evenly."""

WINDOWS_AHEAD = 3
"""A memory limit holds at least this many windows: one read, one computed on, one in between."""

SLOTS = 12
"""Pinned slots at most: one for each of a device's loading threads (staging.LOADERS), the
others on the bus or queued for it. More would only hold memory."""

ALIGNMENT = 256
"""Of a strip in a device's window: what coalesced loads and any vector width ask for."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run's tensors ask for, whatever computes."""

    tensors: tuple[Tensor, ...]
    rows: int
    targets: int
    vectors: int
    """Columns of U in a power step."""
    out_item: dict[str, int]
    """Tensor → bytes of an element written."""
    span: int = SPAN

    @property
    def strip_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices that compute, as far as a plan has to know them."""

    names: tuple[str, ...]
    memory: int
    """Bytes that a run may use on each."""
    workspace: Callable[[int, int, int, int], int]
    """(T, columns, vectors, targets) → bytes that kernels need beside strips, sums and outputs."""
    no_gds: str | None = None
    """Why GPUDirect Storage cannot be had, if it cannot."""


@dataclass(frozen=True, slots=True)
class Staging:
    """The buffers of each device: shards → pinned slots → windows → results → pinned results."""

    devices: tuple[str, ...]
    device_limit: int
    """Bytes on each device, as allowed."""
    window_bytes: int
    """Of a slot and of a window's buffer."""
    slots: int
    windows: int
    """Buffers in device memory at most."""
    result_bytes: int
    """Of each of the two sets of output buffers, on the device and pinned."""
    workspace: int
    sums: int

    @property
    def device_memory(self) -> int:
        """Bytes on each device at their fullest."""
        moved = self.windows * self.window_bytes + 2 * self.result_bytes
        return moved + self.workspace + self.sums

    @property
    def pinned_memory(self) -> int:
        """Bytes of this process for all devices together."""
        each = self.slots * pinned(self.window_bytes) + 2 * pinned(self.result_bytes)
        return each * len(self.devices)


class DeviceTooSmall(InputError):
    """A device cannot hold three windows."""


class HostRoom:
    """Windows in this process's memory, mapped or read, next to two output buffers per target."""

    def __init__(self, demand: Demand, limit: int) -> None:
        self._demand = demand
        outputs = max(demand.out_item.values())
        widest = max(self._per_column(tensor) for tensor in demand.tensors)
        smallest = WINDOWS_AHEAD * widest * _core.SEGMENT
        # A model smaller than three windows needs no more than itself, read whole.
        whole = demand.strip_bytes + 2 * demand.targets * outputs * _core.SEGMENT
        needed = min(smallest, whole)
        if limit < needed:
            raise InputError(
                f"memory_limit: expected at least {enough(needed)} for {demand.rows} checkpoints, "
                f"found {human(limit)}"
            )
        self.window_limit = min(WINDOW_BYTES, limit // WINDOWS_AHEAD)
        segments = max(1, self.window_limit // (widest * _core.SEGMENT))
        results = 2 * demand.targets * outputs * min(segments * _core.SEGMENT, demand.span)
        longest = max(tensor.columns for tensor in demand.tensors)
        results = min(results, 2 * demand.targets * longest * 4)
        self.budget = limit - results
        self.peak_memory = min(self.budget, demand.strip_bytes) + results
        self.mapped = False
        """Set when the way of reading is known: it depends on the window limit."""

    def columns(self, tensor: Tensor) -> int:
        """Of a window of this tensor."""
        segment = self._per_column(tensor) * _core.SEGMENT
        return min(max(1, self.window_limit // segment) * _core.SEGMENT, self._demand.span)

    def holds(self, tensor: Tensor, columns: int) -> bool:
        """All windows of this tensor together."""
        entries = [tensor.base, *tensor.rows]
        cuts = cut((0, tensor.columns), columns, self._demand.span)
        return sum(window_bytes(entries, e - b, self.mapped) for b, e in cuts) <= self.budget

    def _per_column(self, tensor: Tensor) -> int:
        """Its strips, and two output buffers per target (one filled, one written)."""
        items = [ITEM_SIZE[entry.dtype] for entry in (tensor.base, *tensor.rows)]
        return sum(items) + 2 * self._demand.targets * self._demand.out_item[tensor.name]


class DeviceRoom:
    """Windows in a device's memory, brought there through pinned slots of the same size."""

    def __init__(self, demand: Demand, limit: int, devices: Devices) -> None:
        self._demand = demand
        for halvings in range(DEVICE_WINDOW_BYTES.bit_length()):  # at last, single segments
            self._window = DEVICE_WINDOW_BYTES >> halvings
            least = self._least(devices)
            short = devices.memory - least.device_memory
            short_pinned = limit - least.pinned_memory
            if short >= 0 and short_pinned >= 0:
                break
        else:
            _refuse(least, limit, demand.rows)
        count = self._count()
        windows = least.windows + short // least.window_bytes
        slots = least.slots + short_pinned // len(devices.names) // pinned(least.window_bytes)
        self.staging = replace(least, slots=min(slots, SLOTS, count), windows=min(windows, count))
        self.peak_memory = self.staging.pinned_memory

    def columns(self, tensor: Tensor) -> int:
        """Of a window of this tensor."""
        segment = staged_bytes([tensor.base, *tensor.rows], _core.SEGMENT)
        return min(max(1, self._window // segment) * _core.SEGMENT, self._demand.span)

    def holds(self, tensor: Tensor, columns: int) -> bool:
        """All windows of this tensor together."""
        return self._cuts(tensor, columns) <= self.staging.windows

    def _count(self) -> int:
        return sum(self._cuts(tensor, self.columns(tensor)) for tensor in self._demand.tensors)

    def _cuts(self, tensor: Tensor, columns: int) -> int:
        return len(cut((0, tensor.columns), columns, self._demand.span))

    def _least(self, devices: Devices) -> Staging:
        """The fewest buffers that a run can work with, for windows of this size."""
        demand = self._demand
        widths = {t.name: min(self.columns(t), t.columns) for t in demand.tensors}
        window = max(staged_bytes([t.base, *t.rows], widths[t.name]) for t in demand.tensors)
        result = max(_aligned(widths[name] * item) for name, item in demand.out_item.items())
        few = min(WINDOWS_AHEAD, self._count())
        shape = (demand.rows, max(widths.values()), demand.vectors, demand.targets)
        # G, U, Y, the energies and weights, in float64.
        sums = 8 * demand.rows * (demand.rows + 2 * demand.vectors + 1 + demand.targets)
        return Staging(
            devices.names, devices.memory, max(window, ALIGNMENT), few, few,
            demand.targets * result, devices.workspace(*shape), sums,
        )  # fmt: skip


def _refuse(least: Staging, limit: int, rows: int) -> NoReturn:
    if least.device_memory > least.device_limit:
        raise DeviceTooSmall(
            f"device_memory: expected at least {enough(least.device_memory)} for {rows} "
            f"checkpoints, found {human(least.device_limit)}"
        )
    raise DeviceTooSmall(
        f"memory_limit: expected at least {enough(least.pinned_memory)} of pinned memory for "
        f"{rows} checkpoints and {len(least.devices)} device(s), found {human(limit)}"
    )


def cut(columns: tuple[int, int], window: int, span: int) -> list[tuple[int, int]]:
    """(begin, end) of the windows of such columns, which begin with a span. None straddles two."""
    begin, end = columns
    spans = [(s, min(s + span, end)) for s in range(begin, end, span)]
    return [(c, min(c + window, stop)) for s, stop in spans for c in range(s, stop, window)]


def window_bytes(entries: Sequence[TensorEntry], columns: int, mapped: bool) -> int:
    """Memory that a window of so many columns of these entries takes."""
    size = columns * sum(ITEM_SIZE[entry.dtype] for entry in entries)
    return size if mapped else buffer_size(size)


def buffer_size(size: int) -> int:
    """Rounded up to an eighth of its power of two, so that buffers of like sizes can be swapped."""
    step = max(4096, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def staged_bytes(entries: Sequence[TensorEntry], columns: int) -> int:
    """The same on a device: each strip aligned."""
    return sum(_aligned(columns * ITEM_SIZE[entry.dtype]) for entry in entries)


def staged_places(lengths: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Where strips of so many bytes begin in such a window."""
    sizes = (lengths + np.uint64(ALIGNMENT - 1)) // np.uint64(ALIGNMENT) * np.uint64(ALIGNMENT)
    places: NDArray[np.uint64] = np.cumsum(sizes, dtype=np.uint64) - sizes
    return places


def pinned(size: int) -> int:
    """What torch's allocator of pinned memory takes for so many bytes: a power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
