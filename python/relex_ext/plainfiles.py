"""Files that anybody may have put into a folder: opened once, regular, in their place, bounded."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from relex_ext.errors import InputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def opened(path: Path, folder: Path | None = None) -> Iterator[tuple[int, os.stat_result]]:
    """The descriptor of a regular file to read, and what it is.

    ``folder``: where the file has to be (:func:`target_of`). Never blocks, whatever lies there.

    Raises:
        InputError: it cannot be opened, is no regular file, or is a link to elsewhere.
    """
    target = None if folder is None else target_of(path, folder)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a name with NUL in it
        raise InputError(f"{path}: {_why_not(error)}") from error
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            kind = _KINDS[stat.S_IFMT(info.st_mode)]
            raise InputError(f"{path}: expected a regular file, found {kind}")
        if target is not None and not _is(target, info):
            raise InputError(f"{path}: changed while it was opened")
        yield descriptor, info
    finally:
        os.close(descriptor)


def read_at(path: Path, descriptor: int, offset: int, count: int) -> bytes:
    """All these bytes of a file; mapping it would turn a truncation into SIGBUS."""
    pieces = []
    try:
        while count > 0 and (piece := os.pread(descriptor, min(count, 1 << 30), offset)):
            pieces.append(piece)
            offset += len(piece)
            count -= len(piece)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if count > 0:
        raise InputError(f"{path}: truncated while it was read: {count} bytes are missing")
    return b"".join(pieces)


def read_small(path: Path, most: int, folder: Path | None = None) -> bytes:
    """The whole of a regular file of up to ``most`` bytes."""
    with opened(path, folder) as (descriptor, info):
        if info.st_size > most:
            raise InputError(f"{path}: expected at most {most} bytes, found {info.st_size}")
        return read_at(path, descriptor, 0, info.st_size)


def target_of(path: Path, folder: Path) -> Path:
    """What a path stands for. Refuses a link that leads out of its folder: what it names could be
    anything that this process may read, and is copied into an output that may be published. A Hub
    cache's own links are taken."""
    target, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if root not in target.parents and not _in_cache(target, root):
        raise InputError(
            f"{path}: expected a part of its folder, found a link to {target}; copy it, or give "
            "the folder that it is in"
        )
    return target


def _why_not(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return f"expected a file, found {error}"
    if error.errno == errno.ENXIO:
        return "expected a regular file, found a socket"
    return f"cannot be read: {error.strerror}"


def _is(target: Path, info: os.stat_result) -> bool:
    try:
        return os.path.samestat(target.lstat(), info)
    except OSError:
        return False


class Snapshot(NamedTuple):
    """A place in a Hub cache: ``models--ORG--NAME/snapshots/COMMIT/FOLDER``."""

    repository: Path
    commit: str
    folder: str


def snapshot_of(folder: Path) -> Snapshot | None:
    """The place in a Hub cache that a folder is."""
    for place in (folder, *folder.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and repository.name.startswith("models--"):
            inside = folder.relative_to(place).as_posix()
            return Snapshot(repository, place.name, "" if inside == "." else inside)
    return None


def blob_of(path: Path) -> str | None:
    """The Hub's name for the contents of a file in its cache, which changes when they do."""
    folder = Path(os.path.realpath(path.parent))
    place = snapshot_of(folder)
    if place is None or not path.is_symlink():
        return None
    linked = Path(os.path.normpath(folder / path.readlink()))
    return linked.name if linked.parent == place.repository / "blobs" else None


def _in_cache(target: Path, folder: Path) -> bool:
    """Whether a Hub cache keeps a file of this folder there: among its repository's blobs, or
    among those that repositories share."""
    place = snapshot_of(folder)
    if place is None:
        return False
    shared = place.repository.parent / "blobs"
    return target.parent == place.repository / "blobs" or target.parent.parent == shared
