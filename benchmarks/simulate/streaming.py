"""The streaming of all ranks at once, event by event: between two events every transfer and every
computation goes on at a constant rate.

A rank is what engine.py and stream.py make of it: a reader that goes ahead as far as the memory
limit lets it, a thread that computes, one that hashes results into the page cache, and the kernel,
which writes them back. Ranks share the file system; a rank's threads share its cores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from relex_ext.plan import POWER_PASSES
from relex_ext.room import SPAN
from relex_ext.windows import HostMemory
from simulate.machines import FileSystem, Node, Rates
from simulate.partition import Part
from simulate.sharing import fair_shares
from simulate.workload import Chunk, Item, Load

READ, COMPUTE, HASH, FLUSH = range(4)

LABELS = ("arithmetic", "weights", "read", "write", "sums", "ended")
"""What a rank's computing thread does or waits for."""

LIMITS = ("requests", "cores", "client", "file system")
"""What keeps a rank from reading faster."""

BUFFERS = 2
"""Sets of results: one is filled while the other is written."""


@dataclass(slots=True)
class Rank:
    load: Load
    queue: Iterator[Chunk]
    work: Iterator[float | str]
    next: Chunk | None = None
    used: int = 0
    peak: int = 0
    arrived: int = 0
    buffers: int = 0
    results: deque[tuple[Item, Chunk, bool]] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class Streamed:
    """``read``, ``written``, ``peak``: bytes of each rank; ``spent``: (ranks, LABELS) seconds;
    ``limited``: seconds that all ranks together waited for data, by LIMITS; ``scanned``,
    ``finished``: parts, in the order in which they were."""

    seconds: float
    read: NDArray[np.float64]
    written: NDArray[np.float64]
    peak: NDArray[np.float64]
    spent: NDArray[np.float64]
    limited: NDArray[np.float64]
    scanned: tuple[Part, ...]
    finished: tuple[Part, ...]


