"""The pipeline on devices that this processor stands in for: the same bytes as on the processor.

``processor`` does everything at once, ``lazy`` nothing before somebody waits for it (devices.py).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_runs import (
    MAKERS,
    TRAINED,
    go,
    lazy,
    least,
    make_big_run,
    processor,
    weights_of,
)
from devices import LazyAccelerator, ProcessorBackend, install
from folders import RunFolder, digest, raw, write_model
from relex_ext import (
    InputError,
    Scan,
    Weights,
    _core,
    combine,
    extrapolate,
    files,
    output,
    scan,
)
from relex_ext.backends.device import DeviceBackend


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_big_run(tmp_path_factory.mktemp("devices"))


@pytest.fixture(scope="module")
def reference(
    run: RunFolder, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, str]]:
    """What the processor writes, with either solver."""
    found = {}
    for solver in ("gram", "power"):
        out = tmp_path_factory.mktemp(solver) / "out"
        go(run, out, backend="cpu", solver=solver, memory_limit="1GiB")
        found[solver] = weights_of(out)
    return found.__getitem__


# ---- the same bytes ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("memory", ["smallest", "a little more", "1GiB"])
@pytest.mark.parametrize("ring", ["smallest", "1GiB"])
def test_same_bytes_as_on_the_processor(
    run: RunFolder,
    reference: Callable[[str], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: str,
    solver: str,
    memory: str,
    ring: str,
) -> None:
    backend = install(monkeypatch, MAKERS[make])
    limit = {"1GiB": 1 << 30}.get(memory) or least(run, "device_memory")
    limit = limit * 5 // 4 if memory == "a little more" else limit
    pinned = 1 << 30 if ring == "1GiB" else least(run, "memory_limit")
    done = go(
        run, tmp_path / "out", backend=backend, solver=solver, device_memory=limit,
        memory_limit=pinned,
    )  # fmt: skip
    assert weights_of(tmp_path / "out") == reference(solver)
    staging = done.plan.staging
    assert staging is not None
    assert all(p.resident for p in done.plan.tensors) is (limit == 1 << 30)
    assert (done.plan.io, done.plan.io_reason) == ("pread", "into pinned memory")
    assert staging.windows == 3 if memory == "smallest" else staging.windows >= 3
    assert staging.slots == 3 if ring == "smallest" else staging.slots > 3


def test_the_smallest_memory_cuts_and_reads_twice(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, processor)
    limit = least(run, "device_memory")
    plan = go(run, Path("x"), dry_run=True, backend="test", device_memory=limit).plan
    big = next(p for p in plan.tensors if p.tensor.name == "model.big")
    assert len(big.windows) > 20 and not big.resident
    assert plan.passes > 1.5
    assert all(begin % _core.SEGMENT == 0 for begin, _ in big.windows)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("targets", [1, 4])
@pytest.mark.parametrize("memory", ["smallest", "1GiB"])
@pytest.mark.parametrize("dtype", [None, "float32", "bf16"])
def test_targets_and_dtypes(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: str,
    targets: int,
    memory: str,
    dtype: str | None,
) -> None:
    backend = install(monkeypatch, MAKERS[make])
    steps = [90 + target for target in range(targets)]
    options = {"targets": steps, "dtype": dtype, "solver": "gram"}
    limit: Any = memory
    if memory == "smallest":
        limit = least(run, "device_memory", **options)
    go(run, tmp_path / "a", backend="cpu", **options)
    done = go(run, tmp_path / "b", backend=backend, device_memory=limit, **options)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert done.record["options"]["backend"] == "test"
    assert done.record["devices"] == ["processor"]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("memory", ["smallest", "1GiB"])
def test_scan_and_what_it_serves(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: str,
    solver: str,
    memory: str,
) -> None:
    backend = install(monkeypatch, MAKERS[make])
    limit: Any = least(run, "device_memory") if memory == "smallest" else memory
    options: dict[str, Any] = {"solver": solver, "progress": False}
    expected = scan(run.base, run.checkpoints, backend="cpu", **options)
    options |= {"backend": backend, "device_memory": limit}
    found = scan(run.base, run.checkpoints, **options)
    written = scan(run.base, run.checkpoints, out=tmp_path / "scan", **options)
    for one in (found, written):
        assert list(one.names) == list(expected.names)
        for name in expected.grams:
            assert one.grams[name].tobytes() == expected.grams[name].tobytes()
        for name, spectrum in expected.spectra.items():
            assert one.spectra[name].u.tobytes() == spectrum.u.tobytes()
            assert one.spectra[name].energy == spectrum.energy
    go(run, tmp_path / "a", backend="cpu", scan=expected)
    done = go(
        run, tmp_path / "b", backend=backend, device_memory=limit, scan=Scan.load(tmp_path / "scan")
    )
    assert {p.solver for p in done.plan.tensors} == {"none"}
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


@pytest.mark.parametrize("make", MAKERS)
def test_some_rows_and_none(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str
) -> None:
    """Weights that are zero for all targets are not read; all zero give the base."""
    backend = install(monkeypatch, MAKERS[make])
    for name, row in (("some", [0, 0.5, 0, 0, 1.5]), ("none", [0] * 5)):
        tables = {tensor: np.array([row, row], np.float64) for tensor in TRAINED}
        weights = Weights(run.steps, (1, 2), tables, {})
        for engine in ("cpu", backend):
            out = tmp_path / name / engine
            combine(run.base, run.checkpoints, weights, out, backend=engine, progress=False)
        assert weights_of(tmp_path / name / "cpu") == weights_of(tmp_path / name / backend)


def test_what_fp32_cannot_square(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power iteration gives up after its first pass, and the Gram takes another."""
    values = np.linspace(1, 2, 90_000) * 1e-25
    write_model(tmp_path / "base", {"w": raw(np.zeros(90_000, np.uint32), "F32")})
    for t in (1, 2, 3):
        words = (values * t).astype(np.float32).view(np.uint32)
        write_model(tmp_path / "run" / f"step_{t}", {"w": raw(words, "F32")})
    backend = install(monkeypatch, lazy)
    inputs = (tmp_path / "base", tmp_path / "run", 9)
    options: dict[str, Any] = {"solver": "power", "progress": False}
    extrapolate(*inputs, tmp_path / "a", backend="cpu", **options)
    for name, memory in (("b", "920KB"), ("c", "1GiB")):
        done = extrapolate(
            *inputs, tmp_path / name, backend=backend, device_memory=memory, **options
        )
        assert done.plan.tensors[0].resident is (memory == "1GiB")
        assert weights_of(tmp_path / "a") == weights_of(tmp_path / name)


