"""Safetensors files laid out in advance: the header and where each tensor's bytes go.

The safetensors library writes whole files from memory; these are written piece by piece, in place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relex_ext import _core
from relex_ext.errors import OutputError

CHUNK = 4 << 20
"""Bytes read at a time."""

DURABLE_PIECE = 16 << 20
"""Bytes waited for at a time: a fraction of a second on a slow disk."""


@dataclass(frozen=True, slots=True)
class Layout:
    """``header``: the file's first bytes; ``offsets``: name → where its data starts; ``size``."""

    header: bytes
    offsets: Mapping[str, int]
    size: int


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> Layout:
    """A file of the given (name, dtype, shape, bytes) in this order, without gaps."""
    described: dict[str, object] = {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    at = 0
    for name, dtype, shape, nbytes in tensors:
        starts[name] = at
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data starts 8-byte aligned
    header = len(text).to_bytes(8, "little") + text
    return Layout(header, {n: len(header) + o for n, o in starts.items()}, len(header) + at)


class SizedFile:
    """A file of a known size, its space reserved, written at offsets: a new one, or one that an
    earlier run has begun."""

    def __init__(self, path: Path, layout: Layout, made: bool = False) -> None:
        """``made``: another process has made it and is at work on it, too."""
        self.path = path
        self.layout = layout
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing(path):
            self._descriptor = os.open(path, flags if made else flags | os.O_CREAT, 0o666)
            try:
                if made:
                    self._check_size()
                    return
                if os.fstat(self._descriptor).st_size != layout.size:
                    os.ftruncate(self._descriptor, 0)
                _core.reserve(self._descriptor, layout.size)
                write_all(self._descriptor, layout.header, 0)
            except BaseException:
                self.abandon()
                raise

    def _check_size(self) -> None:
        size = os.fstat(self._descriptor).st_size
        if size != self.layout.size:
            raise OutputError(
                f"{self.path}: expected {self.layout.size} bytes, as another process has made it, "
                f"found {size}; do all processes see the same folder?"
            )

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``; starts it on its way to the device so that close() is short."""
        with writing(self.path):
            write_all(self._descriptor, data, offset)
        if len(data) >= 1 << 20:
            _core.start_writeback(self._descriptor, offset, len(data))

    def read(self, offset: int, nbytes: int) -> bytes:
        """So many bytes, fewer only where the file ends."""
        found = bytearray()
        while len(found) < nbytes:
            got = os.pread(self._descriptor, min(nbytes - len(found), CHUNK), offset + len(found))
            if not got:
                break
            found += got
        return bytes(found)

    def sha256(self, offset: int, nbytes: int) -> str:
        """The digest of a range, read again."""
        digest = hashlib.sha256()
        for at in range(offset, offset + nbytes, CHUNK):
            digest.update(self.read(at, min(CHUNK, offset + nbytes - at)))
        return digest.hexdigest()

    def flush(self) -> None:
        """Make it durable. In pieces, so that Ctrl-C is answered between them."""
        with writing(self.path):
            for at in range(0, self.layout.size, DURABLE_PIECE):
                piece = min(DURABLE_PIECE, self.layout.size - at)
                _core.finish_writeback(self._descriptor, at, piece)
            os.fsync(self._descriptor)

    def close(self) -> None:
        """The same, and let go of it."""
        try:
            self.flush()
        finally:
            self.abandon()

    def abandon(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1  # closed once, whatever comes
            os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says against it becomes one line about the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def write_all(descriptor: int, data: bytes | memoryview, offset: int | None = None) -> None:
    """Write all of ``data``, at an offset or where the file stands."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        rest = view[done:]
        if offset is None:
            wrote = os.write(descriptor, rest)
        else:
            wrote = os.pwrite(descriptor, rest, offset + done)
        if wrote == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += wrote


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Write a small new file and wait for the device."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put_durably(path: Path, data: bytes) -> None:
    """The same where an earlier run may have left some of it, in a folder nobody reads yet."""
    with writing(path):
        path.unlink(missing_ok=True)
        write_durably(path, data)


def replace_durably(path: Path, data: bytes) -> None:
    """Put a small file in the place of an earlier one: after a crash there is one or the other."""
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        write_durably(partial, data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.absolute().parent)


def replace_folder(new: Path, place: Path, aside: Path) -> None:
    """Give a folder the name of another one, which is ``new`` or ``aside`` then.

    In one step; where the file system has no such step there is a moment between two renames when
    nothing has the name, and ``aside``, which must not exist, is the one to put back.
    """
    try:
        _core.exchange(new, place)
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    place.rename(aside)
    try:
        new.rename(place)
    except OSError:
        aside.rename(place)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder, durably; returns those that had to be made, innermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_folder(made.absolute().parent)
    except OSError as error:
        remove_folders(missing)
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
    return missing


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it. Ctrl-C stays Ctrl-C: shutil, when it is interrupted just
    after it has closed a folder, closes that again and raises what this says."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


def remove_folders(folders: Iterable[Path]) -> None:
    """Undo :func:`make_folder`, as far as nothing else has been put there."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            break
