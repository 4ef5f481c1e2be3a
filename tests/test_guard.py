"""Files that are shortened while they are mapped: an error that names them, never a SIGBUS."""

from __future__ import annotations

import errno
import os
import signal
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


def test_a_file_that_is_whole_again_or_gone_was_read_badly(run: RunFolder) -> None:
    for spoil, said in [
        (lambda path, size: os.truncate(path, size), os.strerror(errno.EIO)),
        (lambda path, size: path.unlink(), os.strerror(errno.ENOENT)),
    ]:
        memory = HostMemory(1 << 30, "mmap")
        window = memory.load(first_pass(run), 0, COLUMNS, 0)
        path = shard(run, 30)
        size = path.stat().st_size
        data = path.read_bytes()
        os.truncate(path, 0)
        gram(CpuBackend(1), window, memory)
        spoil(path, size)
        with pytest.raises(ReadError, match=f"{path}: cannot be read: {said}"), memory.reporting():
            pass
        path.write_bytes(data)


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


# ---- many mappings, many threads, children -----------------------------------------------------

MAPPED = """
import ctypes, faulthandler, mmap, os, signal, sys, threading
import numpy as np
from relex_ext import _core

PAGE = 4096

def mapped(name, pages=64):
    path = f"{sys.argv[1]}/{name}"
    with open(path, "wb") as file:
        file.write(bytes([7]) * PAGE * pages)
    return path, _core.File(path, True)

def read(file, page):
    return ctypes.string_at(file.address + PAGE * page, PAGE)

def foreign():
    "An access past the end of a file that somebody else has mapped."
    path = f"{sys.argv[1]}/foreign"
    with open(path, "wb+") as file:
        file.write(bytes(PAGE))
        file.flush()
        view = mmap.mmap(file.fileno(), PAGE)
        os.truncate(path, 0)
        view[0]
"""

THREADS = """
path, file = mapped("one")
others = [mapped(f"other-{i}")[1] for i in range(1500)]
path_of_last, last = mapped("last")
for name in (path, path_of_last):
    os.truncate(name, PAGE)
begin = threading.Barrier(16)
zeros = []

def work(i):
    begin.wait()
    for page in range(1 + i % 4, 64, 4):
        for one in (file, last):
            zeros.append(read(one, page) == bytes(PAGE))

threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(zeros), all(zeros), file.damaged, last.damaged)
print(any(other.damaged for other in others), _core.damages())
print(all(read(other, 63) == bytes([7]) * PAGE for other in others))
"""


def test_many_threads_and_mappings(tmp_path: Path) -> None:
    found = children.printed(MAPPED + THREADS, tmp_path)
    assert found == "504 True True True\nFalse 2\nTrue"


AGAIN = """
for _ in range(600):
    path, file = mapped("one")
    print(file.damaged, read(file, 63) == bytes([7]) * PAGE, end=" ")
    os.truncate(path, 0)
    print(read(file, 63) == bytes(PAGE), file.damaged, _core.damages())
    del file
"""


def test_a_new_mapping_is_whole_whatever_was_there_before(tmp_path: Path) -> None:
    found = children.printed(MAPPED + AGAIN, tmp_path).splitlines()
    assert found == [f"False True True True {i + 1}" for i in range(600)]


FORKED = """
path, file = mapped("one")
ends = os.pipe()
child = os.fork()
if child == 0:
    fresh_path, fresh = mapped("two")
    os.truncate(fresh_path, 0)
    os.read(ends[0], 1)
    read(fresh, 3), read(file, 3)
    print(file.damaged, fresh.damaged, _core.damages(), flush=True)
    os._exit(0)
os.truncate(path, 0)
os.write(ends[1], b"x")
print(os.waitpid(child, 0)[1], file.damaged, _core.damages(), flush=True)
read(file, 3)
print(file.damaged)
"""


def test_forked_children_have_a_guard_of_their_own(tmp_path: Path) -> None:
    found = children.printed(MAPPED + FORKED, tmp_path)
    assert found == "True True 2\n0 False 0\nTrue"


# ---- other people's SIGBUS ---------------------------------------------------------------------

GUARDED = """
path, file = mapped("one")
os.truncate(path, 0)
read(file, 1)
assert file.damaged
"""
ON, OFF = "faulthandler.enable()\n", "faulthandler.disable()\n"


@pytest.mark.parametrize(
    ("before", "dumps"),
    [
        ("", 0),
        (GUARDED, 0),
        (ON + GUARDED, 1),
        (GUARDED + ON, 1),
        (GUARDED + ON + GUARDED, 1),
        (GUARDED + ON + OFF, 0),
        (ON + GUARDED + OFF, 0),
        (GUARDED + ON + GUARDED + OFF, 0),
        (GUARDED + ON + GUARDED + OFF + GUARDED + ON + GUARDED, 1),
    ],
)
def test_foreign_faults_kill_as_ever(tmp_path: Path, before: str, dumps: int) -> None:
    check_killed(tmp_path, before, dumps, "foreign()")


@pytest.mark.parametrize(
    ("before", "dumps"),
    [("", 0), (GUARDED, 0), (ON + GUARDED, 1), (GUARDED + ON + GUARDED, 1)],
)
def test_sent_signals_kill_as_ever(tmp_path: Path, before: str, dumps: int) -> None:
    check_killed(tmp_path, before, dumps, "os.kill(os.getpid(), signal.SIGBUS)")


def check_killed(folder: Path, before: str, dumps: int, fatal: str) -> None:
    code = MAPPED + before + "print('begun', flush=True)\n" + fatal + "\nprint('survived')"
    status, out, err = children.run(code, folder)
    assert (status, out) == (-signal.SIGBUS, "begun\n")
    assert err.count("Fatal Python error: Bus error") == dumps


def test_faulthandler_keeps_silent_about_ours(tmp_path: Path) -> None:
    code = MAPPED + ON + GUARDED + ON + GUARDED + "print(_core.damages())"
    assert children.run(code, tmp_path, PYTHONFAULTHANDLER="1") == (0, "2\n", "")


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    code = """
    signal.signal(signal.SIGBUS, signal.SIG_IGN)
    path, file = mapped("one")
    os.kill(os.getpid(), signal.SIGBUS)
    file = mapped("two")
    os.kill(os.getpid(), signal.SIGBUS)
    print("alive")
    """
    assert children.printed(MAPPED + code.replace("\n    ", "\n"), tmp_path) == "alive"
