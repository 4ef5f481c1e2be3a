"""The preloaded library: built, steered, and its record read."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("shim.c", "calls.c")

WAYS = ("pass", "fail", "short", "full", "before", "after", "torn")
"""As enum Way in shim.h numbers them."""

MOVES_BYTES = frozenset({"read", "pread", "write", "pwrite"})


@dataclass(frozen=True, slots=True)
class Call:
    """A system call as it is found again in another run: the ``nth`` (from 0) of its kind."""

    op: str
    path: str
    nth: int

    def __str__(self) -> str:
        return f"{self.op} {self.path} #{self.nth}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A call as it was recorded. ``length``: asked for; ``data``: what was written."""

    op: str
    path: str
    other: str
    result: int
    offset: int
    length: int
    data: bytes


def build(folder: Path) -> Path:
    """Compile the library with the system's C compiler."""
    made = folder / "shim.so"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    sources = [str(HERE / name) for name in SOURCES]
    subprocess.run(["cc", *flags, "-o", str(made), *sources, "-ldl"], check=True)
    return made


def preload(library: Path) -> dict[str, str]:
    """For the environment of a process that has the library; what is preloaded already, such as a
    sanitizer's runtime, has to come first."""
    found = [*os.environ.get("LD_PRELOAD", "").split(":"), str(library)]
    return {"LD_PRELOAD": ":".join(filter(None, found))}


class Shim:
    """This process's library. What it is told holds for processes forked from here on."""

    def __init__(self, root: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._root = os.fsencode(root)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Calls below the root count, in this process."""
        self._library.shim_root(self._root)
        try:
            yield
        finally:
            self._library.shim_root(b"")

    def record(self, file: Path, data: bool) -> None:
        """Write every counted call behind what the file has."""
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._library.shim_record(descriptor, int(data))

    def want(self, call: Call, way: str, code: int = 0) -> None:
        """What happens at a call. ``code``: the errno or the signal."""
        path = os.fsencode(call.path)
        nth = ctypes.c_long(call.nth)
        self._library.shim_want(call.op.encode(), path, nth, WAYS.index(way), code)

    def lack(self, op: str, code: int) -> None:
        """Every such call fails, as where the file system has none."""
        self._library.shim_lack(op.encode(), code)

    def kill_after(self, seconds: float) -> None:
        if self._library.shim_kill_after(ctypes.c_long(round(seconds * 1e6))):
            raise OSError("no timer")

    @property
    def fired(self) -> int:
        return int(self._library.shim_fired())


def entries_of(file: Path) -> list[Entry]:
    """A record, as far as it was written."""
    data = file.read_bytes() if file.exists() else b""
    found, at = [], 0
    while (end := data.find(b"\n", at)) >= 0:
        op, *numbers, path, other = os.fsdecode(data[at:end]).split("\t")
        result, offset, length, size = map(int, numbers)
        at = end + 1 + size
        found.append(Entry(op, path, other, result, offset, length, data[end + 1 : at]))
    return found


def calls_of(entries: Iterable[Entry]) -> list[Call]:
    """Every call of a record, numbered among its like, in the order of the record."""
    seen: Counter[tuple[str, str]] = Counter()
    found = []
    for entry in entries:
        key = entry.op, entry.path
        found.append(Call(*key, seen[key]))
        seen[key] += 1
    return found