class Streaming:
    def __init__(
        self,
        loads: Sequence[Load],
        rows: int,
        node: Node,
        fs: FileSystem,
        rates: Rates,
        paces: Sequence[float] | None = None,
    ) -> None:
        """``paces``: of each rank's cores and network, 1 as described."""
        count = len(loads)
        self._node, self._rates, self._fs = node, rates, fs
        self._totals = fs.totals(count)
        self._pace = np.ones(count) if paces is None else np.array(paces, np.float64)
        self._loading = rates.map if fs.io == "mmap" else rates.read
        self._sum_bytes = 8 * rows * rows
        self._left = np.zeros((count, 4))
        self._rate = np.zeros((count, 4))
        self._alone = np.zeros(count, bool)  # what it computes is for one core
        self._requests = np.ones(count)
        self._label = np.zeros(count, int)
        self._limit = np.zeros(count, int)
        self._spent = np.zeros((count, len(LABELS)))
        self._limited = np.zeros(len(LIMITS))
        self._read = np.zeros(count)
        self._written = np.zeros(count)
        self._met: dict[tuple[int, int], int] = {}
        self._woken: deque[int] = deque(range(count))
        self._scanned: list[Part] = []
        self._finished: list[Part] = []
        self._ranks = [
            Rank(load, _passes(load.items), self._work(r, load)) for r, load in enumerate(loads)
        ]

    def run(self, until: float = np.inf) -> Streamed:
        """To the end, or for so many seconds."""
        now = 0.0
        while now < until:
            while self._woken:
                self._advance(self._woken.popleft())
            active = self._left > 0.0
            if not active.any():
                assert (self._label == LABELS.index("ended")).all(), "ranks wait for each other"
                break
            self._share(active)
            step = float(np.min(self._left[active] / self._rate[active]))
            step = min(step, until - now)
            now += step
            self._pass(step, active)
        peaks = np.array([rank.peak + rank.load.results for rank in self._ranks], np.float64)
        return Streamed(
            now, self._read, self._written, peaks, self._spent, self._limited,
            tuple(self._scanned), tuple(self._finished),
        )  # fmt: skip

    # ---- rates ---------------------------------------------------------------------------------

    def _share(self, active: NDArray[np.bool_]) -> None:
        """The rates at which everything goes on now."""
        node, rates, loaders = self._node, self._rates, HostMemory.loaders
        reading, computing, hashing, flushing = active.T
        threads = node.cores * (computing & ~self._alone) + loaders * reading + hashing
        core = self._pace * np.minimum(1.0, node.cores / np.maximum(threads, 1))
        limits = np.stack([
            self._requests, core * loaders * self._loading, self._pace * self._fs.read_client,
        ])  # fmt: skip
        most = limits.min(axis=0)
        shares = np.zeros_like(most)
        shares[reading] = fair_shares(most[reading], self._totals[0])
        self._limit = np.where(shares < most, LIMITS.index("file system"), limits.argmin(axis=0))
        self._rate[:, READ] = shares
        self._rate[:, HASH] = core * rates.hash
        taken = shares / self._loading + core * hashing
        spare = np.maximum(self._pace * node.cores - taken, 0.0) / node.cores
        self._rate[:, COMPUTE] = np.where(self._alone, self._pace, spare)
        writing = np.where(flushing, self._pace * self._fs.write_client, 0.0)
        self._rate[flushing, FLUSH] = fair_shares(writing[flushing], self._totals[1])

    def _pass(self, step: float, active: NDArray[np.bool_]) -> None:
        """Let so many seconds go by."""
        everyone = np.arange(len(self._ranks))
        self._spent[everyone, self._label] += step
        waiting = active[:, READ] & (self._label == LABELS.index("read"))
        self._limited += step * np.bincount(self._limit[waiting], minlength=len(LIMITS))
        moved = np.where(active, self._rate * step, 0.0)
        # What would take another nanosecond is done: it is the rounding of the others' ends.
        done = active & (self._left - moved <= 1e-9 * self._rate)
        moved = np.where(done, self._left, moved)
        self._left -= moved
        self._read += moved[:, READ]
        self._written += moved[:, FLUSH]
        for r, stage in np.argwhere(done):
            rank = self._ranks[r]
            if stage == READ:
                rank.arrived += 1
                rank.next = None
            elif stage == HASH:
                item, chunk, last = rank.results.popleft()
                rank.buffers -= 1
                self._left[r, FLUSH] += chunk.written
                if last:
                    self._finished.extend(item.parts)
            self._woken.append(r)

    # ---- what a rank does ----------------------------------------------------------------------

    def _advance(self, r: int) -> None:
        """Start whatever this rank can start."""
        rank, left = self._ranks[r], self._left
        while left[r, COMPUTE] <= 0.0:
            asked = next(rank.work, "ended")
            if isinstance(asked, str):
                busy = rank.results or left[r, FLUSH] > 0.0
                self._label[r] = LABELS.index("write" if asked == "ended" and busy else asked)
                break
            left[r, COMPUTE] = asked
        if left[r, HASH] <= 0.0 and rank.results and left[r, FLUSH] <= self._node.dirty:
            left[r, HASH] = rank.results[0][1].written
        if left[r, READ] <= 0.0:
            chunk = rank.next = rank.next or next(rank.queue, None)
            if chunk is not None and (
                not rank.used or rank.used + chunk.nbytes <= rank.load.budget
            ):
                rank.used += chunk.nbytes
                rank.peak = max(rank.peak, rank.used)
                self._requests[r] = chunk.reading
                left[r, READ] = chunk.nbytes

    def _work(self, r: int, load: Load) -> Iterator[float | str]:
        """The computing thread of a rank: yields seconds of work, or what it waits for; it is asked
        again whenever something has changed."""
        for item in load.items:
            if item.scans:
                yield from self._scan(r, item)
                self._begin(r, "weights")
                yield load.weigh * len(item.parts)
                self._scanned.extend(item.parts)
            for i, chunk in enumerate(item.chunks):
                if item.again:
                    yield from self._arrival(r)
                while self._ranks[r].buffers == BUFFERS:
                    yield "write"
                self._begin(r, "arithmetic")
                yield chunk.combine
                self._ranks[r].used -= chunk.nbytes
                self._ranks[r].buffers += 1
                self._ranks[r].results.append((item, chunk, i == len(item.chunks) - 1))

    def _scan(self, r: int, item: Item) -> Iterator[float | str]:
        turns = POWER_PASSES if item.solver == "power" else 1
        for turn in range(turns):
            for chunk in item.chunks:
                if turn < item.scans:
                    yield from self._arrival(r)
                if item.scans == turns:
                    yield from self._compute(r, chunk.scan / turns)
                if not item.resident:
                    self._ranks[r].used -= chunk.nbytes
            if item.scans < turns:
                yield from self._compute(r, sum(chunk.scan for chunk in item.chunks) / turns)
            if item.sharers > 1:
                yield from self._meet(r, item, turn)

    def _compute(self, r: int, seconds: float) -> Iterator[float]:
        self._begin(r, "arithmetic")
        yield seconds

    def _arrival(self, r: int) -> Iterator[str]:
        """Wait for the next chunk."""
        while not self._ranks[r].arrived:
            yield "read"
        self._ranks[r].arrived -= 1

    def _meet(self, r: int, item: Item, turn: int) -> Iterator[float | str]:
        """Wait until all ranks have their sums of a tensor's spans, and gather them in a ring."""
        key = item.parts[0].tensor, turn
        self._met[key] = self._met.get(key, 0) + 1
        if self._met[key] == item.sharers:
            self._woken.extend(range(len(self._ranks)))
        while self._met[key] < item.sharers:
            yield "sums"
        spans = item.sharers * -(-item.parts[0].columns // SPAN)
        self._begin(r, "sums", alone=True)
        yield (item.sharers - 1) * self._node.hop + spans * self._sum_bytes / self._node.network

    def _begin(self, r: int, label: str, alone: bool = False) -> None:
        self._label[r] = LABELS.index(label)
        self._alone[r] = alone or label == "weights"


def _passes(items: Sequence[Item]) -> Iterator[Chunk]:
    """What is read, in order."""
    for item in items:
        for _ in range(item.scans + item.again):
            yield from item.chunks
