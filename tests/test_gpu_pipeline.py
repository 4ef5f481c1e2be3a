"""The whole pipeline on GPUs: values, the same bytes whatever the memory, limits, failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracle
import tolerances
from compare import check_model
from folders import (
    MODEL,
    SHARDS,
    RunFolder,
    Spec,
    digest,
    listing,
    make_run,
    published,
    read_model,
)
from relex_ext import (
    Extrapolation,
    InputError,
    RelexError,
    Scan,
    Weights,
    combine,
    extrapolate,
    files,
    scan,
)
from relex_ext.backends import Choice, available, gds, open_backends
from relex_ext.backends.device import DeviceBackend

pytestmark = pytest.mark.gpu

BIG = {
    **MODEL,
    "model.big": Spec((24, 300_007)),
    "model.wide": Spec((2_000_003,), "F32", ("F32",)),
    "model.half": Spec((1_000_001,), "F16", ("F16",)),
}
"""Windows of 64 MiB hold one of these; tests cut them smaller. Odd sizes: strips of all alignments
in their files."""

TRAINED = [n for n, s in BIG.items() if s.kind == "trained"]

TARGETS = (100.0, 62.5)

MIB = 1 << 20

SMALL = {"device_memory": 40 * MIB, "memory_limit": 40 * MIB}
"""Many windows, and every large tensor read twice."""


@pytest.fixture(scope="module", params=["cuda", "triton"])
def choice(request: pytest.FixtureRequest) -> Choice:
    try:
        return open_backends(request.param)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def backend(choice: Choice) -> str:
    return choice.name


@pytest.fixture(scope="module")
def gpu(choice: Choice) -> str:
    """The first GPU's name, for what is about one."""
    return str(choice.devices()[0].device)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    shards = (*SHARDS, ("model.big",), ("model.wide", "model.half"))
    return make_run(tmp_path_factory.mktemp("gpu"), model=BIG, shards=shards)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("relex")]
    assert not left


def go(run: RunFolder, out: Path, targets: Any = TARGETS, **options: Any) -> Extrapolation:
    return extrapolate(run.base, run.checkpoints, targets, out, progress=False, **options)


def weights_of(out: Path) -> dict[str, str]:
    return {n: d for n, d in digest(out).items() if n.startswith("step_")}


def assert_values(folder: Path, run: RunFolder, target: float, dtype: str | None = None) -> None:
    check_model(folder, run, TRAINED, target, dtype)


# ---- values and bytes --------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["gram", "power"])
def test_against_the_oracle_and_itself(
    run: RunFolder, tmp_path: Path, backend: str, solver: str
) -> None:
    """Resident, out of core and again: the same bytes, near the oracle's."""
    ways: dict[str, dict[str, Any]] = {
        "resident": {},
        "again": {},
        "short": SMALL,
        "short again": SMALL,
        "short device": {"device_memory": SMALL["device_memory"]},
        "short ring": {"memory_limit": SMALL["memory_limit"]},
    }
    found = []
    for way, limits in ways.items():
        done = go(run, tmp_path / way, backend=backend, solver=solver, **limits)
        assert {p.solver for p in done.plan.tensors} == {solver}
        assert all(p.resident for p in done.plan.tensors) is ("device_memory" not in limits)
        found.append(digest(tmp_path / way))
    assert all(one == found[0] for one in found)
    for target, folder in done.folders.items():
        assert_values(folder, run, target)


@pytest.mark.parametrize("solver", ["gram", "power"])
def test_against_the_processor(run: RunFolder, tmp_path: Path, backend: str, solver: str) -> None:
    here = go(run, tmp_path / "cpu", backend="cpu", solver=solver)
    there = go(run, tmp_path / "gpu", backend=backend, solver=solver)
    assert here.weights is not None and there.weights is not None
    for name, expected in here.weights.tensors.items():
        size = np.abs(expected).max(initial=0)
        found = there.weights.tensors[name]
        assert np.allclose(found, expected, rtol=0, atol=tolerances.VECTOR * size), name
    for target in here.folders:
        ours, theirs = (read_model(done.folders[target]) for done in (here, there))
        for name in TRAINED:
            distance = oracle.ulps(ours[name].words, theirs[name].words, ours[name].dtype)
            far = np.count_nonzero(distance > tolerances.ULP)
            assert far <= 1e-4 * distance.size, name
    assert there.record["options"]["backend"] == backend
    assert there.record["devices"] and not here.record["devices"]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("limits", [{}, SMALL])
