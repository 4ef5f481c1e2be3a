"""What a run will do before it does it: windows, passes, bytes, memory. All from headers.

A tensor is read in windows of whole segments, all its checkpoints side by side. When every window
of a tensor fits the memory limit together, they stay between scan and combine and the tensor is
read once; otherwise twice.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from relex_ext import _core
from relex_ext.checkpoints import TensorEntry
from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.power import block_size
from relex_ext.trajectory import Tensor, Trajectory

SOLVERS = ("auto", "gram", "power")
IOS = ("auto", "mmap", "pread")
WINDOW_BYTES = 256 << 20
"""A window's size where memory allows: enough segments to keep many threads busy."""

WINDOWS_AHEAD = 3
"""A memory limit holds at least this many windows: one read, one computed on, one in between."""

POWER_PASSES = 4
"""Passes power iteration takes for the cost model: the most that any tensor of the real run in
examples/tiny_grpo needs, at T from 50 to 200 (most need 3; benchmarks/bench_solver.py)."""

GRAM_RATE = {"scalar": 16.0, "avx2": 57.0, "avx512": 95.0, "avx512bf16": 64.0}
"""Measured GFLOP/s of one core's gram, and below of its power_step with four vectors. Only their
ratio decides, and it decides the same way on every run (benchmarks/bench_solver.py)."""

POWER_RATE = {"scalar": 9.0, "avx2": 37.0, "avx512": 51.0, "avx512bf16": 49.0}

FOLIO = 2 << 20
"""The largest piece of a file that one page fault maps."""

_REMOTE = re.compile(r"nfs|cifs|smb|fuse|lustre|gpfs|beegfs|ceph|9p|virtiofs|afs|glusterfs")


@dataclass(frozen=True, slots=True)
class TensorPlan:
    tensor: Tensor
    window: int
    """Columns per window, a multiple of the segment."""
    resident: bool
    """Its windows stay in memory from scan to combine."""
    solver: str
    """``gram``, ``power``, or ``none`` where a cached scan answers."""

    @property
    def windows(self) -> list[tuple[int, int]]:
        """(begin, end) columns of each window."""
        return cut(self.tensor, self.window)


@dataclass(frozen=True, slots=True)
class Plan:
    tensors: tuple[TensorPlan, ...]
    io: str
    io_reason: str
    memory_limit: int
    strip_budget: int
    """Bytes of windows in memory at any time."""
    bytes_read: int
    """From the shards, all passes; power iteration counted with its expected passes."""
    passes: float
    """bytes_read over the bytes of all strips."""
    peak_memory: int
    """Windows and output buffers at their fullest, without the interpreter's own ~100 MB."""
    bytes_written: int


def available_memory() -> int:
    """Bytes this process can use without swapping: what the system offers, within its cgroup."""
    available = 4 << 30
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit))
    except OSError:
        pass  # not Linux, or no cgroup v2: the default or the system's figure stands
    return available


def parse_bytes(text: str | int | None) -> int:
    """``"2GiB"``, ``"500MB"``, ``1 << 30`` → bytes; None → half of what is available."""
    if text is None:
        return available_memory() // 2
    if isinstance(text, int):
        return text
    units = {"": 1, "K": 10, "M": 20, "G": 30, "T": 40}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(iB|B)?\s*", text, re.IGNORECASE)
    if not match:
        raise InputError(f"memory_limit: expected a size like 2GiB or 500MB, found {text!r}")
    unit = match[2].upper()
    decimal = (match[3] or "").upper() == "B" and unit != ""
    scale = 1000 ** "KMGT".index(unit) * 1000 if decimal else 1 << int(units[unit])
    return int(float(match[1]) * scale)


def choose_io(io: str, folders: Sequence[Path], strip: int) -> tuple[str, str]:
    """(``mmap`` or ``pread``, why), for strips of up to so many bytes.

    Mapped files of network file systems stall and fault badly. And the kernel maps large folios
    whole: strips shorter than those would bring in more than the memory limit allows for.
    """
    if io not in IOS:
        raise InputError(f"io: expected one of {', '.join(IOS)}, found {io}")
    if io != "auto":
        return io, "as asked"
    kinds = {_file_system(folder) for folder in folders}
    remote = sorted(kind for kind in kinds if _REMOTE.search(kind))
    if remote:
        return "pread", f"{remote[0]} file system"
    if strip < FOLIO:
        return "pread", "strips too short to map"
    return "mmap", "local file system"


