"""Whole runs: headers, streaming, publishing; and one that a dead rank interrupts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulate.machines import FileSystem, Node, Rates, at
from simulate.models import Model
from simulate.partition import Part
from simulate.streaming import LABELS, LIMITS, Streamed, Streaming
from simulate.workload import Item, Load, loads

CHUNKS = 3_000
"""Pieces that the model is moved in, of all ranks together, where windows are smaller."""

DETECTION = 60.0
"""Seconds until a dead rank has ended the job and the scheduler has started it again."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """So many nodes alike, and what they read from."""

    nodes: int
    node: Node
    fs: FileSystem
    rates: Rates
    processes: int = 1
    """Of a node: each has its share of cores, memory and network."""

    @property
    def ranks(self) -> int:
        return self.nodes * self.processes

    @property
    def process(self) -> tuple[Node, FileSystem]:
        """The node and the client that one process sees."""
        n, node, fs = self.processes, self.node, self.fs
        return (
            replace(
                node, cores=max(1, node.cores // n), memory_limit=node.memory_limit // n,
                memory_bandwidth=node.memory_bandwidth / n, dirty=node.dirty / n,
                network=node.network / n,
            ),
            replace(
                fs, read_client=fs.read_client / n, write_client=fs.write_client / n,
                read_total=fs.read_total / (n if fs.local else 1),
                write_total=fs.write_total / (n if fs.local else 1),
            ),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """``phases``: seconds by what they went to; ``bound``: the longest of them; ``peak``: bytes of
    memory of the fullest node; ``read``, ``written``: bytes of all together; ``floor``: seconds
    that reading every strip once takes at the file system's ceiling."""

    seconds: float
    phases: Mapping[str, float]
    bound: str
    passes: float
    read: float
    written: float
    peak: float
    floor: float
    solvers: Mapping[str, int]


def simulate(
    model: Model, rows: int, cluster: Cluster, paces: Sequence[float] | None = None
) -> Outcome:
    """``paces``: of each rank, 1 as described."""
    node, fs = cluster.process
    work = loads(model, rows, cluster.ranks, node, fs, cluster.rates, CHUNKS)
    streamed = Streaming(work, rows, node, fs, cluster.rates, paces).run()
    return outcome(model, rows, cluster, work, [streamed], 0.0)


def resumed(
    model: Model, rows: int, cluster: Cluster, death: float, paces: Sequence[float] | None = None
) -> tuple[Outcome, Streamed, Streamed]:
    """A rank dies ``death`` seconds into the streaming; the same command is given again. Also the
    two streamings."""
    node, fs = cluster.process
    work = loads(model, rows, cluster.ranks, node, fs, cluster.rates, CHUNKS)
    first = Streaming(work, rows, node, fs, cluster.rates, paces).run(until=death)
    left = [_left(load, first, work) for load in work]
    second = Streaming(left, rows, node, fs, cluster.rates, paces).run()
    # Whoever goes on hashes again what it finds written.
    again = max(a.written - b.written for a, b in zip(work, left, strict=True))
    lost = DETECTION + again / cluster.rates.hash + opening(model, rows, cluster)
    return outcome(model, rows, cluster, work, [first, second], lost), first, second


def _left(load: Load, before: Streamed, work: Sequence[Load]) -> Load:
    """What a rank still has to do: a tensor that several share is done when all are."""
    finished, scanned = _whole(before.finished, work), _whole(before.scanned, work)
    items = [
        replace(item, solver="none", resident=False) if item.parts[0].tensor in scanned else item
        for item in load.items
        if item.parts[0].tensor not in finished
    ]
    return replace(load, items=tuple(items))


def _whole(parts: Sequence[Part], work: Sequence[Load]) -> set[int]:
    done = Counter(part.tensor for part in parts)
    return {
        part.tensor
        for load in work
        for item in load.items
        for part in item.parts
        if done[part.tensor] == item.sharers
    }


def opening(model: Model, rows: int, cluster: Cluster) -> float:
    """Seconds until every rank knows all headers, each on its own, and has opened all files."""
    files = (rows + 1) * model.shards
    parse = (rows + 1) * len(model.tensors) * cluster.rates.entry
    queued = cluster.ranks * files / cluster.fs.opens_total
    return cluster.rates.start + parse + 2 * max(files * cluster.fs.open, queued)


def publishing(model: Model, rows: int, cluster: Cluster, items: Sequence[Item]) -> float:
    """Seconds of rank 0 at the end: durable shards, the inputs looked at again, the verdict."""
    shards = model.shards * cluster.fs.fsync
    look = (rows + 1) * model.shards * cluster.fs.open
    kept = 8 * rows * rows * sum(len(item.parts) for item in items if item.solver == "gram")
    judged = at(cluster.rates.verdict, rows) if all(i.solver == "gram" for i in items) else 0.0
    return shards + look + kept / cluster.rates.hash + judged * len(model.tensors)


def outcome(
    model: Model, rows: int, cluster: Cluster, work: Sequence[Load],
    streamed: Sequence[Streamed], lost: float,
) -> Outcome:  # fmt: skip
    items = [item for load in work for item in load.items]
    spent = sum(part.spent for part in streamed).mean(axis=0)
    limited = sum(part.limited for part in streamed)
    phases = {label: float(s) for label, s in zip(LABELS, spent, strict=True)}
    reading = phases.pop("read")
    if limited.sum() > 0.0:
        for limit, seconds in zip(LIMITS, limited / limited.sum() * reading, strict=True):
            phases[f"read: {limit}"] = float(seconds)
    phases["imbalance"] = phases.pop("ended")
    phases["headers"] = opening(model, rows, cluster)
    phases["publishing"] = publishing(model, rows, cluster, items)
    if lost:
        phases["resuming"] = lost
    strips = (rows + 1) * model.nbytes
    read = float(sum(part.read.sum() for part in streamed))
    peaks = np.max([part.peak for part in streamed], axis=0)
    return Outcome(
        seconds=sum(phases.values()),
        phases=phases,
        bound=max(phases, key=lambda name: phases[name]),
        passes=read / strips,
        read=read,
        written=float(sum(part.written.sum() for part in streamed)),
        peak=float(peaks.max() * cluster.processes),
        floor=strips / cluster.fs.totals(cluster.nodes)[0],
        solvers=dict(Counter(item.solver for item in items for _ in item.parts)),
    )
