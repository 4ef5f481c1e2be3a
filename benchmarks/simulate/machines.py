"""What runs are simulated on: measured rates of one core, assumed nodes and file systems."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

Table = Mapping[int, float]
"""Number of checkpoints T → a rate; linear in between, constant beyond."""


def at(table: Table, rows: int) -> float:
    return float(np.interp(rows, list(table), list(table.values())))


@dataclass(frozen=True, slots=True)
class Rates:
    """Of one core, as calibrate.py measures them, in seconds, bytes and operations."""

    isa: str
    gram: Table
    """Operations a second, T(T+1) for each column."""
    power: Table
    """The same of a step of power iteration, 4Tk for each column."""
    combine: float
    """Bytes a second, read and written."""
    map: float
    """Bytes a second of the page cache into a mapping, and out of it again."""
    read: float
    """Bytes a second out of the page cache into a buffer."""
    hash: float
    """Bytes a second through SHA-256 and into the page cache."""
    strip: float
    """Seconds for each strip of a window, in Python."""
    weigh: Table
    """Seconds from a tensor's Gram matrix to its weights, entered in scan and journal."""
    verdict: Table
    """Seconds for each tensor, at the end."""
    entry: float
    """Seconds for each tensor of each header."""
    start: float
    """Seconds until Python has imported everything."""

    @classmethod
    def load(cls, path: Path) -> Rates:
        found: dict[str, Any] = json.loads(path.read_text())["results"]
        tables = ("gram", "power", "weigh", "verdict")
        return cls(**{k: _by_rows(v) if k in tables else v for k, v in found.items()})

    def record(self) -> dict[str, Any]:
        return asdict(self)


def _by_rows(table: Mapping[str, float]) -> Table:
    return {int(rows): value for rows, value in table.items()}


@dataclass(frozen=True, slots=True)
class Node:
    """A machine, with one process that uses all of it."""

    cores: int
    memory_limit: int
    """Bytes, as ``--memory-limit``; by default the product takes half of what is available."""
    memory_bandwidth: float
    """Bytes a second of all cores together."""
    dirty: float
    """Bytes of written pages that the kernel keeps before it makes the writer wait."""
    network: float = 50e9
    """Bytes a second to other nodes, for sums of divided tensors."""
    hop: float = 20e-6
    """Seconds from one node to another."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """Ceilings in bytes a second. ``*_total``: of all clients together, of each node where it is
    the node's own (``local``); ``*_client``: of one; ``stream``: of one request at a time, which
    begins after ``latency`` seconds."""

    name: str
    io: str
    read_total: float
    write_total: float
    read_client: float
    write_client: float
    stream: float
    latency: float
    open: float
    """Seconds until a file is open, for who opens one after the other."""
    opens_total: float
    """Files opened a second, of all clients together."""
    fsync: float
    local: bool = False

    def totals(self, nodes: int) -> tuple[float, float]:
        """(reading, writing) of so many clients."""
        scale = nodes if self.local else 1
        return scale * self.read_total, scale * self.write_total


GB = 1e9

NODE = Node(
    cores=96, memory_limit=512 << 30, memory_bandwidth=400 * GB, dirty=200 * GB, network=50 * GB
)
"""Two sockets of 48 cores and 1 TiB with the rates measured per core here: memory bandwidth and
network as on data sheets of such machines, none of it measured."""

FILE_SYSTEMS = {
    "nvme": FileSystem(
        "local NVMe", "mmap", 12 * GB, 6 * GB, 12 * GB, 6 * GB, 4 * GB, 1e-4, 2e-5, 1e6, 2e-3, True
    ),
    "nfs": FileSystem(
        "NFS, one server", "pread", 2.5 * GB, 1.5 * GB, 2.5 * GB, 1.5 * GB, 1.2 * GB, 1e-3, 1e-3,
        5e3, 1e-2,
    ),
    "parallel": FileSystem(
        "parallel, 100 GB/s", "pread", 100 * GB, 50 * GB, 20 * GB, 10 * GB, 3 * GB, 5e-4, 5e-4,
        5e4, 5e-3,
    ),
    "parallel-large": FileSystem(
        "parallel, 1 TB/s", "pread", 1000 * GB, 500 * GB, 40 * GB, 20 * GB, 5 * GB, 3e-4, 5e-4,
        2e5, 5e-3,
    ),
    "object": FileSystem(
        "object store, mounted", "pread", 200 * GB, 100 * GB, 10 * GB, 5 * GB, 0.5 * GB, 3e-2, 6e-2,
        5e3, 1e-1,
    ),
}  # fmt: skip
"""Assumptions, of the order that vendors state; replace them by your own."""
