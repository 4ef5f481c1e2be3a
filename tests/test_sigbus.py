"""The handler of SIGBUS: many mappings, many threads, children, and faults that are not ours."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import children

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
