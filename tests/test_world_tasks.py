"""Tasks that share nothing but the file system: in any order, at once, again after a death."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import children
from folders import digest, listing, published
from relex_ext import InputError, OutputError, extrapolate
from relex_ext.errors import Unfinished
from relex_ext.journal import Journal
from relex_ext.workspace import Workspace, workspace_of
from relex_ext.world import World
from relex_ext.world.tasks import Tasks
from worlds import JOBS, SPAN, Inputs, make_inputs

APART = ("one pass", "power", "secant", "cached", "carried", "combine", "scan")
"""What can be done without a word."""

DIE = """
import os, signal, sys
from pathlib import Path
from relex_ext.journal import Journal
from relex_ext.world.tasks import Tasks
from worlds import JOBS, SPAN, inputs_in
root, out, rank, size, entries = sys.argv[1:]
add, left = Journal.add, int(entries)
def dying(self, *entry):
    global left
    left -= 1
    if left == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, *entry)
Journal.add = dying
from relex_ext.errors import Unfinished
try:
    JOBS["one pass"](inputs_in(Path(root)), Path(out), Tasks(int(rank), int(size), SPAN))
    print("published")
except Unfinished as rest:
    print(rest)
"""
"""One task, which is killed before its journal has so many entries; −1: never."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def inputs(root: Path) -> Inputs:
    return make_inputs(root)


@pytest.fixture(scope="module")
def expected(root: Path, inputs: Inputs) -> Callable[[str], dict[str, str]]:
    """What one process makes."""

    def made(name: str) -> dict[str, str]:
        out = root / "alone" / name
        if not out.exists():
            out.mkdir(parents=True)
            JOBS[name](inputs, out, World(SPAN))
        return digest(out)

    return made


def task(inputs: Inputs, out: Path, rank: int, size: int, name: str = "one pass") -> str | None:
    """What it says of the others; None if it has published."""
    try:
        JOBS[name](inputs, out, Tasks(rank, size, SPAN))
    except Unfinished as rest:
        return str(rest)
    return None


@pytest.mark.parametrize("name", APART)
def test_the_bytes_of_one_process(
    inputs: Inputs, expected: Callable[[str], dict[str, str]], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    said = [task(inputs, out, rank, 3, name) for rank in (2, 0, 1)]
    place = out / "scan" if name == "scan" else out
    assert said == [
        f"{place}: part 2/3 is done, 1 of 3 are; to be done: 0, 1",
        f"{place}: part 0/3 is done, 2 of 3 are; to be done: 1",
        None,
    ]
    assert digest(out) == expected(name)
    assert [n for n in listing(tmp_path) if ".partial" in n] == []


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_order(
    inputs: Inputs, expected: Callable[[str], dict[str, str]], tmp_path: Path, order: Any
) -> None:
    said = [task(inputs, tmp_path / "out", rank, 3) for rank in order]
    assert [one is None for one in said] == [False, False, True]
    assert digest(tmp_path / "out") == expected("one pass")


def test_more_tasks_than_tensors(
    inputs: Inputs, expected: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    said = [task(inputs, tmp_path / "out", rank, 15) for rank in range(15)]
    assert [one is None for one in said] == [False] * 14 + [True]
    assert digest(tmp_path / "out") == expected("one pass")


@pytest.mark.parametrize("entries", [0, 2])
def test_at_once_and_one_again(
    inputs: Inputs,
    root: Path,
    expected: Callable[[str], dict[str, str]],
    tmp_path: Path,
    entries: int,
) -> None:
    out = tmp_path / "out"
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                children.start(DIE, root, out, rank, 4, entries if rank == 2 else -1)
            )
            for rank in range(4)
        ]
        said = [process.communicate(timeout=100) for process in processes]
    assert [p.returncode for p in processes] == [0, 0, -signal.SIGKILL, 0]
    assert all("part" in said[rank][0] for rank in (0, 1, 3))
    assert published(tmp_path) == []
    assert task(inputs, out, 1, 4) == f"{out}: part 1/4 is done, 3 of 4 are; to be done: 2"
    assert task(inputs, out, 2, 4) is None
    assert digest(out) == expected("one pass")
    assert [n for n in listing(tmp_path) if ".partial" in n] == []


def test_two_that_end_together_publish_once(
    inputs: Inputs, root: Path, expected: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(children.start(DIE, root, tmp_path / "out", rank, 4, -1))
            for rank in range(4)
        ]
        said = [process.communicate(timeout=100) for process in processes]
    assert [p.returncode for p in processes] == [0] * 4, said
    assert [out.strip() == "published" for out, _ in said].count(True) == 1
    assert digest(tmp_path / "out") == expected("one pass")


