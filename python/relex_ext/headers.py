"""Safetensors headers: what a file says it holds, believed only when all of it adds up.

A header has to pass twice. The safetensors library judges the very bytes that were read, and the
rules here, which are stricter, are checked on the same ones. No byte of tensor data is read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from relex_ext import strictjson
from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.plainfiles import blob_of, opened, read_at

MOST_TENSORS = 1 << 18
METADATA = "__metadata__"

_FIELDS = {"dtype", "shape", "data_offsets"}
_MFD_NOEXEC_SEAL = 8  # allows seals, too; Linux 6.3, and Python 3.10 has no name for it


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file as it was when its header was read."""

    path: Path
    size: int
    mtime_ns: int
    header_sha256: str
    stamp: tuple[int, ...] = field(compare=False)
    """Of the very file that was opened, for :func:`check_unchanged`."""
    blob: str | None = None
    """The Hub's name for its contents, of a file in a Hub cache."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: ``nbytes`` bytes from ``offset`` of the file ``shard``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Shard
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A file's tensors in the order of their offsets, and what its writer noted beside them."""

    shard: Shard
    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]


class Described(NamedTuple):
    """A tensor in a header's own words: bytes [begin, end) of the data."""

    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


def header_of(path: Path, folder: Path | None = None) -> Header:
    """Read and check a file's header.

    ``folder``: where the file has to be, links followed; anywhere if not given.

    Raises:
        InputError: no regular file, or not a safetensors file in every respect.
    """
    with opened(path, folder) as (descriptor, info):
        length = int.from_bytes(read_at(path, descriptor, 0, min(8, info.st_size)), "little")
        if not 2 <= length <= min(strictjson.LONGEST, info.st_size - 8):
            raise InputError(
                f"{path}: not a safetensors file: expected a header of 2 to {strictjson.LONGEST} "
                f"bytes within its {info.st_size}, found {length}"
            )
        header = read_at(path, descriptor, 8, length)
    size = info.st_size - 8 - length
    try:
        strictjson.check_cost(header)
        judge(header, size)
        tensors, metadata = parse(header, size)
    except ValueError as error:
        raise InputError(f"{path}: header: {error}") from error
    shard = shard_of(path, info, header)
    entries = tuple(
        TensorEntry(t.name, t.dtype, t.shape, shard, 8 + length + t.begin, t.end - t.begin)
        for t in tensors
    )
    return Header(shard, entries, metadata)


def shard_of(path: Path, info: os.stat_result, header: bytes) -> Shard:
    """A file as it was opened, by what of it was read."""
    digest = hashlib.sha256(header).hexdigest()
    return Shard(path, info.st_size, info.st_mtime_ns, digest, _stamp(info), blob_of(path))


def read_header(path: Path, folder: Path | None = None) -> tuple[Shard, list[TensorEntry]]:
    """One safetensors file's identity and its tensors in the order of their offsets."""
    header = header_of(path, folder)
    return header.shard, list(header.entries)


