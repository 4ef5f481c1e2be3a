"""Files written piece by piece: short writes, late failures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from folders import Spec, listing, make_run
from relex_ext import extrapolate
from relex_ext.layout import SizedFile, lay_out, remove_tree


def test_a_file_written_out_of_order(tmp_path: Path) -> None:
    tensors = [("a", "U8", (5,), 5), ("b", "U8", (0,), 0), ("ü", "U8", (3,), 3)]
    layout = lay_out(tensors, {"format": "pt"})
    assert len(layout.header) % 8 == 0
    file = SizedFile(tmp_path / "f", layout)
    file.write(layout.offsets["ü"], b"xyz")
    file.write(layout.offsets["a"] + 2, b"345")
    file.write(layout.offsets["a"], b"12")
    file.close()
    assert (tmp_path / "f").stat().st_size == layout.size
    with safe_open(tmp_path / "f", framework="numpy") as found:
        assert found.metadata() == {"format": "pt"}
        assert found.get_tensor("a").tobytes() == b"12345"
        assert found.get_tensor("ü").tobytes() == b"xyz"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    layout = lay_out([("a", "U8", (100,), 100)], {})
    file = SizedFile(tmp_path / "f", layout)
    file.write(layout.offsets["a"], bytes(range(100)))
    file.close()
    assert (tmp_path / "f").read_bytes() == layout.header + bytes(range(100))


@pytest.mark.parametrize("fails_at", [5, 9])
def test_a_write_that_fails_late_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """On the writing thread, in the middle of a tensor of many windows."""
    run = make_run(tmp_path, steps=(1, 2), model={"w": Spec((900_001,))})
    before = listing(tmp_path)
    calls = 0
    real = SizedFile.write

    def write(self: SizedFile, offset: int, data: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(28, "No space left on device")
        real(self, offset, data)

    monkeypatch.setattr(SizedFile, "write", write)
    with pytest.raises(OSError, match="No space left"):
        extrapolate(
            run.base, run.checkpoints, 9, tmp_path / "out",
            memory_limit="3MiB", solver="gram", progress=False,
        )  # fmt: skip
    assert calls >= fails_at
    assert listing(tmp_path) == before


def test_ctrl_c_while_a_folder_is_removed_stays_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where shutil has just closed a folder and would close it again."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    real = os.close

    def close(descriptor: int) -> None:
        real(descriptor)
        monkeypatch.setattr(os, "close", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", close)
    with pytest.raises(KeyboardInterrupt):
        remove_tree(tmp_path / "a")