def test_another_number_goes_on(
    inputs: Inputs, expected: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    for rank in (0, 1, 2):
        task(inputs, tmp_path / "two", rank, 4)
        task(inputs, tmp_path / "one", rank, 4)
    assert task(inputs, tmp_path / "two", 0, 2) is not None
    assert task(inputs, tmp_path / "two", 1, 2) is None
    journal = workspace_of(tmp_path / "one") / "journal.2"
    assert journal.read_text().count('"written"') > 0
    JOBS["one pass"](inputs, tmp_path / "one", World(SPAN))
    for name in ("one", "two"):
        assert digest(tmp_path / name) == expected("one pass")


def test_what_a_dead_task_noted_is_looked_at(
    inputs: Inputs, root: Path, expected: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    """As a power cut leaves it: its journal says more than the disk has."""
    out = tmp_path / "out"
    assert children.run(DIE, root, out, 0, 2, 6)[0] == -signal.SIGKILL
    for path in workspace_of(out).glob("output/step_*/*.safetensors"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(data)
    assert task(inputs, out, 1, 2) is not None
    assert task(inputs, out, 0, 2) is None
    assert digest(out) == expected("one pass")


def test_an_interrupted_task_goes_on(
    inputs: Inputs,
    expected: Callable[[str], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turn, add = itertools.count(), Journal.add

    def interrupted(self: Journal, *entry: Any) -> None:
        if next(turn) >= 4:
            raise KeyboardInterrupt
        add(self, *entry)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            task(inputs, tmp_path / "out", 0, 2)
    assert task(inputs, tmp_path / "out", 0, 2) is not None
    assert task(inputs, tmp_path / "out", 1, 2) is None
    assert digest(tmp_path / "out") == expected("one pass")


# ---- refusals ----------------------------------------------------------------------------------


def test_bad_input(inputs: Inputs, tmp_path: Path) -> None:
    """Tells the task that meets it, and leaves what others have done."""
    run = inputs.spoilt

    def go(rank: int, out: Path, **options: Any) -> str:
        with pytest.raises((InputError, Unfinished)) as caught:
            extrapolate(
                run.base, run.checkpoints, 300, out, world=Tasks(rank, 2, SPAN),
                progress=False, **options,
            )  # fmt: skip
        return str(caught.value)

    said = [go(rank, tmp_path / "spoilt") for rank in (0, 1)]
    spoilt = ["3 NaN or Inf in step 40" in line for line in said]
    assert sorted(spoilt) == [False, True]
    assert f"part {spoilt.index(False)}/2 is done, 1 of 2 are" in said[spoilt.index(False)]
    assert not (workspace_of(tmp_path / "spoilt") / f"journal.{spoilt.index(True)}").exists()
    assert published(tmp_path) == []
    assert "no checkpoint of step 35" in go(0, tmp_path / "missing", steps=[10, 35])
    assert "3 NaN or Inf" in go(spoilt.index(True), tmp_path / "first")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".spoilt.partial"]


def test_auto_needs_a_scan_first(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"strength: auto looks at all tensors .* --scan"):
        task(inputs, tmp_path / "out", 0, 2, "auto")
    assert listing(tmp_path) == []


def test_it_keeps_others_out(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def workspace(world: World, job: str = "this") -> Workspace:
        return world.workspace(out, {"job": job}, lambda: None)

    with pytest.raises(Unfinished), workspace(Tasks(0, 2)) as first:
        first.begun()
        refusals = {
            "another relex is writing it": workspace(World()),
            "part 0/2: another relex is at work on it": workspace(Tasks(0, 2)),
            "other tasks are at work on something else: job was": workspace(Tasks(1, 2), "that"),
        }
        for line, other in refusals.items():
            with pytest.raises(OutputError, match=line), other:
                pass
        line = "part 1/2 is done, 1 of 2 are; to be done: 0"
        with pytest.raises(Unfinished, match=line), workspace(Tasks(1, 2)) as second:
            second.begun()
            second.ended()
        raise Unfinished
    assert (workspace_of(out) / "journal.1").exists()


def test_published_already(inputs: Inputs, tmp_path: Path) -> None:
    for rank in (0, 1):
        task(inputs, tmp_path / "out", rank, 2)
    before = digest(tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        task(inputs, tmp_path / "out", 0, 2)
    assert digest(tmp_path) == before
    assert listing(tmp_path).count(".out.partial") == 0


def test_the_command(inputs: Inputs, tmp_path: Path) -> None:
    code = "import sys; from relex_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    run, out = inputs.run, tmp_path / "scan"
    arguments = ["scan", "--base", run.base, "--checkpoints", run.checkpoints, "--out", out]
    said = [
        children.run(code, *arguments, "--quiet", "--world-rank", rank, "--world-size", 2)
        for rank in (0, 1)
    ]
    assert [status for status, _, _ in said] == [0, 0]
    assert said[0][2] == f"relex: {out}: part 0/2 is done, 1 of 2 are; to be done: 1\n"
    assert out.is_file() and listing(tmp_path) == ["scan"]