def _file_system(folder: Path) -> str:
    """The type of the file system that holds a folder, by the longest matching mount point."""
    path = os.path.realpath(folder)
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def choose_solver(solver: str, isa: str, rows: int, rank: int, resident: bool) -> str:
    """Gram or power for one tensor: whichever takes the fewer seconds of arithmetic.

    Out of memory every pass of power iteration reads the shards again, which nothing makes up for.
    """
    if solver != "auto":
        return solver
    if not resident:
        return "gram"
    k = block_size(rows, rank)
    gram = rows * (rows + 1) / GRAM_RATE[isa]
    power = POWER_PASSES * 4 * rows * k / POWER_RATE[isa]
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
) -> Plan:
    """Lay out a run with ``targets`` outputs (0: scan only); ``scanned``: G is known already, and
    combine reads only the ``rows_read`` of each tensor.

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
    columns = {t.name: _bytes_per_column(t) for t in trajectory.trained}
    # Per column: its strips, and two output buffers per target (one filled, one written).
    widest = max((columns[n] + 2 * targets * out_item[n] for n in columns), default=1)
    smallest = WINDOWS_AHEAD * widest * _core.SEGMENT
    # A model smaller than three windows needs no more than itself, read whole.
    all_strips = sum(t.nbytes for t in trajectory.trained)
    needed = min(smallest, all_strips + 2 * targets * max(out_item.values()) * _core.SEGMENT)
    if limit < needed:
        raise InputError(
            f"memory_limit: expected at least {human(needed)} for {rows} checkpoints, "
            f"found {human(limit)}"
        )
    window_limit = min(WINDOW_BYTES, limit // WINDOWS_AHEAD)
    folders = [trajectory.base.folder, *(c.folder for c in trajectory.checkpoints)]
    io, reason = choose_io(io, folders, window_limit // (rows + 1))
    segments = max(1, window_limit // (widest * _core.SEGMENT))
    out_buffers = 2 * targets * max(out_item.values(), default=0) * segments * _core.SEGMENT
    out_buffers = min(out_buffers, 2 * targets * max(t.columns for t in trajectory.trained) * 4)
    budget = limit - out_buffers

    plans = []
    read = written = 0
    for tensor in trajectory.trained:
        per_column = columns[tensor.name] + 2 * targets * out_item[tensor.name]
        window = max(1, window_limit // (per_column * _core.SEGMENT)) * _core.SEGMENT
        entries = [tensor.base, *tensor.rows]
        sizes = [window_bytes(entries, e - b, io == "mmap") for b, e in cut(tensor, window)]
        fits = sum(sizes) <= budget
        resident = fits and targets > 0 and not scanned
        kind = "none" if scanned else choose_solver(solver, isa, rows, rank, fits)
        if kind == "power" and fits:
            resident = True
        plans.append(TensorPlan(tensor, window, resident, kind))
        scan_passes = 0 if scanned else POWER_PASSES if kind == "power" and not resident else 1
        combine_passes = 1 if targets and not (resident and not scanned) else 0
        read += tensor.nbytes * scan_passes
        if combine_passes:
            used = entries if rows_read is None else _used(tensor, rows_read[tensor.name])
            read += sum(entry.nbytes for entry in used)
        written += targets * tensor.columns * out_item[tensor.name]
    carried = sum(t.base.nbytes for t in trajectory.tensors if not t.trained)
    return Plan(
        tensors=tuple(plans),
        io=io,
        io_reason=reason,
        memory_limit=limit,
        strip_budget=budget,
        bytes_read=read,
        passes=read / all_strips if all_strips else 0.0,
        peak_memory=min(budget, all_strips) + out_buffers,
        bytes_written=written + targets * carried,
    )


def cut(tensor: Tensor, window: int) -> list[tuple[int, int]]:
    """(begin, end) columns of a tensor's windows."""
    n = tensor.columns
    return [(c, min(c + window, n)) for c in range(0, n, window)]


def window_bytes(entries: Sequence[TensorEntry], columns: int, mapped: bool) -> int:
    """Memory that a window of so many columns of these entries takes."""
    size = columns * sum(ITEM_SIZE[entry.dtype] for entry in entries)
    return size if mapped else buffer_size(size)


def buffer_size(size: int) -> int:
    """Rounded up to an eighth of its power of two, so that buffers of like sizes can be swapped."""
    step = max(4096, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def free_space(folder: Path) -> int:
    """Free bytes where ``folder`` is or would be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def human(size: float) -> str:
    """1536 → ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def _used(tensor: Tensor, rows: Sequence[int]) -> list[TensorEntry]:
    return [tensor.base, *(tensor.rows[t] for t in rows)]


def _bytes_per_column(tensor: Tensor) -> int:
    return ITEM_SIZE[tensor.base.dtype] + sum(ITEM_SIZE[row.dtype] for row in tensor.rows)