def judge(header: bytes, size: int) -> None:
    """The safetensors library's verdict on these bytes before ``size`` bytes of data.

    It maps what it opens. A file in memory, as large as the true one and as empty as a hole, is
    what it sees. That is sealed: nobody can change it meanwhile, and no truncation be a SIGBUS.

    Raises:
        ValueError: it rejects them.
    """
    descriptor = _memory_file()
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(len(header).to_bytes(8, "little"))
            file.write(header)
        os.ftruncate(descriptor, 8 + len(header) + size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
        with safe_open(f"/proc/self/fd/{descriptor}", framework="numpy"):
            pass  # opening validates the whole header
    except (SafetensorError, OSError) as error:
        raise ValueError(f"not readable as safetensors: {error}") from error
    finally:
        os.close(descriptor)


def parse(header: bytes, size: int) -> tuple[list[Described], dict[str, str]]:
    """The tensors that a header describes, in the order of their offsets, and its metadata.

    Every rule of the format is checked here, with no help from the library: names once, whole
    numbers, known dtypes, shapes that fill their bytes, and bytes that fill ``size`` without a gap.

    Raises:
        ValueError: a rule is broken.
    """
    if not header.startswith(b"{"):
        raise ValueError(f"expected a header that begins with {{, found {header[:1]!r}")
    described = strictjson.load(header, floats=False)
    metadata = _metadata(described.pop(METADATA, {}))
    if len(described) > MOST_TENSORS:
        raise ValueError(f"expected at most {MOST_TENSORS} tensors, found {len(described)}")
    tensors = sorted(_tensor(name, value) for name, value in described.items())
    at = 0
    for tensor in tensors:
        if tensor.begin != at:
            raise _wrong(tensor.name, "data_offsets", f"a begin at {at}", tensor.begin)
        at = tensor.end
    if at != size:
        raise ValueError(f"expected {at} bytes of data, found {size}")
    return tensors, metadata


def check_unchanged(shards: Iterable[Shard]) -> None:
    """Refuse what was read if a file is no longer what it was when its header was read.

    Raises:
        InputError: naming the first such file and what differs.
    """
    for shard in shards:
        try:
            now = _stamp(shard.path.stat())
        except OSError as error:
            raise InputError(f"{shard.path}: gone while it was read: {error.strerror}") from error
        for what, before, after in zip(_STAMPED, shard.stamp, now, strict=True):
            if before != after:
                raise InputError(
                    f"{shard.path}: changed while it was read: {what} was {before}, is {after}"
                )


_STAMPED = ("its device", "its inode", "its size", "its modification time", "its change time")


def _stamp(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _memory_file() -> int:
    try:
        return os.memfd_create("header", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("header", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)  # an older kernel


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict):
        raise ValueError(f"{METADATA}: expected an object, found {_kind(found)}")
    for key, value in found.items():
        if not isinstance(value, str):
            raise ValueError(f"{METADATA}: {key}: expected text, found {_kind(value)}")
        _check_text(METADATA, key + value)
    return found


def _tensor(name: str, found: Any) -> Described:
    _check_text("name", name)
    if not isinstance(found, dict):
        raise _wrong(name, "description", "an object", _kind(found))
    if found.keys() != _FIELDS:
        raise _wrong(name, "description", ", ".join(sorted(_FIELDS)), ", ".join(sorted(found)))
    dtype, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if not isinstance(dtype, str):
        raise _wrong(name, "dtype", "text", _kind(dtype))
    if dtype not in ITEM_SIZE:
        raise _wrong(name, "dtype", f"one of {', '.join(ITEM_SIZE)}", dtype)
    _check_numbers(name, "shape", shape)
    _check_numbers(name, "data_offsets", offsets)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _wrong(name, "data_offsets", "begin and end", offsets)
    nbytes = ITEM_SIZE[dtype]
    for extent in shape:
        nbytes *= extent
        if max(nbytes, extent) >= 1 << 63:  # even if an extent is 0: whoever multiplies overflows
            raise _wrong(name, "shape", "less than 2⁶³ bytes", shape)
    if nbytes != offsets[1] - offsets[0]:
        raise _wrong(name, f"{dtype} {shape}", f"{nbytes} bytes", offsets[1] - offsets[0])
    return Described(offsets[0], offsets[1], name, dtype, tuple(shape))


def _check_numbers(name: str, what: str, found: Any) -> None:
    if not isinstance(found, list):
        raise _wrong(name, what, "a list", _kind(found))
    if {*map(type, found)} - {int}:  # true is an instance of int, and none
        raise _wrong(name, what, "whole numbers", "others")


def _kind(value: object) -> str:
    """For a message, which what is nested deeply must not break."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value)


def _check_text(what: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
        raise ValueError(f"{what}: expected Unicode text, found {text}") from error


def _wrong(name: str, what: str, expected: str, found: object) -> ValueError:
    return ValueError(f"tensor {name}: {what}: expected {expected}, found {found}")
