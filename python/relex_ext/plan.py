"""What a run will do before it does it: windows, passes, bytes, memory. All from headers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from relex_ext import _core
from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.files import choose_device_io, choose_io
from relex_ext.headers import TensorEntry
from relex_ext.power import block_size
from relex_ext.room import (
    SPAN,
    Demand,
    DeviceRoom,
    Devices,
    HostRoom,
    Staging,
    cut,
    window_bytes,
)
from relex_ext.sizes import parse_bytes
from relex_ext.trajectory import Supply, Tensor, Trajectory

SOLVERS = ("auto", "gram", "power")

POWER_PASSES = 4
"""Passes power iteration takes for the cost model: the most that any tensor of the real run in
examples/tiny_grpo needs, at T from 50 to 200 (most need 3; benchmarks/bench_solver.py)."""

GRAM_RATE = {
    "scalar": 16.0, "avx2": 57.0, "avx512": 95.0, "avx512bf16": 64.0,
    "cuda": 989e3, "triton": 989e3,
}  # fmt: skip
"""Measured GFLOP/s of one core's gram, and below of its power_step with four vectors. Only their
ratio decides, and it decides the same way on every run (benchmarks/bench_solver.py). The GPUs' are
not measured: an H100's published peaks, of the tensor cores in bf16 here, of fp32 below."""

POWER_RATE = {
    "scalar": 9.0, "avx2": 37.0, "avx512": 51.0, "avx512bf16": 49.0,
    "cuda": 67e3, "triton": 67e3,
}  # fmt: skip

MEMORY_RATE = {"cuda": 3350.0, "triton": 3350.0}
"""GB/s, as published of the same GPU. There a pass takes at least the time to read 16-bit rows;
the processors' rates above have it in them."""

