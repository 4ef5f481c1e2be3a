"""Power cuts: the model of a disk, and a sample of ``python -m faults``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from faults.model import BLOCK, Disk
from faults.sampling import disturbed
from faults.scenarios import BENCHES
from faults.shim import Entry
from faults.trees import Tree

HELLO = Entry("write", "a", "", 5, 0, 0, b"hello")


def done(op: str, path: str, other: str = "", offset: int = 0, length: int = 0) -> Entry:
    return Entry(op, path, other, 0, offset, length, b"")


def disk(entries: Sequence[Entry], tree: Tree | None = None) -> Disk:
    found = Disk(tree or {})
    for entry in entries:
        found.apply(entry)
    return found


NEW = (done("create", "a"), HELLO)


def test_nothing_is_durable_by_itself() -> None:
    found = disk(NEW)
    assert found.durable() == {}
    assert found.everything() == {"a": b"hello"}
    assert found.names_only(zeros=True) == {"a": bytes(5)}
    assert found.names_only(zeros=False) == {"a": b""}


def test_a_file_needs_its_name() -> None:
    assert disk((*NEW, done("fsync", "a"))).durable() == {}
    assert disk((*NEW, done("fsync", "a"))).names_only(zeros=True) == {"a": b"hello"}


def test_a_name_needs_its_bytes() -> None:
    """What a rename without fsync is known for."""
    found = disk((*NEW, done("rename", "a", "b"), done("fsync", "")), {"b": b"old"})
    assert found.durable() == {"b": b""}
    assert disk((*NEW, done("fdatasync", "a"), done("fsync", ""))).durable() == {"a": b"hello"}


def test_sync_file_range_promises_nothing() -> None:
    assert disk((*NEW, done("sync_file_range", "a"), done("fsync", ""))).durable() == {"a": b""}


def test_a_rename_is_one_step() -> None:
    """The new name's folder makes both names durable, and what came before on them."""
    tree: Tree = {"x": None, "y": None}
    entries = (done("create", "x/a"), done("rename", "x/a", "y/b"))
    assert disk((*entries, done("fsync", "y")), tree).durable() == {**tree, "y/b": b""}
    assert disk((*entries, done("fsync", "x")), tree).durable() == {**tree, "x/a": b""}
    exchanged = disk((done("exchange", "x/a", "b"),), {"x": None, "x/a": b"1", "b": b"2"})
    assert exchanged.durable() == {"x": None, "x/a": b"1", "b": b"2"}
    assert exchanged.everything() == {"x": None, "x/a": b"2", "b": b"1"}


def test_folders_are_reached_by_name() -> None:
    entries = (done("mkdir", "x"), done("create", "x/a"), done("fsync", "x"))
    assert disk(entries).durable() == {}
    assert disk((*entries, done("fsync", ""))).durable() == {"x": None, "x/a": b""}


def test_blocks_come_singly() -> None:
    old, new = b"o" * 3 * BLOCK, b"n" * 3 * BLOCK
    found = disk((Entry("pwrite", "a", "", len(new), 0, 0, new),), {"a": old})
    chance = random.Random(0)
    seen = {found.by_chance(chance, ordered=True)["a"] for _ in range(200)}
    blocks = {tuple(data[i * BLOCK : i * BLOCK + 1] for i in range(3)) for data in seen if data}
    assert len(seen) == len(blocks) == 8


def test_steps_come_in_order_or_not() -> None:
    found = disk((done("create", "a"), done("create", "b"), done("rename", "b", "c")))
    chance = random.Random(0)
    ordered = {tuple(found.by_chance(chance, ordered=True)) for _ in range(100)}
    assert ordered == {(), ("a",), ("a", "b"), ("a", "c")}
    free = {tuple(found.by_chance(chance, ordered=False)) for _ in range(100)}
    assert free == {*ordered, ("b",), ("c",)}


def test_what_the_model_does_not_know() -> None:
    with pytest.raises(KeyError, match="fallocate mode"):
        disk((*NEW, done("fallocate mode", "a")))


def test_power_cuts(tmp_path: Path) -> None:
    rows = disturbed(tmp_path, "power-loss", "--every", "60")
    assert len(rows) == len(BENCHES)
    assert all(row["calls"] > 20 and row["states"] >= 3 for row in rows)
