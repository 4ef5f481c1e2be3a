"""A search that is killed, at any point, and taken up again ends as one that was not."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from folders import RunFolder, digest
from relex_ext import InputError, OutputError, search
from relex_ext.searches.place import PASS, STATE
from searches import arguments, calls, command, make_search, mode, most_models, relex
from test_cli import environment

KILLER = """
import os, shutil, signal, sys
from pathlib import Path
from relex_ext.cli import main

left = int(sys.argv.pop(1))

def deadly(function):
    def call(*args, **options):
        global left
        left -= 1
        if left == 0:
            if function is rmtree:  # half of it
                for path in sorted(Path(args[0]).rglob("*.json")):
                    path.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

rmtree = shutil.rmtree
shutil.rmtree = deadly(rmtree)
Path.rename = deadly(Path.rename)
Path.replace = deadly(Path.replace)
sys.exit(main(sys.argv[1:]))
"""
"""The command line, which is killed before it renames or removes for the n-th time."""

OPTIONS = ("-q", "--evaluations", 8, "--per-pass", 3)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_search(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "found"


def contents(out: Path) -> dict[str, str]:
    return {k: v for k, v in digest(out).items() if not k.startswith("logs/")}


def undisturbed(run: RunFolder, out: Path, *more: object) -> dict[str, str]:
    """What is in ``out`` after a search that nothing happens to; it is removed again."""
    done = relex(arguments(run, *OPTIONS, *more))
    assert (done.returncode, done.stderr) == (0, "")
    expected = contents(out)
    shutil.rmtree(out)
    for name in ("calls", "models"):
        (out.parent / name).unlink()
    return expected


@pytest.mark.parametrize("keep", ["best", "all"])
@pytest.mark.parametrize("every", [4, 5, 6, 9])
def test_killed_again_and_again(run: RunFolder, out: Path, every: int, keep: str) -> None:
    expected = undisturbed(run, out, "--keep", keep)
    line = [sys.executable, "-c", KILLER, str(every), *arguments(run, *OPTIONS, "--keep", keep)]
    kills = 0
    while True:
        done = subprocess.run(
            line, env=environment(), capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        assert kills < 40
    assert kills >= 3
    assert contents(out) == expected
    if keep == "best":
        assert most_models(run) <= 5


@pytest.mark.parametrize("at", [1, 2, 4, 6, 8])
def test_killed_while_a_model_is_evaluated(run: RunFolder, out: Path, at: int) -> None:
    expected = undisturbed(run, out)
    mode(run, f"kill {at}")
    assert relex(arguments(run, *OPTIONS)).returncode == -signal.SIGKILL
    mode(run, "peak 140")
    done = relex(arguments(run, *OPTIONS))
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(out) == expected
    assert len(calls(run)) == 9, "only the evaluation that was killed is repeated"


def test_forecasts_written_before_a_kill_are_used(run: RunFolder, out: Path) -> None:
    mode(run, "fail 3")
    assert relex(arguments(run, *OPTIONS)).returncode == 2
    waiting = [folder for folder in (out / PASS).iterdir() if folder.is_dir()]
    inodes = {folder.name: folder.stat().st_ino for folder in waiting}
    assert len(inodes) == 2
    mode(run, "fail 5")
    done = relex(arguments(run, *OPTIONS, "--keep", "best"))
    assert done.returncode == 2
    kept = {f.stat().st_ino for f in (*out.glob("pass/*"), out / "best")}
    assert set(inodes.values()) & kept, "the best was renamed, not written again"


def test_a_larger_budget_continues(run: RunFolder, out: Path) -> None:
    assert relex(arguments(run, "-q", "--evaluations", 4)).returncode == 0
    first = (out / "scores.csv").read_text().splitlines()
    assert relex(arguments(run, "-q", "--evaluations", 9, "--per-pass", 2)).returncode == 0
    rows = [line.rsplit(",", 1)[0] for line in (out / "scores.csv").read_text().splitlines()]
    assert rows[:5] == [line.rsplit(",", 1)[0] for line in first] and len(rows) == 10
    assert relex(arguments(run, "-q", "--evaluations", 3)).returncode == 0
    assert len(calls(run)) == 9


def test_a_best_that_is_gone_is_written_again(run: RunFolder, out: Path) -> None:
    expected = undisturbed(run, out)
    assert relex(arguments(run, *OPTIONS)).returncode == 0
    shutil.rmtree(out / "best")
    assert relex(arguments(run, *OPTIONS)).returncode == 0
    assert contents(out) == expected
    assert len(calls(run)) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--eval", "false {model}"), 'evaluate: expected "'),
        (("--lower-is-better",), "higher_is_better: expected true, found false"),
        (("--strength", 1), "strengths: expected [0.5, 1.0], found [1.0]"),
        (("--target-step", 99), "targets: expected [62.0, "),
        (("--rank", 2), "rank: expected 1, found 2"),
        (("--method", "pinned"), 'method: expected "relex", found "pinned"'),
        (("--until", 40), "steps: expected [10, 20, 30, 40, 50], found [10, 20, 30, 40]"),
        (("--keep", "all"), 'keep: expected "best", found "all"'),
    ],
)
def test_another_search_is_refused(
    run: RunFolder, out: Path, options: tuple[object, ...], message: str
) -> None:
    mode(run, "fail 2")
    assert relex(arguments(run, *OPTIONS)).returncode == 2
    before = digest(out)
    found = relex(arguments(run, *OPTIONS, *options))
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"relex: error: {out}: holds another search: ")
    assert message in found.stderr and "choose another folder" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert digest(out) == before


def test_other_checkpoints_are_refused(run: RunFolder, out: Path) -> None:
    mode(run, "fail 2")
    assert relex(arguments(run, *OPTIONS)).returncode == 2
    for folder, what in ((run.folder(30), "step 30"), (run.base, "the base")):
        os.utime(folder / "model.safetensors", (1, 1))
        with pytest.raises(InputError, match=f"made from other files than {what} has now"):
            search(run.base, run.checkpoints, out, command(run), evaluations=8, progress=False)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "relex-search/9"}'])
def test_a_damaged_search_is_refused(run: RunFolder, out: Path, text: str) -> None:
    assert relex(arguments(run, "-q", "--evaluations", 2)).returncode == 0
    (out / STATE).write_text(text)
    with pytest.raises(InputError, match=r"search\.json"):
        search(run.base, run.checkpoints, out, command(run), progress=False)


def test_damaged_scores_are_refused(run: RunFolder, out: Path) -> None:
    assert relex(arguments(run, "-q", "--evaluations", 2)).returncode == 0
    with (out / "scores.csv").open("a") as file:
        file.write("forecast,50\n")
    with pytest.raises(InputError, match=r"scores.csv: line 4: expected 8 fields"):
        search(run.base, run.checkpoints, out, command(run), evaluations=2, progress=False)


def test_two_at_once(run: RunFolder, out: Path) -> None:
    assert relex(arguments(run, "-q", "--evaluations", 2)).returncode == 0
    holder = os.open(out, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="another search is at work"):
        search(run.base, run.checkpoints, out, command(run), evaluations=2, progress=False)
    os.close(holder)
    search(run.base, run.checkpoints, out, command(run), evaluations=2, progress=False)
    assert json.loads((out / STATE).read_text())["result"] is not None