def test_dtypes(
    run: RunFolder, tmp_path: Path, backend: str, dtype: str, limits: dict[str, int]
) -> None:
    go(run, tmp_path / "out", 100, backend=backend, dtype=dtype, **limits)
    assert_values(tmp_path / "out" / "step_100", run, 100.0, dtype)


def test_many_targets(run: RunFolder, tmp_path: Path, backend: str) -> None:
    targets = [80, 90, 100, 110, 120, 130, 140]
    done = go(run, tmp_path / "all", targets, backend=backend, **SMALL)
    for target in (80, 140):
        go(run, tmp_path / str(target), target, backend=backend, solver="gram")
        one = digest(tmp_path / str(target) / f"step_{target}")
        assert one == digest(done.folders[float(target)])


@pytest.mark.parametrize("solver", ["gram", "power"])
def test_scans(run: RunFolder, tmp_path: Path, backend: str, solver: str) -> None:
    inputs = (run.base, run.checkpoints)
    options: dict[str, Any] = {"backend": backend, "solver": solver, "progress": False}
    whole = scan(*inputs, **options)
    scan(*inputs, out=tmp_path / "scan", **options, **SMALL)
    short = Scan.load(tmp_path / "scan")
    for name, gram in whole.grams.items():
        assert np.array_equal(gram, gram.T)
        assert short.grams[name].tobytes() == gram.tobytes()
    for name, spectrum in whole.spectra.items():
        assert short.spectra[name].u.tobytes() == spectrum.u.tobytes()
    direct = go(run, tmp_path / "a", backend=backend, solver=solver)
    cached = go(run, tmp_path / "b", backend=backend, scan=tmp_path / "scan", **SMALL)
    assert {p.solver for p in cached.plan.tensors} == {"none"}
    assert direct.folders.keys() == cached.folders.keys()
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


def test_rows_without_weight(run: RunFolder, tmp_path: Path, backend: str) -> None:
    for name, row in (("some", [0, 0.5, 0, 0, 1.5]), ("none", [0] * 5)):
        every = [n for n, s in BIG.items() if s.kind != "integer"]
        tables = {tensor: np.array([row, row], np.float64) for tensor in every}
        weights = Weights(run.steps, (1, 2), tables, {})
        for engine in ("cpu", backend):
            out = tmp_path / name / engine
            combine(run.base, run.checkpoints, weights, out, backend=engine, progress=False)
        for target in ("step_1", "step_2"):
            ours, theirs = (read_model(tmp_path / name / e / target) for e in ("cpu", backend))
            for tensor in every:
                dtype = ours[tensor].dtype
                distance = oracle.ulps(ours[tensor].words, theirs[tensor].words, dtype)
                assert distance.max(initial=0) <= tolerances.ULP
                if name == "none":
                    assert ours[tensor] == theirs[tensor]


def test_all_gpus_and_one(run: RunFolder, tmp_path: Path, backend: str, gpu: str) -> None:
    """With one GPU in the machine this compares it with itself."""
    go(run, tmp_path / "all", backend=backend)
    done = go(run, tmp_path / "one", backend=backend, device=gpu)
    assert done.plan.staging is not None and done.plan.staging.devices == (gpu,)
    assert weights_of(tmp_path / "all") == weights_of(tmp_path / "one")


def test_auto(run: RunFolder, tmp_path: Path) -> None:
    done = go(run, tmp_path / "out", 100)
    expected = "cuda" if available.cuda_missing() is None else "triton"
    assert done.record["options"]["backend"] == expected
    assert done.record["devices"] == open_backends(expected).device_names()


# ---- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [24 * MIB, 64 * MIB, None])
def test_device_memory_holds(
    run: RunFolder, tmp_path: Path, backend: str, gpu: str, limit: int | None
) -> None:
    if not gpu.startswith("cuda"):
        pytest.skip("statistics of torch.cuda")
    go(run, tmp_path / "warm", backend=backend, device=gpu)  # Triton compiles and tunes here
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(gpu)
    before = torch.cuda.memory_allocated(gpu)
    done = go(run, tmp_path / "out", backend=backend, device=gpu, device_memory=limit)
    staging = done.plan.staging
    assert staging is not None
    used = torch.cuda.max_memory_allocated(gpu) - before
    slack = 64 * MIB if backend == "triton" else 2 * MIB
    assert used <= staging.device_memory + slack
    assert used >= staging.window_bytes
    assert torch.cuda.memory_allocated(gpu) - before < 2 * MIB, "all of it was given back"


