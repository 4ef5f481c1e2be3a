"""Files that are shortened while they are mapped: an error that names them, never a SIGBUS."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import children
from folders import SINGLE, RunFolder, Spec, listing, make_run
from relex_ext import InputError, _core, extrapolate
from relex_ext.backends.cpu import CpuBackend
from relex_ext.errors import ReadError
from relex_ext.windows import HostMemory, Pass, Window
from tables import ISAS

COLUMNS = 3 * 16384 + 5
STEPS = (10, 20, 30)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path, STEPS, {"w": Spec((COLUMNS,), "F32", ("BF16", "F32"))})


def shard(run: RunFolder, step: int) -> Path:
    return run.folder(step) / SINGLE


def first_pass(run: RunFolder) -> Pass:
    plan = extrapolate(run.base, run.checkpoints, [100], "out", progress=False, dry_run=True).plan
    return Pass(plan.tensors[0])


# ---- between populating and computing ----------------------------------------------------------


def gram(backend: CpuBackend, window: Window, memory: HostMemory) -> None:
    backend.gram(window.strips, backend.zeros(3, 3))


def power_step(backend: CpuBackend, window: Window, memory: HostMemory) -> None:
    y, energy = backend.zeros(3, 2), backend.zeros(3)
    backend.power_step(window.strips, np.ones((3, 2), np.float32), y, energy)


def combine(backend: CpuBackend, window: Window, memory: HostMemory) -> None:
    results = memory.results(0, 2, 4 * COLUMNS)
    backend.combine(window.strips, np.ones((2, 3)), results.addresses, 0)
    with pytest.raises(InputError, match="truncated while it was read"):
        results.wait()  # they are not to be written


Kernel = Callable[[CpuBackend, Window, HostMemory], None]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", [gram, power_step, combine])
@pytest.mark.parametrize("kept", [0, 4096, 100_000])
def test_kernels_survive(run: RunFolder, kernel: Kernel, isa: str, kept: int) -> None:
    memory = HostMemory(1 << 30, "mmap")
    item = first_pass(run)
    before = _core.damages()
    with memory.reporting():
        room = memory.admit(item, COLUMNS)
        assert room is not None
        window = memory.load(item, 0, COLUMNS, room)
    os.truncate(shard(run, 20), kept)
    with (
        pytest.raises(InputError) as caught,
        memory.reporting("tensor w: "),
    ):
        kernel(CpuBackend(2, isa), window, memory)
    assert str(caught.value) == f"{shard(run, 20)}: truncated while it was read"
    window.release()
    assert _core.damages() == before + 1


def test_a_file_that_is_as_long_as_ever_was_read_badly(run: RunFolder) -> None:
    memory = HostMemory(1 << 30, "mmap")
    window = memory.load(first_pass(run), 0, COLUMNS, 0)
    path = shard(run, 30)
    size = path.stat().st_size
    os.truncate(path, 0)
    gram(CpuBackend(1), window, memory)
    os.truncate(path, size)
    said = f"{path}: cannot be read: {os.strerror(errno.EIO)}"
    with pytest.raises(ReadError, match=re.escape(said)), memory.reporting():
        pass


# ---- whole runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(12))
def test_runs_refuse_what_is_shortened_meanwhile(tmp_path: Path, turn: int) -> None:
    """Another thread shortens a file as soon as it is mapped: before, while or after it is read."""
    model = {name: Spec((200_000 + turn,)) for name in "abcdef"}
    run = make_run(tmp_path, STEPS, model)
    path = shard(run, STEPS[turn % 3])
    size = path.stat().st_size

    def shorten() -> None:
        maps = Path("/proc/self/maps")
        while str(path) not in maps.read_text() and not over.is_set():
            pass
        os.truncate(path, size * (turn + 1) // 14)

    over = threading.Event()
    thread = threading.Thread(target=shorten)
    thread.start()
    try:
        with pytest.raises(InputError, match=str(path)):
            extrapolate(
                run.base, run.checkpoints, [100], tmp_path / "out", io="mmap", progress=False,
                memory_limit="8MiB", solver=("gram", "power")[turn % 2],
            )  # fmt: skip
    finally:
        over.set()
        thread.join()
    assert not (tmp_path / "out").exists()


OLD_KERNEL = """
import errno, os, sys
import seccomp
from relex_ext import InputError, extrapolate, files

base, run, path, out = sys.argv[1:]
seccomp.fail("madvise", errno.EINVAL, third=22)  # MADV_POPULATE_READ
extrapolate(base, run, [100], out + "-whole", io="mmap", progress=False)
opened = files.Files.open

def shorten(self, shard):
    file = opened(self, shard)
    if str(shard.path) == path:
        os.truncate(path, 4096)
    return file

files.Files.open = shorten
try:
    extrapolate(base, run, [100], out, io="mmap", progress=False)
except InputError as error:
    print(error)
"""


def test_kernels_that_cannot_populate(run: RunFolder, tmp_path: Path) -> None:
    path = shard(run, 20)
    found = children.printed(OLD_KERNEL, run.base, run.checkpoints, path, tmp_path / "out")
    assert found == f"{path}: truncated while it was read"
    assert "out-whole" in listing(tmp_path) and "out" not in listing(tmp_path)


FAILING_DISK = """
import errno, sys
import seccomp
from relex_ext import extrapolate
from relex_ext.errors import ReadError

seccomp.fail("madvise", errno.EFAULT, third=22)  # as a page that cannot be read
base, run, out = sys.argv[1:]
try:
    extrapolate(base, run, [100], out, io="mmap", progress=False)
except ReadError as error:
    print(error)
"""


def test_failing_disks(run: RunFolder, tmp_path: Path) -> None:
    found = children.printed(FAILING_DISK, run.base, run.checkpoints, tmp_path / "out")
    assert found.startswith(f"{run.base / SINGLE}: tensor w: cannot be read: Input/output error")
