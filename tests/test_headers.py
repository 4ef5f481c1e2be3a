"""Corrupt safetensors files: refused with the file's name, in one line, and at a bounded cost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from folders import SINGLE, with_header
from relex_ext.checkpoints import open_checkpoint
from relex_ext.errors import InputError
from relex_ext.headers import check_unchanged, header_of, judge, parse, read_header


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"w": tensor("F32", [4], 0, 16)}
WHOLE = with_header(GOOD, bytes(16))

CASES = {
    "empty file": b"",
    "seven bytes": WHOLE[:7],
    "only the length": WHOLE[:8],
    "half a header": WHOLE[:20],
    "truncated data": WHOLE[:-1],
    "trailing data": WHOLE + b"\0",
    "huge length": (2**63).to_bytes(8, "little") + WHOLE[8:],
    "length past the end": (len(WHOLE)).to_bytes(8, "little") + WHOLE[8:],
    "length one too many": (len(WHOLE) - 24 + 1).to_bytes(8, "little") + WHOLE[8:],
    "zero length": bytes(8) + WHOLE[8:],
    "not json": (16).to_bytes(8, "little") + b"{not json at al}",
    "not utf-8": (4).to_bytes(8, "little") + b'{"\xff}',
    "a list": with_header([1], b""),
    "no offsets": with_header({"w": {"dtype": "F32", "shape": [4]}}, bytes(16)),
    "unknown dtype": with_header({"w": tensor("Q7", [4], 0, 16)}, bytes(16)),
    "unsupported dtype": with_header({"w": tensor("F8_E8M0", [16], 0, 16)}, bytes(16)),
    "complex dtype": with_header({"w": tensor("C64", [2], 0, 16)}, bytes(16)),
    "overlap": with_header(
        {"a": tensor("F32", [4], 0, 16), "b": tensor("F32", [4], 8, 24)}, bytes(24)
    ),
    "same place": with_header(
        {"a": tensor("F32", [4], 0, 16), "b": tensor("F32", [4], 0, 16)}, bytes(16)
    ),
    "gap": with_header({"a": tensor("F32", [4], 8, 24)}, bytes(24)),
    "shape and offsets disagree": with_header({"w": tensor("F32", [5], 0, 16)}, bytes(16)),
    "begin after end": with_header({"w": tensor("F32", [4], 16, 0)}, bytes(16)),
    "negative offset": with_header({"w": tensor("F32", [4], -16, 0)}, bytes(16)),
    "negative size": with_header({"w": tensor("F32", [-4], 0, 16)}, bytes(16)),
    "size overflow": with_header({"w": tensor("F32", [2**62, 2**62], 0, 16)}, bytes(16)),
    "offsets past the end": with_header({"w": tensor("F32", [4], 64, 80)}, bytes(16)),
    "a fraction": with_header({"w": tensor("F32", [4], 0, 16) | {"shape": [4.5]}}, bytes(16)),
}


def test_the_case_they_are_made_from_is_good(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(WHOLE)
    entry = open_checkpoint(tmp_path).tensors["w"]
    assert (entry.dtype, entry.shape, entry.nbytes) == ("F32", (4,), 16)
    assert entry.offset == 8 + len(json.dumps(GOOD))


@pytest.mark.parametrize("case", CASES)
def test_corrupt(tmp_path: Path, case: str) -> None:
    (tmp_path / SINGLE).write_bytes(CASES[case])
    with pytest.raises(InputError, match=re.escape(str(tmp_path / SINGLE))) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def refusal(path: Path) -> str:
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        header_of(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_header_in_all_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    described = {
        "__metadata__": {"format": "pt"},
        "b": tensor("BF16", [2, 3], 16, 28),
        "a": tensor("F32", [4], 0, 16),
        "c": tensor("F32", [0, 7], 28, 28),
    }
    path.write_bytes(with_header(described, bytes(28), pad=3))
    header = header_of(path)
    start = path.stat().st_size - 28
    assert [(e.name, e.dtype, e.shape, e.offset - start, e.nbytes) for e in header.entries] == [
        ("a", "F32", (4,), 0, 16),
        ("b", "BF16", (2, 3), 16, 12),
        ("c", "F32", (0, 7), 28, 0),
    ]
    assert header.metadata == {"format": "pt"}
    assert read_header(path) == (header.shard, list(header.entries))
    text = path.read_bytes()[8:start]
    assert header.shard.header_sha256 == hashlib.sha256(text).hexdigest()
    info = path.stat()
    assert (header.shard.path, header.shard.size) == (path, info.st_size)
    assert header.shard.stamp == (
        info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns,
    )  # fmt: skip


# ---- what is no file, and what would cost much --------------------------------------------------


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A FIFO that nobody writes to would block whoever opened it as a file."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    with listening:
        assert refusal(tmp_path / "socket") == "expected a regular file, found a socket"
    assert refusal(tmp_path / "fifo") == "expected a regular file, found a FIFO"
    assert refusal(tmp_path / "link") == "expected a regular file, found a FIFO"
    assert refusal(tmp_path / "folder") == "expected a regular file, found a folder"
    assert refusal(Path("/dev/zero")) == "expected a regular file, found a device"
    assert refusal(tmp_path / "gone") == "cannot be read: No such file or directory"


def test_a_length_beyond_what_the_library_takes(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(path, 200_000_000)
    assert refusal(path) == (
        "not a safetensors file: expected a header of 2 to 100000000 bytes within its 200000000, "
        "found 100000001"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{" + b"[" * (1 << 22), "header: expected at most 4194304 marks in the JSON"),
        (b'{"":[' + b"0," * (1 << 22), "header: expected at most 4194304 marks in the JSON"),
        ('{"é'.encode() + b" " * 25_000_000, "header: expected at most 25000000 bytes of JSON"),
    ],
    ids=["nested", "numbers", "wide text"],
)
def test_a_header_that_would_cost_much(tmp_path: Path, text: bytes, message: str) -> None:
    """Refused by counting, before anything is made of it."""
    path = tmp_path / "dear"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    tracemalloc.start()
    assert refusal(path).startswith(message)
    assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    tracemalloc.stop()


def test_as_many_tensors_as_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relex_ext.headers.MOST_TENSORS", 3)
    described = {str(i): tensor("U8", [1], i, i + 1) for i in range(4)}
    with pytest.raises(ValueError, match="expected at most 3 tensors, found 4"):
        parse(json.dumps(described).encode(), 4)
    del described["3"]
    assert len(parse(json.dumps(described).encode(), 3)[0]) == 3


# ---- the library's verdict ----------------------------------------------------------------------


def test_the_library_sees_the_very_bytes() -> None:
    """Of however much data, none of which exists."""
    text = json.dumps({"w": tensor("F32", [1 << 40], 0, 1 << 42)}).encode()
    judge(text, 1 << 42)
    with pytest.raises(ValueError, match="not readable as safetensors: "):
        judge(text, (1 << 42) + 1)


def test_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(WHOLE)
    (tmp_path / "bad").write_bytes(WHOLE[:-1])
    before = len(list(Path("/proc/self/fd").iterdir()))
    header_of(tmp_path / "good")
    refusal(tmp_path / "bad")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ---- a file that changes later ------------------------------------------------------------------


def replaced(path: Path) -> None:
    """By a copy of itself, with its times."""
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def rewritten(path: Path) -> None:
    """In place, and its time set back: only the change time can tell."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # a clock that ticks a few times a second
        path.write_bytes(WHOLE)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (lambda p: p.unlink(), "gone while it was read: No such file or directory"),
    "replaced": (replaced, "changed while it was read: its inode was "),
    "longer": (
        lambda p: p.write_bytes(WHOLE + b"x"),
        f"its size was {len(WHOLE)}, is {len(WHOLE) + 1}",
    ),
    "touched": (lambda p: os.utime(p, ns=(0, 5)), "its modification time was [0-9]*, is 5"),
    "rewritten": (rewritten, "its change time was "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen_and_named(tmp_path: Path, change: str) -> None:
    spoil, message = CHANGES[change]
    paths = [tmp_path / "first", tmp_path / "second"]
    for path in paths:
        path.write_bytes(WHOLE)
    shards = [header_of(path).shard for path in paths]
    check_unchanged(shards)
    spoil(paths[1])
    check_unchanged(shards[:1])
    with pytest.raises(InputError, match=f"^{re.escape(str(paths[1]))}: .*{message}"):
        check_unchanged(shards)


def test_a_shard_is_the_same_whatever_its_stamp(tmp_path: Path) -> None:
    """It is a key of what was opened, and two readings of one file have to find each other."""
    path = tmp_path / "x"
    path.write_bytes(WHOLE)
    first = header_of(path).shard
    rewritten(path)
    second = header_of(path).shard
    assert first.stamp != second.stamp
    assert (first, hash(first)) == (second, hash(second))