STORAGE_RATE = {"cuda": 10.0, "triton": 10.0}
"""GB/s that shards are taken to bring a GPU; a core, 1.0, which is what the disks of the machines
measured give one (benchmarks/bench_cold.py)."""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    tensor: Tensor
    window: int
    """Columns per window, a multiple of the segment."""
    resident: bool
    """Its windows stay in memory from scan to combine."""
    solver: str
    """``gram``, ``power``, or ``none`` where a cached scan answers."""
    span: int = SPAN
    part: tuple[int, int] | None = None
    """The columns that this process has, whole spans, where others have the rest."""

    @property
    def columns(self) -> tuple[int, int]:
        """(begin, end) of those that this process has."""
        return self.part or (0, self.tensor.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of these columns in the base and all checkpoints."""
        begin, end = self.columns
        return self.tensor.nbytes * (end - begin) // max(1, self.tensor.columns)

    @property
    def windows(self) -> list[tuple[int, int]]:
        """(begin, end) columns of each window."""
        return cut(self.columns, self.window, self.span)


@dataclass(frozen=True, slots=True)
class Plan:
    tensors: tuple[TensorPlan, ...]
    io: str
    io_reason: str
    memory_limit: int
    strip_budget: int
    """Bytes of windows in this process's memory at any time; 0 with devices."""
    staging: Staging | None
    """The devices' buffers, where devices compute."""
    bytes_read: int
    """From the shards, all passes; power iteration counted with its expected passes."""
    passes: float
    """bytes_read over the bytes of all strips."""
    peak_memory: int
    """Windows and output buffers of this process at their fullest (pinned ones, with devices),
    without the interpreter's own ~100 MB."""
    bytes_written: int
    apart: bool = False
    """All tensors are scanned before the first is combined: two disk passes."""
    supply: Supply | None = None
    """Who brings a tensor's bytes before it is read, if they are not all here."""

    def holds(self, item: TensorPlan) -> bool:
        """All windows of this tensor, or part of one, together."""
        if self.staging is not None:
            return len(item.windows) <= self.staging.windows
        entries = [item.tensor.base, *item.tensor.rows]
        mapped = self.io == "mmap"
        sizes = (window_bytes(entries, end - begin, mapped) for begin, end in item.windows)
        return sum(sizes) <= self.strip_budget


def choose_solver(solver: str, isa: str, rows: int, rank: int, stored: bool) -> str:
    """Gram or power: whichever takes the fewer seconds a column.

    ``stored``: the deltas are those of shards, which every pass of power iteration reads again.
    That is counted also where they would fit into memory: the solvers differ in their last bits,
    and the bytes of an output must not depend on how much memory a run was given.
    """
    if solver != "auto":
        return solver
    k = block_size(rows, rank)
    reading = 2 * rows / (STORAGE_RATE.get(isa, 1.0) if stored else MEMORY_RATE.get(isa, math.inf))
    gram = max(rows * (rows + 1) / GRAM_RATE[isa], reading)
    power = POWER_PASSES * max(4 * rows * k / POWER_RATE[isa], reading)
    return "power" if power < gram else "gram"


def make_plan(
    trajectory: Trajectory,
    *,
    targets: int,
    scanned: bool,
    solver: str = "auto",
    rank: int = 1,
    isa: str = "scalar",
    memory_limit: str | int | None = None,
    io: str = "auto",
    dtype: str | None = None,
    rows_read: Mapping[str, Sequence[int]] | None = None,
    devices: Devices | None = None,
    apart: bool = False,
    span: int = SPAN,
) -> Plan:
    """Lay out a run with ``targets`` outputs (0: scan only); ``scanned``: G is known already, and
    combine reads only the ``rows_read`` of each tensor; ``devices``: who computes, if not the
    processor; ``apart``: all tensors are scanned before the first is combined; ``span``: columns
    that are summed from zero.

    Raises:
        InputError: an unknown solver or io, or a memory limit too small for three windows.
    """
    if solver not in SOLVERS:
        raise InputError(f"solver: expected one of {', '.join(SOLVERS)}, found {solver}")
    limit = parse_bytes(memory_limit)
    rows = len(trajectory.steps)
    if rows > _core.MAX_ROWS:
        raise InputError(f"checkpoints: expected at most {_core.MAX_ROWS}, found {rows}")
    out_item = {t.name: ITEM_SIZE[dtype or t.rows[-1].dtype] for t in trajectory.trained}
    demand = Demand(trajectory.trained, rows, targets, block_size(rows, rank), out_item, span)
    room: HostRoom | DeviceRoom
    if devices is None:
        room = HostRoom(demand, limit)
        folders = [trajectory.base.folder, *(c.folder for c in trajectory.checkpoints)]
        io, reason = choose_io(io, folders, room.window_limit // (rows + 1))
        room.mapped = io == "mmap"
    else:
        io, reason = choose_device_io(io, devices.no_gds)
        room = DeviceRoom(demand, limit, devices)

    kind = "none" if scanned else choose_solver(solver, isa, rows, rank, stored=True)
    plans = []
    read = written = 0
    for tensor in trajectory.trained:
        window = room.columns(tensor)
        fits = room.holds(tensor, window)
        resident = fits and ((targets > 0 and not scanned and not apart) or kind == "power")
        plans.append(TensorPlan(tensor, window, resident, kind, span))
        scan_passes = 0 if scanned else POWER_PASSES if kind == "power" and not resident else 1
        combine_passes = 1 if targets and not (resident and not scanned) else 0
        read += tensor.nbytes * scan_passes
        if combine_passes:
            entries = [tensor.base, *tensor.rows]
            used = entries if rows_read is None else _used(tensor, rows_read[tensor.name])
            read += sum(entry.nbytes for entry in used)
        written += targets * tensor.columns * out_item[tensor.name]
    carried = sum(t.base.nbytes for t in trajectory.tensors if not t.trained)
    return Plan(
        tensors=tuple(plans),
        io=io,
        io_reason=reason,
        memory_limit=limit,
        strip_budget=room.budget if isinstance(room, HostRoom) else 0,
        staging=room.staging if isinstance(room, DeviceRoom) else None,
        bytes_read=read,
        passes=read / demand.strip_bytes if demand.strip_bytes else 0.0,
        peak_memory=room.peak_memory,
        bytes_written=written + targets * carried,
        apart=apart,
        supply=trajectory.supply,
    )


def share(tensors: Sequence[TensorPlan], devices: int) -> list[list[TensorPlan]]:
    """Tensors to each device, about the same bytes to all: the largest first, each to the device
    that has the least so far, and no other part of the same tensor. A device's are in the plan's
    order; none goes without."""
    loads = [0] * devices
    taken: list[list[int]] = [[] for _ in range(devices)]
    sizes = [item.nbytes for item in tensors]
    of: dict[str, set[int]] = {}
    for i in sorted(range(len(tensors)), key=lambda i: (-sizes[i], i)):
        there = of.setdefault(tensors[i].tensor.name, set())
        least = min(set(range(devices)) - there, key=lambda d: (loads[d], d))
        there.add(least)
        loads[least] += sizes[i]
        taken[least].append(i)
    return [[tensors[i] for i in sorted(indices)] for indices in taken if indices]


def free_space(folder: Path) -> int:
    """Free bytes where ``folder`` is or would be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _used(tensor: Tensor, rows: Sequence[int]) -> list[TensorEntry]:
    return [tensor.base, *(tensor.rows[t] for t in rows)]
