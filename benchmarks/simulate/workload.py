"""What each rank has to do: the product's own plan for its tensors, and the work in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice

from relex_ext import _core
from relex_ext.plan import POWER_PASSES, Plan, TensorPlan, make_plan
from relex_ext.power import block_size
from relex_ext.windows import HostMemory
from simulate.machines import FileSystem, Node, Rates, at
from simulate.models import ITEM, Model, trajectory
from simulate.partition import Part, partition

PIECE = 8 << 20
"""Bytes of one request: csrc/io.cpp reads strips in pieces of at most that."""

RANK = 1
"""Singular pairs wanted."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive windows of a part, moved as one."""

    columns: int
    nbytes: int
    """Of its strips, which is what it takes of the memory."""
    reading: float
    """Bytes a second that the loaders' requests can bring at most."""
    scan: float
    """Seconds on all cores: one pass, or all of power iteration's in memory."""
    combine: float

    @property
    def written(self) -> int:
        """Bytes of its results."""
        return ITEM * self.columns

    def times(self, count: int) -> Chunk:
        """The same of so many tensors."""
        return replace(
            self, columns=count * self.columns, nbytes=count * self.nbytes,
            scan=count * self.scan, combine=count * self.combine,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Item:
    """A rank's part of a tensor, or several tensors alike that are done as one. ``sharers``: how
    many ranks have parts of it."""

    parts: tuple[Part, ...]
    solver: str
    resident: bool
    chunks: tuple[Chunk, ...]
    sharers: int

    @property
    def scans(self) -> int:
        """Readings from disk for the scan."""
        return {"none": 0, "gram": 1, "power": 1 if self.resident else POWER_PASSES}[self.solver]

    @property
    def again(self) -> bool:
        """Whether combine reads, too."""
        return self.solver == "none" or not self.resident

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self.chunks)

    @property
    def bytes_read(self) -> int:
        return self.nbytes * (self.scans + self.again)


@dataclass(frozen=True, slots=True)
class Load:
    """What one rank does. ``budget``: bytes of windows at any time; ``results``: bytes of output
    buffers beside them; ``weigh``: seconds from a tensor's sums to its weights."""

    items: tuple[Item, ...]
    budget: int
    results: int
    weigh: float

    @property
    def written(self) -> int:
        return sum(chunk.written for item in self.items for chunk in item.chunks)


class Planner:
    """The product's plan of any rank's parts, and what it costs on a node."""

    def __init__(self, rows: int, node: Node, fs: FileSystem, rates: Rates) -> None:
        self._rows, self._node, self._fs, self._rates = rows, node, fs, rates
        self._made: dict[tuple[int, int, str], tuple[Chunk, ...]] = {}

    def plan(self, sizes: Iterable[int], solver: str = "auto") -> Plan:
        """For one tensor of each size: room and solver depend on nothing else."""
        named = {str(size): size for size in sorted({*sizes})}
        return make_plan(
            trajectory(named, self._rows), targets=1, scanned=False, rank=RANK, solver=solver,
            isa=self._rates.isa, memory_limit=self._node.memory_limit, io=self._fs.io,
        )  # fmt: skip

    def load(self, parts: list[Part], sharers: Mapping[int, int], together: int) -> Load:
        """``together``: columns that are moved as one, if windows or tensors are smaller."""
        plan = self.plan(part.columns for part in parts)
        planned = {(item.tensor.columns, False): item for item in plan.tensors}
        cut = {part.columns for part in parts if sharers[part.tensor] > 1}
        if cut:
            tensors = self.plan(cut, "gram").tensors
            planned |= {(item.tensor.columns, True): item for item in tensors}
        # As much as a tenth of the memory at once would be another pipeline than the product's.
        together = min(together, plan.strip_budget // 10 // (ITEM * self._strips))
        items = []
        for (columns, count), alike in groupby(parts, lambda p: (p.columns, sharers[p.tensor])):
            item = planned[columns, count > 1]
            chunks = self._chunks(item, together)
            several = max(1, together // columns) if count == 1 else 1
            for bundle in _batched(alike, several):
                moved = tuple(chunk.times(len(bundle)) for chunk in chunks)
                items.append(Item(bundle, item.solver, item.resident, moved, count))
        results = plan.memory_limit - plan.strip_budget
        return Load(tuple(items), plan.strip_budget, results, at(self._rates.weigh, self._rows))

    def _chunks(self, item: TensorPlan, together: int) -> tuple[Chunk, ...]:
        columns = item.tensor.columns
        width = max(1, together // item.window) * item.window
        key = columns, width, item.solver
        if key not in self._made:
            self._made[key] = tuple(
                self._chunk(min(width, columns - begin), item)
                for begin in range(0, columns, width)
            )  # fmt: skip
        return self._made[key]

    @property
    def _strips(self) -> int:
        return self._rows + 1

    def _chunk(self, columns: int, item: TensorPlan) -> Chunk:
        rows, rates = self._rows, self._rates
        nbytes = self._strips * columns * ITEM
        moved = nbytes + ITEM * columns
        if item.solver == "gram":
            scan = self._computing(columns, item.window, rows * (rows + 1), at(rates.gram, rows))
            scan = max(scan, nbytes / self._node.memory_bandwidth)
        else:
            operations = 4 * rows * block_size(rows, RANK)
            scan = self._computing(columns, item.window, operations, at(rates.power, rows))
            scan = POWER_PASSES * max(scan, nbytes / self._node.memory_bandwidth)
        combine = self._computing(columns, item.window, ITEM * (rows + 2), rates.combine)
        combine = max(combine, moved / self._node.memory_bandwidth)
        return Chunk(columns, nbytes, self._reading(min(columns, item.window)), scan, combine)

    def _computing(self, columns: int, window: int, amount: float, rate: float) -> float:
        """Seconds for so much a column: a thread takes a segment of a window after the other, and
        those that find none wait for the last."""
        whole, rest = divmod(columns, window)
        turns = whole * self._turns(window) + self._turns(rest)
        return turns * amount / rate

    def _turns(self, columns: int) -> float:
        """Columns that the busiest core does."""
        segments = columns / _core.SEGMENT
        if segments <= self._node.cores:
            return min(columns, _core.SEGMENT)
        return math.ceil(segments / self._node.cores) * _core.SEGMENT

    def _reading(self, columns: int) -> float:
        """Each loader asks for a piece of a strip, and for the next when it has come. Mapped strips
        are announced, a window at a time: there the device decides."""
        if self._fs.io == "mmap":
            return math.inf
        length = min(ITEM * columns, PIECE)
        seconds = self._fs.latency + self._rates.strip + length / self._fs.stream
        return HostMemory.loaders * length / seconds


def loads(
    model: Model, rows: int, nodes: int, node: Node, fs: FileSystem, rates: Rates, chunks: int
) -> list[Load]:
    """Each rank's. ``chunks``: about how many there may be in all."""
    planner = Planner(rows, node, fs, rates)
    columns = [math.prod(shape) for shape in model.tensors.values()]
    solvers = {item.tensor.columns: item.solver for item in planner.plan(columns).tensors}
    shares = partition(columns, [solvers[n] == "power" for n in columns], nodes)
    sharers = Counter(part.tensor for mine in shares for part in mine)
    together = model.parameters // chunks
    return [planner.load(mine, sharers, together) for mine in shares if mine]


def _batched(parts: Iterable[Part], count: int) -> Iterator[tuple[Part, ...]]:
    left = iter(parts)
    while batch := tuple(islice(left, count)):
        yield batch