def test_more_than_there_is(run: RunFolder, tmp_path: Path, backend: str, gpu: str) -> None:
    """Memory that the plan was promised and the device has not."""
    if not gpu.startswith("cuda"):
        pytest.skip("torch.cuda can be told to be small")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    before = published(tmp_path)
    fraction = (torch.cuda.memory_reserved(gpu) + 48 * MIB) / total
    torch.cuda.set_per_process_memory_fraction(fraction, gpu)
    try:
        with pytest.raises(RelexError, match=f"{gpu}: out of memory.*lower device_memory") as e:
            go(run, tmp_path / "small", backend=backend, device=gpu, device_memory="2GiB")
        assert "\n" not in str(e.value)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert published(tmp_path) == before
    go(run, tmp_path / "out", backend=backend, device=gpu)


# ---- the order of things -----------------------------------------------------------------------


def test_nothing_waits_between_windows(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, gpu: str
) -> None:
    """torch raises where the host would wait for the device, but for sums that are fetched."""
    if backend != "cuda":
        pytest.skip("Triton compiles and tunes on the way")
    real = DeviceBackend.fetch

    def fetch(self: DeviceBackend, sums: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return real(self, sums)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(DeviceBackend, "fetch", fetch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for solver in ("gram", "power"):
            go(run, tmp_path / solver, backend=backend, device=gpu, solver=solver, **SMALL)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_failing_read(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    real, count = files.Files.read, 0

    def failing(self: files.Files, *args: Any) -> None:
        nonlocal count
        count += 1
        if count > 30:
            raise InputError("broken in the middle")
        real(self, *args)

    monkeypatch.setattr(files.Files, "read", failing)
    before = listing(tmp_path)
    with pytest.raises(InputError, match="broken in the middle"):
        go(run, tmp_path / "new" / "out", backend=backend, **SMALL)
    assert listing(tmp_path) == before
    monkeypatch.undo()
    go(run, tmp_path / "out", backend=backend, **SMALL)


INTERRUPTED = """
import os, signal, sys, threading
from relex_ext import extrapolate, files

real, count = files.Files.read, 0

def read(self, *args):
    global count
    count += 1
    if count == 30:
        os.kill(os.getpid(), signal.SIGINT)
    real(self, *args)

files.Files.read = read
base, run, out, backend = sys.argv[1:]
try:
    extrapolate(base, run, 100, out, backend=backend, device_memory="40MiB", progress=False)
except KeyboardInterrupt:
    left = [t.name for t in threading.enumerate() if t.name.startswith("relex")]
    print("interrupted", left, os.path.exists(os.path.dirname(out)))
"""


def test_interrupt(run: RunFolder, tmp_path: Path, backend: str) -> None:
    place = tmp_path / "new" / "out"
    package = Path(__import__("relex_ext").__file__).parent.parent
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, run.base, run.checkpoints, place, backend],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout == "interrupted [] False\n", done.stderr
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- reading -----------------------------------------------------------------------------------


def test_io(run: RunFolder, tmp_path: Path, backend: str, gpu: str) -> None:
    go(run, tmp_path / "pread", backend=backend, io="pread")
    reason = gds.unavailable(gpu.partition(":")[0])
    done = go(run, tmp_path / "auto", backend=backend)
    assert done.plan.io == ("pread" if reason else "gds")
    assert weights_of(tmp_path / "pread") == weights_of(tmp_path / "auto")
    if reason:
        with pytest.raises(InputError, match=r"io: gds: .*; a GPU can have pread here"):
            go(run, tmp_path / "gds", backend=backend, io="gds")
    else:
        go(run, tmp_path / "gds", backend=backend, io="gds", **SMALL)
        assert weights_of(tmp_path / "pread") == weights_of(tmp_path / "gds")
    with pytest.raises(InputError, match="io: mmap is for the processor"):
        go(run, tmp_path / "mmap", backend=backend, io="mmap")
