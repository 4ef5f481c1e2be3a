"""GPUDirect Storage: when it is chosen, and reading with it. KvikIO itself needs a GPU; here its
two calls are stood in for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from devices import LazyAccelerator, ProcessorBackend, install
from folders import MODEL, RunFolder, Spec, digest, make_run
from relex_ext import Extrapolation, InputError, RelexError, extrapolate
from relex_ext.backends import gds


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    model = {**MODEL, "model.big": Spec((12, 70_001))}
    return make_run(tmp_path_factory.mktemp("gds"), model=model)


def go(run: RunFolder, out: Path, **options: Any) -> Extrapolation:
    return extrapolate(run.base, run.checkpoints, [100], out, progress=False, **options)


class Read:
    """Bytes arrive when they are asked for."""

    def __init__(self, get: Callable[[], int]) -> None:
        self.get = get


class CuFile:
    opened = 0

    def __init__(self, path: Path, flags: str) -> None:
        assert flags == "r"
        type(self).opened += 1
        self._path = path

    def pread(self, to: torch.Tensor, size: int, file_offset: int) -> Read:
        def get() -> int:
            with self._path.open("rb") as file:
                file.seek(file_offset)
                return file.readinto(to.numpy()[:size])

        return Read(get)


@pytest.fixture
def kvikio(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of that name with a driver that works."""
    modules = {name: ModuleType(name) for name in ("kvikio", "kvikio.cufile_driver")}
    modules["kvikio.defaults"] = ModuleType("kvikio.defaults")
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(CuFile, "opened", 0)
    modules["kvikio"].CuFile = CuFile
    modules["kvikio.cufile_driver"].get = lambda what: what == "is_gds_available"
    modules["kvikio.defaults"].is_compat_mode_preferred = lambda: False
    return modules["kvikio"]


@pytest.fixture
def available(kvikio: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """And for the processor as a device, too."""
    monkeypatch.setattr(gds, "unavailable", lambda device: None)
    return kvikio


# ---- whether it can be had ---------------------------------------------------------------------


def test_unavailable(kvikio: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gds.unavailable("cuda") is None
    assert gds.unavailable("xpu") == "GPUDirect Storage is for NVIDIA's GPUs"
    defaults, driver = sys.modules["kvikio.defaults"], sys.modules["kvikio.cufile_driver"]
    monkeypatch.setattr(defaults, "is_compat_mode_preferred", lambda: True)
    assert gds.unavailable("cuda") == "kvikio prefers its compatibility mode"
    monkeypatch.setattr(driver, "get", lambda what: False)
    assert gds.unavailable("cuda") == "cuFile's driver finds no GPUDirect Storage"

    def broken(what: str) -> bool:
        raise RuntimeError("libcuda.so.1: cannot open\nmore")

    monkeypatch.setattr(driver, "get", broken)
    assert gds.unavailable("cuda") == "kvikio cannot be used (libcuda.so.1: cannot open)"


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kvikio", raising=False)
    monkeypatch.setattr(gds, "find_spec", lambda name: None)
    reason = gds.unavailable("cuda")
    assert reason is not None and "kvikio is not installed" in reason


@pytest.mark.parametrize(
    ("backend", "io", "message"),
    [
        (
            "test",
            "gds",
            "io: gds: GPUDirect Storage is for NVIDIA's GPUs; a GPU can have pread here",
        ),
        ("test", "mmap", r"io: mmap is for the processor \(backend cpu\); a GPU can have pread$"),
        ("test", "direct", "io: expected one of auto, mmap, pread, gds, found direct"),
        ("cpu", "gds", "io: gds reads into a GPU's memory; the processor can have mmap or pread"),
    ],
)
def test_what_cannot_be_had(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    io: str,
    message: str,
) -> None:
    install(monkeypatch, ProcessorBackend)
    with pytest.raises(InputError, match=message):
        go(run, tmp_path / "out", backend=backend, io=io)
    assert not (tmp_path / "out").exists()


# ---- reading with it ---------------------------------------------------------------------------


@pytest.mark.parametrize("io", ["auto", "gds"])
@pytest.mark.parametrize("memory", ["2.5MB", "1GiB"])
def test_same_bytes(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: ModuleType,
    io: str,
    memory: str,
) -> None:
    go(run, tmp_path / "a", backend="cpu", solver="gram")
    made: list[LazyAccelerator] = []

    def make() -> ProcessorBackend:
        made.append(LazyAccelerator())
        return ProcessorBackend(made[-1])

    backend = install(monkeypatch, make)
    done = go(run, tmp_path / "b", backend=backend, solver="gram", io=io, device_memory=memory)
    assert digest(tmp_path / "a" / "step_100") == digest(tmp_path / "b" / "step_100")
    assert done.plan.io == "gds"
    assert done.plan.io_reason == {"auto": "into device memory", "gds": "as asked"}[io]
    assert all(p.resident for p in done.plan.tensors) is (memory == "1GiB")
    assert CuFile.opened >= 6
    staging = done.plan.staging
    assert staging is not None
    assert made[-1].pinned_bytes == 2 * staging.result_bytes, "no slot was needed"


@pytest.mark.parametrize("how", ["opening", "reading", "short"])
@pytest.mark.parametrize("io", ["auto", "gds"])
def test_a_failure(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    available: ModuleType,
    how: str,
    io: str,
) -> None:
    """pread takes over and says so, unless gds was asked for."""
    count = 0

    class Failing(CuFile):
        def __init__(self, path: Path, flags: str) -> None:
            if how == "opening" and "checkpoint-20" in str(path):
                raise RuntimeError("cuFile: not supported here\nsomewhere")
            super().__init__(path, flags)

        def pread(self, to: torch.Tensor, size: int, file_offset: int) -> Read:
            nonlocal count
            count += 1
            read = super().pread(to, size, file_offset)
            if count < 20 or how == "opening":
                return read

            def get() -> int:
                if how == "short":
                    return 1
                raise RuntimeError("cuFile: broke")

            return Read(get)

    available.CuFile = Failing
    backend = install(monkeypatch, lambda: ProcessorBackend(LazyAccelerator()))
    words = {
        "opening": "checkpoint-20.*: gds: cuFile: not supported here",
        "reading": ".*: gds: read cuFile: broke of",
        "short": ".*: gds: read 1 of",
    }[how]
    caplog.set_level(logging.INFO, "relex_ext")
    if io == "gds":
        with pytest.raises(RelexError, match=words) as caught:
            go(run, tmp_path / "out", backend=backend, io=io)
        assert "\n" not in str(caught.value)
        return
    go(run, tmp_path / "a", backend="cpu", solver="gram")
    done = go(run, tmp_path / "b", backend=backend, solver="gram", device_memory="2.5MB")
    assert digest(tmp_path / "a" / "step_100") == digest(tmp_path / "b" / "step_100")
    said = [r.getMessage() for r in caplog.records if "pread" in r.getMessage()]
    assert len(said) == 1 and said[0].startswith("io: pread into pinned memory from here on: ")
    assert done.plan.io == "gds"