# ---- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("more", [1.0, 1.3, 4.0])
def test_the_limits_hold(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: int, more: float
) -> None:
    made: list[LazyAccelerator] = []

    def make() -> DeviceBackend:
        made.append(LazyAccelerator())
        return ProcessorBackend(made[-1])

    backend = install(monkeypatch, make)
    steps = [90 + target for target in range(targets)]
    device_memory = int(least(run, "device_memory", targets=steps) * more)
    memory_limit = int(least(run, "memory_limit", targets=steps) * more)
    done = go(
        run, tmp_path / "out", steps, backend=backend, device_memory=device_memory,
        memory_limit=memory_limit, solver="gram",
    )  # fmt: skip
    staging = done.plan.staging
    assert staging is not None
    assert made[-1].taken <= staging.device_memory <= device_memory
    assert made[-1].pinned_bytes <= staging.pinned_memory == done.plan.peak_memory <= memory_limit
    assert made[-1].taken > device_memory // 2


def test_a_limit_that_is_too_small_is_named(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = install(monkeypatch, processor)
    for option in ("device_memory", "memory_limit"):
        with pytest.raises(
            InputError, match=rf"^{option}: expected .* 5 checkpoints.* found 1"
        ) as e:
            go(run, tmp_path / "out", backend=backend, **{option: 1 << 10})
        assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="device_memory: expected a size"):
        go(run, tmp_path / "out", backend=backend, device_memory="much")
    assert not (tmp_path / "out").exists()


