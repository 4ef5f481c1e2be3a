"""A run's journal: what it is making, and what of that is done, a checksummed line each.

Lines are appended without waiting for the device. They carry the digests of the bytes they speak
of, and who takes a run up hashes those bytes again. So whatever a crash lost or kept, in whatever
order, costs work at worst.

Of processes that do one job together each appends to a file of its own, and all read all of them.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relex_ext.layout import sync_folder, write_all, writing

FORMAT = "relex-journal/1"

PART = "part"
"""The word for a process's share: what its file says up to there is durable."""

Entry = tuple[str, str]
"""What, and of which tensor."""


class Journal:
    """Of one job. ``done``: what is, with its digests; ``durable``: what of it is known to be.

    ``job``: everything that decides the bytes, as JSON can say it; ``differs``: what a journal that
    was there before says otherwise, None if it says the same or was none.
    """

    def __init__(self, path: Path, job: Mapping[str, Any], own: Path | None = None) -> None:
        """``own``: the file to append to, beside ``path`` and named after it, if not that."""
        self.path = path
        self.done: dict[Entry, list[str]] = {}
        self.durable: set[Entry] = set()
        self._own = own or path
        self._first = _line({"format": FORMAT, "job": job})
        self._whole = 0
        """Bytes of what is there already of the own file that are this job's."""
        self._descriptor = -1
        self._appending = threading.Lock()
        self.differs = self._read(path)
        if path.exists() and self.differs is None:
            self.refresh()

    def refresh(self) -> None:
        """Take over what the other files say by now."""
        for path in sorted(self.path.parent.glob(f"{self.path.name}.*")):
            self._read(path)
        if self._descriptor >= 0 and self._own != self.path:
            self._read(self.path)

    def open(self) -> None:
        """Begin it, or go on behind its last whole line."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing(self._own):
            self._descriptor = os.open(self._own, flags, 0o666)
            try:
                os.ftruncate(self._descriptor, self._whole)
                if self._whole == 0:
                    write_all(self._descriptor, self._first)
                sync_folder(self.path.parent)  # by its name the folder is known as ours
            except BaseException:
                self.close()
                raise

    def add(self, what: str, name: str, digests: Sequence[str]) -> None:
        """Done, as far as this process goes. From any thread."""
        line = _line({"what": what, "tensor": name, "sha256": list(digests)})
        with self._appending, writing(self._own):
            write_all(self._descriptor, line)
            self.done[what, name] = list(digests)

    def seal(self, part: str) -> None:
        """All that this process has added is durable, and known to the others."""
        self.add(PART, part, [])
        with writing(self._own):
            os.fsync(self._descriptor)

    def confirm(self, what: str, name: str) -> None:
        """What another process has noted, perhaps in vain, is there. Then it is in this one's file,
        too, unless there is but one file."""
        if self._own != self.path and (what, name) not in self.durable:
            self.add(what, name, self.done[what, name])

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _read(self, path: Path) -> str | None:
        """Take over what is there of the same job; else say what differs."""
        try:
            lines = path.read_bytes().splitlines(keepends=True)
        except OSError:
            return None
        first = _said(lines[0]) if lines else None
        if first is None or first.get("format") != FORMAT:
            return None
        if lines[0] != self._first:
            mine = _said(self._first)
            assert mine is not None
            return difference(first["job"], mine["job"]) or "written otherwise"
        whole = len(self._first)
        found: list[Entry] = []
        for line in lines[1:]:
            said = _said(line)
            if said is None:  # torn; nothing behind it counts
                break
            found.append((said["what"], said["tensor"]))
            self.done[found[-1]] = said["sha256"]
            whole += len(line)
            if said["what"] == PART:
                self.durable.update(found)
        if path == self._own:
            self._whole = whole
        return None


def _line(said: Mapping[str, Any]) -> bytes:
    text = json.dumps(said, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _said(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text[:-1]):
        return None
    said: dict[str, Any] = json.loads(text)
    return said


def difference(earlier: Mapping[str, Any], job: Mapping[str, Any]) -> str | None:
    """The first part of a job that another one has otherwise, in words."""
    for name in sorted({*earlier, *job}):
        was, found = earlier.get(name), job.get(name)
        if isinstance(was, dict) and isinstance(found, dict):
            inner = difference(was, found)
            if inner is not None:
                return f"{name}: {inner}"
        elif was != found:
            return f"{name} was {_short(was)}, is {_short(found)}"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:38]}…"
