"""The same bytes whatever way a run took: threads, memory, io, cached scans."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
import tolerances
from folders import MODEL, SHARDS, RunFolder, Spec, digest, make_run, read_model
from relex_ext import Extrapolation, InputError, Scan, extrapolate, scan
from tables import ISAS

BIG = {**MODEL, "model.big": Spec((12, 70_001)), "model.wide": Spec((70_001,), "F32", ("F32",))}
"""Tensors of several segments, so that there is something to cut."""

SMALLEST = "found 1 B"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    shards = (*SHARDS, ("model.big", "model.wide"))
    return make_run(tmp_path_factory.mktemp("paths"), model=BIG, shards=shards)


def go(run: RunFolder, out: Path, targets: object = (100, 62.5), **options: Any) -> Extrapolation:
    return extrapolate(run.base, run.checkpoints, targets, out, progress=False, **options)


def weights_of(out: Path) -> dict[str, str]:
    """Digests of everything but relex.json and the scan, which name folders and options."""
    return {n: d for n, d in digest(out).items() if n.startswith("step_")}


def smallest_limit(run: RunFolder, targets: int) -> int:
    """By bisection, in bytes: the least memory that a plan accepts."""
    low, high = 1, 1 << 34
    while high - low > 1:
        middle = (low + high) // 2
        try:
            go(run, Path("never"), list(range(targets)), memory_limit=middle, dry_run=True)
            high = middle
        except InputError:
            low = middle
    return high


@pytest.fixture(scope="module")
def reference(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("reference") / "out"
    go(run, out, threads=1, io="mmap", memory_limit="1GiB", solver="gram")
    return weights_of(out)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("memory", ["smallest", "a little more", "1GiB"])
def test_same_bytes(
    run: RunFolder,
    reference: dict[str, str],
    tmp_path: Path,
    threads: int,
    io: str,
    memory: str,
) -> None:
    least = smallest_limit(run, 2)
    limit = {"smallest": least, "a little more": least * 5 // 4}.get(memory, memory)
    done = go(run, tmp_path / "out", threads=threads, io=io, memory_limit=limit, solver="gram")
    assert weights_of(tmp_path / "out") == reference
    assert all(p.resident for p in done.plan.tensors) is (memory == "1GiB")
    assert done.plan.io == io


def test_the_smallest_limit_cuts_and_reads_twice(run: RunFolder, tmp_path: Path) -> None:
    plan = go(run, tmp_path / "x", memory_limit=smallest_limit(run, 2), dry_run=True).plan
    big = next(p for p in plan.tensors if p.tensor.name == "model.big")
    assert len(big.windows) > 20 and not big.resident
    assert plan.passes > 1.5


def test_the_limit_an_error_names_is_accepted(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=SMALLEST) as caught:
        go(run, tmp_path / "x", memory_limit=1, dry_run=True)
    named = re.search(r"at least (\S+ \S+) for", str(caught.value))
    assert named is not None
    go(run, tmp_path / "x", memory_limit=named[1], dry_run=True)


def test_auto_does_not_ask_how_much_memory_there_is(tmp_path: Path) -> None:
    """With so many checkpoints power iteration is the cheaper one, for deltas in memory."""
    many = make_run(tmp_path, range(1, 141), {"w": Spec((5, 1 << 14))})
    plans = []
    for name, limit in {"a": "1GiB", "b": smallest_limit(many, 1)}.items():
        done = go(many, tmp_path / name, 200, memory_limit=limit, solver="auto")
        plans.append(done.plan.tensors[0])
    assert [item.resident for item in plans] == [True, False]
    assert plans[0].solver == plans[1].solver
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("isa", ISAS)
def test_solvers_and_residency(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solver: str, isa: str
) -> None:
    """Resident and out of core give the same bytes; power agrees with gram to its tolerance."""
    monkeypatch.setenv("RELEX_ISA", isa)
    in_core = go(run, tmp_path / "a", solver=solver, memory_limit="1GiB")
    out_of_core = go(run, tmp_path / "b", solver=solver, memory_limit=smallest_limit(run, 2))
    assert all(p.resident for p in in_core.plan.tensors)
    assert not all(p.resident for p in out_of_core.plan.tensors)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert in_core.weights is not None
    for name, weights in in_core.weights.tensors.items():
        expected = run.forecast(name, [100.0, 62.5])
        size = np.abs(expected.weights).max()
        assert np.allclose(weights, expected.weights, rtol=0, atol=tolerances.VECTOR * size)


def test_cached_scan(
    run: RunFolder,
    reference: dict[str, str],
    tmp_path: Path,
    bytes_read: Callable[[], int],
) -> None:
    first = go(run, tmp_path / "first", 62.5, scan=tmp_path / "scan", solver="gram", io="pread")
    assert {p.solver for p in first.plan.tensors} == {"gram"}
    frozen = {name for name, t in first.record["tensors"].items() if t["frozen"]}
    total = sum(  # of a frozen tensor only the base is read
        t.tensor.base.nbytes if t.tensor.name in frozen else t.tensor.nbytes
        for t in first.plan.tensors
    )
    before = bytes_read()
    second = go(run, tmp_path / "second", scan=tmp_path / "scan", io="pread")
    used = bytes_read() - before
    assert {p.solver for p in second.plan.tensors} == {"none"}
    assert second.plan.bytes_read == total
    assert total <= used < 1.2 * total, "one pass, for the combine"
    assert weights_of(tmp_path / "second") == reference
    written = Scan.load(tmp_path / "second" / ".." / "scan")
    fresh = scan(run.base, run.checkpoints, progress=False)
    for name in fresh.names:
        assert written.grams[name].tobytes() == fresh.grams[name].tobytes()


def test_the_scan_in_the_output_serves_as_well(
    run: RunFolder, reference: dict[str, str], tmp_path: Path
) -> None:
    go(run, tmp_path / "first", 1.0, solver="gram")
    go(run, tmp_path / "second", scan=tmp_path / "first" / "scan.safetensors")
    assert weights_of(tmp_path / "second") == reference


def test_part_of_a_scan_serves(run: RunFolder, tmp_path: Path) -> None:
    found = scan(run.base, run.checkpoints, progress=False)
    go(run, tmp_path / "cached", 90, scan=found, until=40)
    go(run, tmp_path / "fresh", 90, until=40, solver="gram")
    cached, fresh = read_model(tmp_path / "cached/step_90"), read_model(tmp_path / "fresh/step_90")
    for name, tensor in fresh.items():
        if tensor.dtype in oracle.WORD:
            distance = oracle.ulps(cached[name].words, tensor.words, tensor.dtype)
            assert np.count_nonzero(distance > tolerances.ULP) <= 1e-4 * distance.size


def test_a_resident_run_reads_once(
    run: RunFolder, tmp_path: Path, bytes_read: Callable[[], int]
) -> None:
    before = bytes_read()
    done = go(run, tmp_path / "out", io="pread", memory_limit="1GiB")
    total = sum(t.tensor.nbytes for t in done.plan.tensors)
    assert done.plan.bytes_read == total
    assert done.plan.passes == 1.0
    assert total <= bytes_read() - before < 1.2 * total


def test_another_runs_scan_is_refused(run: RunFolder, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", model=BIG, seed=1)
    foreign = scan(other.base, other.checkpoints, progress=False)
    with pytest.raises(InputError, match="made from other files than the base"):
        go(run, tmp_path / "out", scan=foreign)
    assert not (tmp_path / "out").exists()


def test_a_scan_of_fewer_steps_is_refused(run: RunFolder, tmp_path: Path) -> None:
    less = scan(run.base, run.checkpoints, until=40, progress=False)
    with pytest.raises(InputError, match="the scan lacks step 70; it has 10, "):
        go(run, tmp_path / "out", scan=less)


@pytest.mark.parametrize("content", ["model", "text", "nothing"])
def test_files_that_are_no_scan(run: RunFolder, tmp_path: Path, content: str) -> None:
    data = {
        "model": next(run.base.glob("*.safetensors")).read_bytes(),
        "text": b"hello",
        "nothing": b"",
    }[content]
    (tmp_path / "scan").write_bytes(data)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "scan"))):
        go(run, tmp_path / "out", scan=tmp_path / "scan")
