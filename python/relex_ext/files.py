"""Shard files: which way they are read, and the reading."""

from __future__ import annotations

import errno
import os
import re
import resource
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relex_ext import _core
from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError, ReadError
from relex_ext.headers import Shard, TensorEntry
from relex_ext.layout import CHUNK

IOS = ("auto", "mmap", "pread", "gds")

AS_ASKED = "as asked"
"""The reason for what was not chosen: nothing may stand in for it."""

FOLIO = 2 << 20
"""The largest piece of a file that one page fault maps."""

_REMOTE = re.compile(r"nfs|cifs|smb|fuse|lustre|gpfs|beegfs|ceph|9p|virtiofs|afs|glusterfs")


def check_io(io: str) -> None:
    if io not in IOS:
        raise InputError(f"io: expected one of {', '.join(IOS)}, found {io}")


def choose_io(io: str, folders: Sequence[Path], strip: int) -> tuple[str, str]:
    """(``mmap`` or ``pread``, why) for the processor, with strips of up to so many bytes.

    Mapped files of network file systems stall and fault badly. And the kernel maps large folios
    whole: strips shorter than those would bring in more than the memory limit allows for.
    """
    check_io(io)
    if io == "gds":
        raise InputError("io: gds reads into a GPU's memory; the processor can have mmap or pread")
    if io != "auto":
        return io, AS_ASKED
    kinds = {_file_system(folder) for folder in folders}
    remote = sorted(kind for kind in kinds if _REMOTE.search(kind))
    if remote:
        return "pread", f"{remote[0]} file system"
    if strip < FOLIO:
        return "pread", "strips too short to map"
    return "mmap", "local file system"


def choose_device_io(io: str, no_gds: str | None) -> tuple[str, str]:
    """(``pread`` or ``gds``, why) for a GPU; ``no_gds``: why GPUDirect Storage cannot be had.

    A mapped file is no choice: a copy engine takes pinned memory at the bus's rate and any other
    through a copy of the driver's, and pinning the page cache is not to be had.
    """
    check_io(io)
    can_be_had = "pread" if no_gds else "pread or gds"
    if io == "mmap":
        raise InputError(
            f"io: mmap is for the processor (backend cpu); a GPU can have {can_be_had}"
        )
    if io == "gds" and no_gds:
        raise InputError(f"io: gds: {no_gds}; a GPU can have {can_be_had} here")
    if io == "gds":
        return io, AS_ASKED
    if io == "auto" and not no_gds:
        return "gds", "into device memory"
    return "pread", "into pinned memory"


def _file_system(folder: Path) -> str:
    """The type of the file system that holds a folder, by the longest matching mount point."""
    path = os.path.realpath(folder)
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


class Files:
    """The shards of a run, each opened when it is first needed. Shared by loading threads."""

    def __init__(self, mapped: bool) -> None:
        self._mapped = mapped
        self._files: dict[Shard, _core.File] = {}
        self._opening = threading.Lock()
        self.stop = _core.StopToken()
        """Set to end the reading early."""

    def open(self, shard: Shard) -> _core.File:
        with self._opening:
            file = self._files.get(shard)
            if file is None:
                try:
                    file = _core.File(str(shard.path), self._mapped)
                except OSError as error:
                    raise InputError(f"{shard.path}: {reason(error.errno)}") from error
                if file.size != shard.size:
                    raise InputError(
                        f"{shard.path}: changed since its header was read: expected "
                        f"{shard.size} bytes, found {file.size}"
                    )
                self._files[shard] = file
            return file

    def check(self) -> None:
        """Refuse what was computed so far if any of it was read as zeros: mapped pages got lost."""
        if _core.damages() == 0:  # in this process, ever: nothing to look for
            return
        with self._opening:
            damaged = [shard for shard, file in self._files.items() if file.damaged]
        for shard in damaged:
            if _shortened(shard):
                raise InputError(f"{shard.path}: truncated while it was read")
            raise ReadError(f"{shard.path}: {reason(errno.EIO)}")

    def read(
        self, name: str, entries: Sequence[TensorEntry], extents: Extents, to: NDArray[np.uint64]
    ) -> None:
        """Columns of a tensor's entries, each to its address."""
        files = [self.open(entry.shard) for entry in entries]
        descriptors = np.array([file.descriptor for file in files], np.int32)
        offsets, lengths = extents
        check_strips(_core.read(descriptors, offsets, to, lengths, self.stop), name, entries)


Extents = tuple[NDArray[np.uint64], NDArray[np.uint64]]


def extents(entries: Sequence[TensorEntry], begin: int, end: int) -> Extents:
    """(offsets, lengths) in bytes of columns [begin, end) in each entry's file."""
    sizes = [ITEM_SIZE[entry.dtype] for entry in entries]
    offsets = [e.offset + begin * size for e, size in zip(entries, sizes, strict=True)]
    lengths = [(end - begin) * size for size in sizes]
    return np.array(offsets, np.uint64), np.array(lengths, np.uint64)


def check_strips(outcome: tuple[int, int], name: str, entries: Sequence[TensorEntry]) -> None:
    """Raise what the core reports of the strips of a tensor: (which failed or −1, errno)."""
    failed, code = outcome
    if failed >= 0:
        shard = entries[failed].shard
        code = code or (0 if _shortened(shard) else errno.EIO)
        kind = ReadError if code else InputError
        raise kind(f"{shard.path}: tensor {name}: {reason(code)}")


def contents(entry: TensorEntry) -> Iterator[bytes]:
    """A tensor's bytes, some megabytes at a time."""
    with entry.shard.path.open("rb") as file:
        file.seek(entry.offset)
        for at in range(0, entry.nbytes, CHUNK):
            data = file.read(min(CHUNK, entry.nbytes - at))
            if len(data) < min(CHUNK, entry.nbytes - at):
                raise InputError(f"{entry.shard.path}: tensor {entry.name}: {reason(0)}")
            yield data


def _shortened(shard: Shard) -> bool:
    """Whether that is why pages of it are missing. Else their disk fails."""
    try:
        return shard.path.stat().st_size < shard.size
    except OSError:
        return False


def reason(code: int | None) -> str:
    if not code:
        return "truncated since its header was read"
    hint = "; raise the limit with ulimit -n" if code == errno.EMFILE else ""
    return f"cannot be read: {os.strerror(code)}{hint}"


def allow_many_files() -> None:
    """Raise the soft limit on open files to the hard one: pread keeps every shard open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            pass  # a sandbox may forbid it; running out is reported when it happens
