"""Calls that fail, are cut short or interrupted, full disks: a sample of ``python -m faults``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from faults.model import Disk
from faults.sampling import TESTS, disturbed
from faults.scenarios import BENCHES
from faults.shim import build, entries_of, preload
from faults.trees import read_tree
from test_cli import environment

EVERYTHING = """
import fcntl, mmap, os, sys
from pathlib import Path
from faults.shim import Shim
from relex_ext import _core

root, record = map(Path, sys.argv[1:])
shim = Shim(root)
shim.record(record, data=True)
with shim.watching():
    (root / "work/a").mkdir()
    one = os.open(root / "work/a/one", os.O_RDWR | os.O_CREAT)
    fcntl.flock(one, fcntl.LOCK_EX)
    _core.reserve(one, 3000)
    os.posix_fallocate(one, 2000, 2000)
    os.pwrite(one, b"x" * 700, 300)
    os.write(one, b"y" * 10)
    os.write(one, b"z" * 10)
    _core.finish_writeback(one, 0, 700)
    os.fdatasync(one)
    os.pread(one, 5, 0)
    os.read(one, 5)
    os.ftruncate(one, 900)
    os.fsync(one)
    with mmap.mmap(one, 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_WILLNEED)
        mapped.madvise(mmap.MADV_DONTNEED)
    os.close(one)
    folder = os.open(root / "work", os.O_RDONLY)
    two = os.open("two", os.O_WRONLY | os.O_CREAT, dir_fd=folder)
    other = os.dup(two)
    os.close(two)
    os.write(other, b"two")
    os.close(other)
    os.link(root / "work/two", root / "work/three")
    os.rename("two", "a/two", src_dir_fd=folder, dst_dir_fd=folder)
    (root / "work/b").mkdir()
    (root / "work/b/inner").write_bytes(b"inner")
    _core.exchange(str(root / "work/a"), str(root / "work/b"))
    os.mkdir("c", dir_fd=folder)
    os.rmdir("c", dir_fd=folder)
    (root / "work/d").mkdir()
    (root / "work/d").rmdir()
    (root / "work/a/inner").replace(root / "work/a/renamed")
    with (root / "work/b/one").open("ab") as file:
        file.write(b"behind")
    (root / "work/b/two").write_bytes(b"new")
    (root / "work/three").unlink()
    os.unlink("b/two", dir_fd=folder)
    os.close(folder)
"""
"""Every call there is, by paths, folders' descriptors and copies of descriptors."""


def test_every_call_is_seen(tmp_path: Path) -> None:
    root, record = tmp_path / "root", tmp_path / "record"
    (root / "work").mkdir(parents=True)
    library = build(tmp_path)
    subprocess.run(
        [sys.executable, "-c", EVERYTHING, str(root), str(record)],
        env={**environment(), **preload(library)},
        cwd=TESTS,
        check=True,
    )
    entries = entries_of(record)
    assert {entry.op for entry in entries} == {
        "announce", "close", "create", "exchange", "fallocate", "fdatasync", "flock", "fsync",
        "ftruncate", "link", "mkdir", "mmap", "open", "pread", "pwrite", "read", "release",
        "rename", "rmdir", "sync_file_range", "unlink", "write",
    }  # fmt: skip
    disk = Disk({"work": None})
    for entry in entries:
        disk.apply(entry)
    assert disk.everything() == read_tree(root)


def test_faults(tmp_path: Path) -> None:
    rows = disturbed(tmp_path, "inject", "--every", "80")
    assert len(rows) == len(BENCHES)
    assert all(row["calls"] > 70 for row in rows)
    for row in rows:
        assert row["returned"] + row["refused"] == row["cases"] > row["calls"] / 25
        assert row["returned"] > 0 and row["refused"] > 0
        assert row["not reached"] <= 0.02 * row["cases"] + 1