def test_ticks_add_up(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = itertools.count()
    total = 0

    class Bar:
        def __init__(self, *_: Any) -> None: ...
        def __exit__(self, *_: Any) -> None: ...
        def __enter__(self) -> Callable[[int], None]:
            def tick(nbytes: int) -> None:
                nonlocal total
                next(counted)
                total += nbytes

            return tick

    monkeypatch.setattr("relex_ext.job.ProgressBar", Bar)
    backend = install(monkeypatch, processor)
    done = go(run, tmp_path / "out", backend=backend, solver="gram", memory_limit="1GiB")
    assert total == done.plan.bytes_read
    assert next(counted) == sum(len(p.windows) for p in done.plan.tensors)


# ---- the order of things -----------------------------------------------------------------------


def test_a_slow_disk_gets_every_result(
    run: RunFolder,
    reference: Callable[[str], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Output buffers are filled again only when they are written."""
    backend = install(monkeypatch, processor)
    real = output.Output.write

    def slowly(self: output.Output, *what: Any) -> None:
        time.sleep(0.01)
        real(self, *what)

    monkeypatch.setattr(output.Output, "write", slowly)
    limit = least(run, "device_memory")
    go(run, tmp_path / "out", backend=backend, solver="gram", device_memory=limit)
    assert weights_of(tmp_path / "out") == reference("gram")


def test_slow_and_uneven_reading(
    run: RunFolder,
    reference: Callable[[str], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loaders overtake each other."""
    backend = install(monkeypatch, lazy)
    real, turn = files.Files.read, itertools.count()

    def unevenly(self: files.Files, *args: Any) -> None:
        time.sleep(0.004 * (next(turn) % 3))
        real(self, *args)

    monkeypatch.setattr(files.Files, "read", unevenly)
    limit = least(run, "device_memory")
    ring = least(run, "memory_limit")
    go(
        run, tmp_path / "out", backend=backend, solver="gram", device_memory=limit,
        memory_limit=ring,
    )  # fmt: skip
    assert weights_of(tmp_path / "out") == reference("gram")


# ---- several devices ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("solver", ["gram", "power"])
def test_the_number_of_devices_changes_no_byte(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, solver: str
) -> None:
    found = []
    for count in (1, 2, 3, 20):
        backend = install(monkeypatch, MAKERS[make], devices=count)
        done = go(run, tmp_path / f"{count}", backend=backend, solver=solver)
        assert len(done.plan.staging.devices) == count
        assert list(done.weights.tensors) == TRAINED
        found.append(digest(tmp_path / f"{count}"))
        small = go(
            run, tmp_path / f"{count} small", backend=backend, solver=solver,
            device_memory=least(run, "device_memory"), memory_limit=least(run, "memory_limit"),
        )  # fmt: skip
        assert small.plan.passes > done.plan.passes
        found.append(digest(tmp_path / f"{count} small"))
    assert all(one == found[0] for one in found)


def test_devices_share_a_scan(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = install(monkeypatch, lazy, devices=2)
    one = scan(run.base, run.checkpoints, backend="cpu", progress=False)
    two = scan(run.base, run.checkpoints, backend=backend, progress=True)
    assert list(two.grams) == list(one.grams)
    assert all(two.grams[n].tobytes() == one.grams[n].tobytes() for n in one.grams)


def test_chosen_devices(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = install(monkeypatch, processor, devices=3)
    for asked, count in (("cpu:1", 1), ("cpu:0,cpu:2", 2), (["cpu:2", "cpu:1"], 2), (None, 3)):
        plan = go(run, Path("x"), dry_run=True, backend=backend, device=asked).plan
        assert len(plan.staging.devices) == count
