"""The simulated cluster: against closed forms, hand-worked cases and the product's plan."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from relex_ext.room import SPAN
from simulate.jobs import Cluster, resumed, simulate
from simulate.machines import FileSystem, Node, Rates
from simulate.models import Model, models
from simulate.partition import partition
from simulate.sharing import fair_shares
from simulate.streaming import LABELS, Streaming
from simulate.workload import Load, loads

ROWS = 20
MODEL = Model("small", {f"w{i}": (1 << 20, 6) for i in range(8)} | {"norm": (4096,)})
STRIPS = (ROWS + 1) * MODEL.nbytes

INSTANT = Rates(
    "avx512", gram={1: 1e18}, power={1: 1e18}, combine=1e18, map=1e18, read=1e18, hash=1e18,
    strip=0.0, weigh={1: 0.0}, verdict={1: 0.0}, entry=0.0, start=0.0,
)  # fmt: skip
NODE = Node(16, 64 << 30, 1e18, 1e18, 1e18, 0.0)
INFINITE = FileSystem("none", "pread", 1e18, 1e18, 1e18, 1e18, 1e18, 0.0, 0.0, 1e18, 0.0)


def loads_of(nodes: int, node: Node, fs: FileSystem, rates: Rates) -> list[Load]:
    return loads(MODEL, ROWS, nodes, node, fs, rates, 1000)


def test_models_are_the_published_ones() -> None:
    """Parameters as their owners count them."""
    counts = {name: model.parameters for name, model in models().items()}
    assert counts == {"8B": 8_030_261_248, "70B": 70_553_706_496, "700B": 671_026_419_200}


def test_fair_shares_by_hand() -> None:
    """10 among clients that take 1, 2, 8 and 8 at most: the small ones have all they can take, and
    the others 3.5 each."""
    most = np.array([8.0, 1.0, 8.0, 2.0])
    assert fair_shares(most, 10.0).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert fair_shares(most, 19.0).tolist() == most.tolist()
    assert fair_shares(most, 2.0).tolist() == [0.5] * 4


@pytest.mark.parametrize("ranks", [1, 3, 16])
def test_partition_covers_every_column_once(ranks: int) -> None:
    columns = [40 * SPAN + 17, 3 * SPAN, 5, 90 * SPAN, 1]
    shares = partition(columns, [False, False, False, True, False], ranks)
    parts = sorted(part for mine in shares for part in mine)
    for tensor, count in enumerate(columns):
        mine = [part for part in parts if part.tensor == tensor]
        assert [p.begin for p in mine] == [0, *(p.end for p in mine[:-1])]
        assert mine[-1].end == count
        assert all(p.begin % SPAN == 0 for p in mine)
    assert sum(part.tensor == 3 for part in parts) == 1
    assert all(len({part.tensor for part in mine}) == len(mine) for mine in shares)


@pytest.mark.parametrize("nodes", [1, 3])
def test_reads_what_the_plan_says(nodes: int) -> None:
    """Once where memory holds a tensor, twice where it does not."""
    for limit, passes in ((64 << 30, 1.0), (200 << 20, 2.0)):
        node = dataclasses.replace(NODE, memory_limit=limit)
        done = simulate(MODEL, ROWS, Cluster(nodes, node, INFINITE, INSTANT))
        assert done.passes == pytest.approx(passes, rel=1e-3)  # the norm is held in any case
        assert done.written == pytest.approx(MODEL.nbytes)
        work = loads_of(nodes, node, INFINITE, INSTANT)
        assert done.read == pytest.approx(sum(i.bytes_read for w in work for i in w.items))
        assert done.peak <= limit


def test_the_file_system_alone() -> None:
    """Four clients at a tenth of what they could: the strips over its rate, to the digit."""
    fs = dataclasses.replace(INFINITE, read_total=1e9, read_client=2.5e9)
    done = simulate(MODEL, ROWS, Cluster(4, NODE, fs, INSTANT))
    assert done.seconds == pytest.approx(STRIPS / 1e9, rel=1e-6)
    assert done.bound == "read: file system"
    assert done.floor == pytest.approx(done.seconds, rel=1e-6)


def test_the_client_alone() -> None:
    fs = dataclasses.replace(INFINITE, read_client=1e9)
    done = simulate(MODEL, ROWS, Cluster(1, NODE, fs, INSTANT))
    assert done.seconds == pytest.approx(STRIPS / 1e9, rel=1e-6)
    assert done.bound == "read: client"


def test_requests_alone() -> None:
    """Four loaders, each waiting a millisecond for the first byte of each piece of 8 MiB."""
    fs = dataclasses.replace(INFINITE, latency=1e-3, stream=8e9)
    work = loads_of(1, NODE, fs, INSTANT)[0]
    wide = work.items[0].chunks[0]
    assert 2 * wide.columns >= 8 << 20
    assert wide.reading == pytest.approx(4 * (8 << 20) / (1e-3 + (8 << 20) / 8e9))
    assert simulate(MODEL, ROWS, Cluster(1, NODE, fs, INSTANT)).bound == "read: requests"


def test_arithmetic_alone() -> None:
    rates = dataclasses.replace(INSTANT, gram={1: 1e9})
    node = dataclasses.replace(NODE, cores=2)
    done = simulate(MODEL, ROWS, Cluster(1, node, INFINITE, rates))
    operations = ROWS * (ROWS + 1) * MODEL.parameters
    assert done.seconds == pytest.approx(operations / 2e9, rel=1e-3)  # the norm is for one core
    assert done.bound == "arithmetic"


def test_writing_alone() -> None:
    fs = dataclasses.replace(INFINITE, write_total=1e8)
    done = simulate(MODEL, ROWS, Cluster(2, NODE, fs, INSTANT))
    assert done.seconds == pytest.approx(MODEL.nbytes / 1e8, rel=1e-6)
    assert done.bound == "write"


def test_reading_goes_on_beside_arithmetic() -> None:
    """Two stages of the same length: the second ends one of the eight tensors later."""
    fs = dataclasses.replace(INFINITE, read_client=1e9)
    seconds = STRIPS / 1e9
    operations = ROWS * (ROWS + 1) * MODEL.parameters
    rates = dataclasses.replace(INSTANT, gram={1: operations / seconds / NODE.cores})
    done = simulate(MODEL, ROWS, Cluster(1, NODE, fs, rates))
    assert seconds < done.seconds < (1 + 1.5 / 8) * seconds


def test_a_straggler_is_waited_for() -> None:
    fs = dataclasses.replace(INFINITE, read_client=1e9)
    even = simulate(MODEL, ROWS, Cluster(4, NODE, fs, INSTANT))
    slow = simulate(MODEL, ROWS, Cluster(4, NODE, fs, INSTANT), [1.0, 1.0, 0.5, 1.0])
    assert slow.seconds == pytest.approx(2 * even.seconds, rel=1e-3)
    assert slow.phases["imbalance"] + slow.phases["sums"] > 0.2 * slow.seconds


def test_faster_is_never_slower() -> None:
    rates = dataclasses.replace(INSTANT, gram={1: 20e9}, combine=5e9, hash=1e9, weigh={1: 1e-3})
    times = []
    for rate in (0.5e9, 1e9, 2e9, 4e9, 8e9):
        fs = dataclasses.replace(INFINITE, read_total=rate, write_total=rate)
        times.append(simulate(MODEL, ROWS, Cluster(3, NODE, fs, rates)).seconds)
    assert times == sorted(times, reverse=True)
    assert times[0] > 1.5 * times[-1]


def test_same_again() -> None:
    fs = dataclasses.replace(INFINITE, read_total=3e9)
    paces = [1.0, 0.9, 0.97]
    first, again = (simulate(MODEL, ROWS, Cluster(3, NODE, fs, INSTANT), paces) for _ in range(2))
    assert first == again


def test_time_is_accounted_for() -> None:
    """Every rank does or waits for something at every moment."""
    fs = dataclasses.replace(INFINITE, read_total=3e9, write_client=1e8)
    rates = dataclasses.replace(INSTANT, gram={1: 20e9}, weigh={1: 1e-3})
    done = Streaming(loads_of(3, NODE, fs, rates), ROWS, NODE, fs, rates).run()
    assert done.spent.shape == (3, len(LABELS))
    np.testing.assert_allclose(done.spent.sum(axis=1), done.seconds)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_after_a_death_no_finished_tensor_is_done_again(share: float) -> None:
    fs = dataclasses.replace(INFINITE, read_total=1e9, write_client=5e8)
    rates = dataclasses.replace(INSTANT, gram={1: 20e9})
    cluster = Cluster(3, NODE, fs, rates)
    whole = simulate(MODEL, ROWS, cluster)
    broken, first, second = resumed(MODEL, ROWS, cluster, share * whole.seconds)
    work = loads_of(3, NODE, fs, rates)
    sharers = Counter(part.tensor for w in work for item in w.items for part in item.parts)
    parts = Counter(part.tensor for part in first.finished)
    finished = {tensor for tensor, count in parts.items() if count == sharers[tensor]}
    after = [part.tensor for part in second.finished]
    assert finished.isdisjoint(after)
    assert finished.isdisjoint(part.tensor for part in second.scanned)
    assert finished | {*after} == {*range(len(MODEL.tensors))}
    assert Counter(after) == {t: sharers[t] for t in after}
    assert broken.seconds > whole.seconds
    assert whole.read <= broken.read < 2 * whole.read
