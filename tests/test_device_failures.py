"""What goes wrong on devices, or is interrupted: one line, and nothing stays behind."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from device_runs import BIG, MAKERS, go, lazy, least, make_big_run, processor
from devices import CPU, LazyAccelerator, ProcessorBackend, install
from folders import RunFolder, listing, make_run, published, raw, write_model
from relex_ext import InputError, RelexError, _core, files, staging
from relex_ext.backends.device import DeviceBackend, Processor


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_big_run(tmp_path_factory.mktemp("failures"))


@pytest.fixture(autouse=True)
def no_thread_stays() -> Any:
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("relex")]
    assert not left


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("step", [20, None])
def test_a_bad_tensor_stops_all(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, step: int | None
) -> None:
    copy = make_run(tmp_path / "copy", model=BIG)
    name = "model.layers.0.norm.bias"
    folder = copy.base if step is None else copy.folder(step)
    tensors = copy.base_tensors if step is None else copy.step_tensors[step]
    write_model(folder, {**tensors, name: raw(np.full(97, 0x7E00, np.uint16), "F16")})
    backend = install(monkeypatch, lazy, devices=devices)
    before = listing(tmp_path)
    with pytest.raises(InputError, match=f"tensor {name}: 97 NaN or Inf in "):
        go(copy, tmp_path / "new" / "out", backend=backend)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("after", [0, 5, 40])
def test_a_failing_read(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: str,
    devices: int,
    after: int,
) -> None:
    """Every read from one on fails, with the smallest ring: no loader may keep a slot."""
    backend = install(monkeypatch, MAKERS[make], devices=devices)
    limits = {option: least(run, option) for option in ("device_memory", "memory_limit")}
    real, turn = _core.read, itertools.count()

    def failing(*args: Any) -> tuple[int, int]:
        return real(*args) if next(turn) < after else (2, 5)  # EIO

    monkeypatch.setattr(_core, "read", failing)
    before = published(tmp_path)
    with pytest.raises(InputError, match=r"checkpoint-20.*: tensor .*: cannot be read: Input/out"):
        go(run, tmp_path / "out", backend=backend, **limits)
    assert published(tmp_path) == before


def test_a_loader_that_comes_late_finds_a_slot(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows behind it have failed meanwhile, more of them than there are slots."""
    backend = install(monkeypatch, processor)
    real, turn = staging.DeviceMemory.load, itertools.count()

    def late(self: staging.DeviceMemory, *args: Any) -> Any:
        if next(turn) == 0:
            time.sleep(0.3)
        return real(self, *args)

    def stuck(*_: object) -> None:
        raise AssertionError("it waits for a slot that nobody gives back")

    monkeypatch.setattr(staging.DeviceMemory, "load", late)
    monkeypatch.setattr(_core, "read", lambda *_: (2, 5))
    signal.signal(signal.SIGALRM, stuck)
    signal.alarm(20)
    try:
        with pytest.raises(InputError, match="cannot be read"):
            go(run, tmp_path / "out", backend=backend, memory_limit=least(run, "memory_limit"))
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_under_way_and_memory_is_given_back(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """When a run ends, and without a garbage collection."""
    made: list[LazyAccelerator] = []
    memories: list[weakref.ref[staging.DeviceMemory]] = []

    def make() -> DeviceBackend:
        made.append(LazyAccelerator())
        return ProcessorBackend(made[-1])

    real, turn = staging.DeviceMemory.load, itertools.count()

    def load(self: staging.DeviceMemory, *args: Any) -> Any:
        memories.append(weakref.ref(self))
        if fails and next(turn) == 4:
            raise InputError("broken")
        return real(self, *args)

    monkeypatch.setattr(staging.DeviceMemory, "load", load)
    backend = install(monkeypatch, make, devices=2)
    gc.disable()
    try:
        with pytest.raises(InputError) if fails else nullcontext():
            go(run, tmp_path / "out", backend=backend)
        assert len(made) == 2 and all(device.at_rest() for device in made)
        left = [memory for memory in memories if memory() is not None]
        assert memories and (fails or not left), "a traceback may hold some"
    finally:
        gc.enable()


class Breaking(ProcessorBackend):
    """Its n-th kernel fails as a device's would."""

    def __init__(self, count: int, error: BaseException) -> None:
        super().__init__(LazyAccelerator())
        self._left, self._error = count, error

    def _launch(self, work: Callable[[], None]) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._error
        super()._launch(work)


OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 3.00 MiB is free.\nMore."
)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OUT_OF_MEMORY,
            r"tensor .*: cpu: out of memory \(20\.00 MiB more were needed\); lower device_memory, "
            r"now 512\.0 MiB",
        ),
        (RuntimeError("CUDA error: an illegal\nthing"), "tensor .*: cpu: CUDA error: an illegal$"),
    ],
)
def test_a_failing_kernel(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    devices: int,
    count: int,
    error: BaseException,
    message: str,
) -> None:
    backend = install(monkeypatch, lambda: Breaking(count, error), devices=devices)
    before = published(tmp_path)
    with pytest.raises(RelexError, match=message) as caught:
        go(run, tmp_path / "out", backend=backend, device_memory="512MiB")
    assert "\n" not in str(caught.value)
    assert published(tmp_path) == before


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_other_device_stops_at_its_next_window(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    computed = itertools.count()

    class Slow(ProcessorBackend):
        def _launch(self, work: Callable[[], None]) -> None:
            next(computed)
            time.sleep(0.01)
            super()._launch(work)

    class First(ProcessorBackend):
        def _launch(self, work: Callable[[], None]) -> None:
            if not interrupted:
                raise RuntimeError("broke")
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    kinds = itertools.cycle([First, Slow])
    backend = install(monkeypatch, lambda: next(kinds)(), devices=2)
    limits = {option: least(run, option) for option in ("device_memory", "memory_limit")}
    plan = go(run, tmp_path / "x", backend=backend, dry_run=True, **limits).plan
    windows = [len(p.windows) for p in plan.tensors]
    with pytest.raises(KeyboardInterrupt if interrupted else RelexError):
        go(run, tmp_path / "out", backend=backend, **limits)
    assert next(computed) < min(20, sum(windows) // 2)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_memory_that_is_not_there(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A buffer that cannot be had after all, on whichever thread asks for it."""

    class Short(Processor):
        left = count

        def empty(self, nbytes: int, stream: Any) -> torch.Tensor:
            self.left -= 1
            if self.left < 0:
                raise OUT_OF_MEMORY
            return super().empty(nbytes, stream)

    backend = install(monkeypatch, lambda: ProcessorBackend(Short(CPU)))
    with pytest.raises(RelexError, match="out of memory"):
        go(run, tmp_path / "out", backend=backend, device_memory=least(run, "device_memory"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("devices", [1, 2])
def test_interrupt(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, devices: int
) -> None:
    backend = install(monkeypatch, MAKERS[make], devices=devices)
    limit = least(run, "device_memory")
    real, turn = files.Files.read, itertools.count()

    def interrupting(self: files.Files, *args: Any) -> None:
        if next(turn) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002)
        real(self, *args)

    monkeypatch.setattr(files.Files, "read", interrupting)
    before = published(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        go(run, tmp_path / "out", backend=backend, device_memory=limit)
    assert published(tmp_path) == before
