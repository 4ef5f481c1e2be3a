"""A run that ended early goes on where it stopped, and ends with the bytes of one that did not."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folders import MODEL, SHARDS, RunFolder, Spec, digest, listing, make_run, published
from relex_ext import InputError, OutputError, Scan, Weights, combine, extrapolate, scan
from relex_ext.errors import Interrupted, ReadError
from relex_ext.journal import Journal
from relex_ext.output import Output
from relex_ext.scanfile import ScanFile
from relex_ext.workspace import workspace_of

MODEL_ = {**MODEL, "model.big": Spec((3, 70_001))}
TRAINED = [name for name, spec in MODEL_.items() if spec.kind != "integer"]
WRITTEN = [name for name in TRAINED if 0 not in MODEL_[name].shape]

Command = Callable[[Path], object]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    shards = (*SHARDS, ("model.big",))
    return make_run(tmp_path_factory.mktemp("resume"), model=MODEL_, shards=shards)


def commands(run: RunFolder) -> dict[str, Command]:
    def forecast(out: Path, **options: Any) -> object:
        given = {"progress": False, **options}
        return extrapolate(run.base, run.checkpoints, [100, 62.5], out, **given)

    weights = {name: np.array([[0.5, 0, 0, 0, 0.5], [0, 0, 1, 0, 0]]) for name in TRAINED}
    given = Weights(run.steps, (1.0, 2.0), weights, {})
    return {
        "extrapolate": forecast,
        "power": lambda out: forecast(out, solver="power", rank=2),
        "two passes": lambda out: forecast(out, memory_limit="3MiB"),
        "auto": lambda out: forecast(out, strength="auto"),
        "secant": lambda out: forecast(out, method="secant"),
        "combine": lambda out: combine(run.base, run.checkpoints, given, out, progress=False),
        "scan": lambda out: scan(run.base, run.checkpoints, out=out, progress=False),
    }


def made(out: Path) -> dict[str, str]:
    return digest(out) if out.is_dir() else digest(out.parent)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    """End the run when the journal has so many entries, before the next is made."""
    real, turn = Journal.add, itertools.count()

    def add(self: Journal, *entry: Any) -> None:
        if next(turn) >= after:
            raise error
        real(self, *entry)

    monkeypatch.setattr(Journal, "add", add)


@pytest.mark.parametrize(
    "command", ["extrapolate", "power", "two passes", "auto", "secant", "combine", "scan"]
)
def test_goes_on_from_every_entry(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    go = commands(run)[command]
    (tmp_path / "whole").mkdir()
    go(tmp_path / "whole" / "out")
    expected = made(tmp_path / "whole" / "out")
    entries = {"scan": len(TRAINED), "secant": len(WRITTEN), "combine": len(WRITTEN)}
    count = entries.get(command, len(TRAINED) + len(WRITTEN))
    for after in range(count + 1):
        place = tmp_path / str(after)
        place.mkdir()
        with monkeypatch.context() as patch:
            interrupt(patch, after, KeyboardInterrupt())
            if after == count:
                go(place / "out")
            else:
                with pytest.raises(KeyboardInterrupt) as caught:
                    go(place / "out")
                assert isinstance(caught.value, Interrupted) is (after > 0)
                assert published(place) == []
                assert (listing(place) == []) is (after == 0)
                go_on(patch, go, place / "out", after)
        assert made(place / "out") == expected
        assert listing(place) == listing(tmp_path / "whole")


def go_on(patch: pytest.MonkeyPatch, go: Command, out: Path, done: int) -> None:
    """Run again; nothing that the journal names is done again."""
    patch.undo()
    journal = workspace_of(out) / "journal"
    before = journal.read_text().count('"what"') if done else 0
    assert before == done
    entries: list[tuple[str, str]] = []
    real = Journal.add

    def add(self: Journal, what: str, name: str, digests: Any) -> None:
        entries.append((what, name))
        assert (what, name) not in self.done
        real(self, what, name, digests)

    patch.setattr(Journal, "add", add)
    go(out)
    assert len(set(entries)) == len(entries)


def test_finished_tensors_are_not_read_again(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bytes_read: Callable[[], int],
) -> None:
    go = commands(run)["extrapolate"]
    with monkeypatch.context() as patch:
        interrupt(patch, len(TRAINED) + len(WRITTEN) - 1, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            go(tmp_path / "out")
    strips = 6 * 2 * 3 * 70_001
    before = bytes_read()
    extrapolate(run.base, run.checkpoints, [100, 62.5], tmp_path / "out", io="pread",
                progress=False)  # fmt: skip
    first = bytes_read() - before
    assert first < 1.6 * strips, "the last tensor, and what was written, to be hashed"


@pytest.mark.parametrize("what", ["output/step_100/*.safetensors", "output/scan.safetensors"])
def test_damaged_work_is_done_again(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """As a power cut leaves it: the journal says more than the disk has."""
    go = commands(run)["extrapolate"]
    go(tmp_path / "whole")
    expected = digest(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, len(TRAINED) + len(WRITTEN) - 1, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            go(tmp_path / "out")
    for path in workspace_of(tmp_path / "out").glob(what):
        data = bytearray(path.read_bytes())
        data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
        path.write_bytes(data)
    go(tmp_path / "out")
    assert digest(tmp_path / "out") == expected


@pytest.mark.parametrize("what", ["missing", "short", "long", "link"])
def test_a_file_of_the_unfinished_output_that_is_gone(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    go = commands(run)["extrapolate"]
    go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, 8, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            go(tmp_path / "out")
    path = sorted(workspace_of(tmp_path / "out").glob("output/step_100/*.safetensors"))[0]
    data = path.read_bytes()
    path.unlink()
    if what == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match="Too many levels of symbolic links"):
            go(tmp_path / "out")
        assert (tmp_path / "elsewhere").read_bytes() == data
    elif what != "missing":
        path.write_bytes(data[:-1] if what == "short" else data + b"x")
    go(tmp_path / "out")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_changed_inputs_begin_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt(patch, 6, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            extrapolate(run.base, run.checkpoints, 100, tmp_path / "out", progress=False)
    shard = run.folder(20) / "model.safetensors"
    shard.write_bytes(shard.read_bytes())
    os.utime(shard, ns=(1, 1))
    with caplog.at_level("INFO", "relex_ext"):
        extrapolate(run.base, run.checkpoints, 100, tmp_path / "out", progress=False)
    assert "begins afresh; the unfinished run there was another: inputs: 20 was" in caplog.text
    extrapolate(run.base, run.checkpoints, 100, tmp_path / "whole", progress=False)
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_other_options_begin_afresh(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 6, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            commands(run)["extrapolate"](tmp_path / "out")
    with caplog.at_level("INFO", "relex_ext"):
        extrapolate(
            run.base, run.checkpoints, [100, 62.5], tmp_path / "out", rank=2, progress=False
        )
    assert "the unfinished run there was another: options: rank was 1, is 2" in caplog.text
    assert json.loads((tmp_path / "out" / "relex.json").read_text())["options"]["rank"] == 2


def test_other_threads_and_memory_go_on(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"solver": "gram", "progress": False}
    extrapolate(run.base, run.checkpoints, 100, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupt(patch, 9, KeyboardInterrupt())
        with pytest.raises(Interrupted):
            extrapolate(run.base, run.checkpoints, 100, tmp_path / "out", threads=2, **options)
    with caplog.at_level("INFO", "relex_ext"):
        extrapolate(
            run.base, run.checkpoints, 100, tmp_path / "out", threads=1, io="pread",
            memory_limit="3MiB", **options,
        )  # fmt: skip
    assert "an unfinished run goes on: 4 of 9 tensors are written" in caplog.text
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_a_disk_that_fails_to_read_keeps_the_work(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relex_ext import _core

    real, turn = _core.read, itertools.count()

    def failing(*args: Any) -> tuple[int, int]:
        return real(*args) if next(turn) < 4 else (2, 5)

    with monkeypatch.context() as patch:
        patch.setattr(_core, "read", failing)
        with pytest.raises(ReadError, match="Input/output error"):
            extrapolate(
                run.base, run.checkpoints, 100, tmp_path / "out", io="pread", progress=False
            )
    assert published(tmp_path) == []
    assert (workspace_of(tmp_path / "out") / "journal").is_file()
    extrapolate(run.base, run.checkpoints, 100, tmp_path / "out", progress=False)
    extrapolate(run.base, run.checkpoints, 100, tmp_path / "whole", progress=False)
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_fails_to_write_loses_it(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """After an error of fsync nobody knows which pages are on the disk."""
    real, turn = getattr(os, call), itertools.count()
    count = 0

    def failing(*args: Any) -> Any:
        nonlocal count
        count += 1
        if next(turn) == 12:
            raise OSError(5, "Input/output error")
        return real(*args)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OutputError, match="cannot be written: Input/output error"):
        commands(run)["extrapolate"](tmp_path / "out")
    assert count >= 13
    assert listing(tmp_path) == []


def test_inputs_that_change_meanwhile_are_found_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    shard = run.folder(20) / "model.safetensors"
    real = Output.complete

    def complete(self: Output, *args: Any) -> Any:
        with shard.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"?")
        return real(self, *args)

    monkeypatch.setattr(Output, "complete", complete)
    with pytest.raises(InputError, match=r"checkpoint-20.*changed while it was read"):
        extrapolate(run.base, run.checkpoints, 100, tmp_path / "out", progress=False)
    assert listing(tmp_path) == ["run", *(f"run/{name}" for name in listing(tmp_path / "run"))]


def test_a_scan_that_is_damaged_is_refused(run: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "scan"
    kept = scan(run.base, run.checkpoints, out=path, progress=False)
    kept.save(tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "again").read_bytes()
    data = bytearray(path.read_bytes())
    for at in (len(data) - 1, len(data) - 400, len(data) // 2):
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a damaged scan file: .*its digest is another"):
            Scan.load(path)
        data[at] ^= 1
    path.write_bytes(data)
    assert Scan.load(path).names == kept.names


def test_a_second_run_is_told(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = commands(run)["extrapolate"]
    real = ScanFile.complete
    told = []

    def complete(self: ScanFile) -> None:
        with pytest.raises(OutputError, match="another relex is writing it") as caught:
            go(tmp_path / "out")
        told.append(caught.value)
        real(self)

    monkeypatch.setattr(ScanFile, "complete", complete)
    go(tmp_path / "out")
    assert len(told) == 1
