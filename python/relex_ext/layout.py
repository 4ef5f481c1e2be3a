"""Safetensors files laid out in advance: the header and where each tensor's bytes go.

The safetensors library writes whole files from memory; these are written piece by piece, in place.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from relex_ext import _core
from relex_ext.errors import OutputError


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
    """A new file of a known size, its space reserved, written at offsets."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            reserve(self._descriptor, layout.size)
            self.write(0, layout.header)
        except BaseException:
            self.abandon()
            raise

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``; starts it on its way to the device so that close() is short."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.pwrite(self._descriptor, view[done:], offset + done)
        if len(view) >= 1 << 20:
            _core.start_writeback(self._descriptor, offset, len(view))

    def close(self) -> None:
        """Make it durable."""
        try:
            os.fsync(self._descriptor)
        finally:
            self.abandon()

    def abandon(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def reserve(descriptor: int, size: int) -> None:
    """Allocate a file's blocks, so that a full disk is found now and not when it is written."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        import errno

        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size)  # a file system that cannot reserve


def write_durably(path: Path, data: bytes) -> None:
    """Write a small new file and wait for the device."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Put a small file in the place of an earlier one: after a crash there is one or the other."""
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        write_durably(partial, data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.absolute().parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder; returns those that had to be made, innermost first."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
    return missing


def remove_folders(folders: Iterable[Path]) -> None:
    """Undo :func:`make_folder`, as far as nothing else has been put there."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            break
