"""Several run folders, one trajectory."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from folders import RunFolder, Spec, digest, listing, make_run
from relex_ext import InputError, extrapolate, scan
from relex_ext.cli import main
from relex_ext.steps import resolve

MODEL = {"w": Spec((50, 40)), "b": Spec((33,), "F32", ("F32",))}
STEPS = (10, 20, 35, 40, 70, 90)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path, STEPS, MODEL)


def deal(run: RunFolder, root: Path, phases: Mapping[str, Mapping[int, int]]) -> list[Path]:
    """Copies of the run's checkpoints in other folders: phase → {its own step: the run's}."""
    for phase, steps in phases.items():
        for own, step in steps.items():
            shutil.copytree(run.folder(step), root / phase / f"checkpoint-{own}")
    return [root / phase for phase in phases]


GOES_ON = {"a": {10: 10, 20: 20, 35: 35}, "b": {40: 40, 70: 70, 90: 90}}
BEGINS_AGAIN = {"a": {10: 10, 20: 20, 35: 35}, "b": {5: 40, 35: 70, 55: 90}}
OVERLAPS = {"a": {10: 10, 20: 20}, "b": {15: 35, 20: 40, 50: 70, 70: 90}}
THREE = {"a": {10: 10}, "b": {10: 20, 25: 35}, "c": {40: 40, 70: 70, 90: 90}}


@pytest.mark.parametrize(
    "phases", [GOES_ON, BEGINS_AGAIN, OVERLAPS, THREE], ids=["on", "again", "overlap", "three"]
)
def test_phases_are_one_run(
    run: RunFolder, tmp_path: Path, phases: Mapping[str, Mapping[int, int]]
) -> None:
    folders = deal(run, tmp_path / "phases", phases)
    assert tuple(resolve(folders)) == STEPS
    whole = extrapolate(run.base, run.checkpoints, 200, tmp_path / "whole", progress=False)
    parts = extrapolate(run.base, folders, 200, tmp_path / "parts", progress=False)
    assert digest(tmp_path / "parts" / "step_200") == digest(tmp_path / "whole" / "step_200")
    assert parts.record["tensors"] == whole.record["tensors"]
    assert list(parts.record["checkpoints"]) == [str(s) for s in STEPS]
    last = parts.record["checkpoints"]["90"]
    assert Path(last).parent == folders[-1]
    command = ["scan", "--base", run.base, "--out", tmp_path / "scan", "-q"]
    for folder in folders:
        command += ["--checkpoints", folder]
    assert main([str(part) for part in command]) == 0
    reused = extrapolate(
        run.base, [str(f) for f in folders], 200, tmp_path / "reused", scan=tmp_path / "scan",
        progress=False,
    )  # fmt: skip
    assert reused.weights is not None and reused.weights.steps == STEPS


def test_what_was_done_is_said(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "relex_ext"):
        a, b = deal(run, tmp_path / "on", GOES_ON)
        resolve([a, b])
        assert f"{b}: steps 40 to 90 count as 40 to 90: it goes on after step 35" in caplog.text
        caplog.clear()
        a, b = deal(run, tmp_path / "again", BEGINS_AGAIN)
        resolve([a, b])
        assert f"{b}: steps 5 to 55 count as 40 to 90: it began again after step 35" in caplog.text


def test_until_and_steps_count_through(run: RunFolder, tmp_path: Path) -> None:
    folders = deal(run, tmp_path / "phases", BEGINS_AGAIN)
    assert scan(run.base, folders, until=70, progress=False).steps == STEPS[:-1]
    assert scan(run.base, folders, steps=[90, 10, 40], progress=False).steps == (10, 40, 90)


def test_a_phase_alone_and_step_named_folders(run: RunFolder, tmp_path: Path) -> None:
    assert resolve([run.checkpoints]) == resolve(run.checkpoints)
    named = [run.folder(step) for step in (40, 10)]
    assert resolve(named) == {10: named[1], 40: named[0]}
    trainer = tmp_path / "step_7"  # a run folder that is named like a step, given alone
    shutil.copytree(run.checkpoints, trainer)
    assert tuple(resolve(trainer)) == STEPS


@pytest.mark.parametrize(
    "kind", ["run and step", "run and pair", "step and pair", "missing", "empty", "base repeated"]
)
def test_wrong_phases(run: RunFolder, tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    if kind == "base repeated":  # its step 0 is the last one of the phase before
        shutil.copytree(run.folder(10), tmp_path / "again" / "checkpoint-0")
    given, message = {
        "run and step": ([run.checkpoints, run.folder(20)], "a mixture"),
        "run and pair": ([run.checkpoints, f"40={run.folder(40)}"], "a mixture"),
        "step and pair": ([run.folder(20), f"40={run.folder(40)}"], "a mixture"),
        "missing": ([run.checkpoints, tmp_path / "gone"], "gone: expected a folder"),
        "empty": ([run.checkpoints, tmp_path / "empty"], "empty: expected step folders"),
        "base repeated": ([run.checkpoints, tmp_path / "again"], "step 90 twice"),
    }[kind]
    before = listing(tmp_path)
    command = ["extrapolate", "--base", run.base, "--target-step", 100, "--out", tmp_path / "out"]
    for one in given:
        command += ["--checkpoints", one]
    assert main([str(part) for part in command]) == 2
    assert listing(tmp_path) == before
    pairs = [
        (int(str(g).split("=")[0]), str(g).split("=")[1]) if "=" in str(g) else g for g in given
    ]
    with pytest.raises(InputError, match=message) as error:
        extrapolate(run.base, pairs, 100, tmp_path / "out", progress=False)
    assert "\n" not in str(error.value)


def test_phases_on_the_command_line(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = deal(run, tmp_path / "phases", BEGINS_AGAIN)
    common = ["extrapolate", "--base", str(run.base), "--target-step", "200"]
    phases = ["--checkpoints", str(a), "--checkpoints", str(b)]
    assert main([*common, *phases, "--out", str(tmp_path / "out")]) == 0
    assert "it began again after step 35" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "relex.json").read_text())
    assert list(record["checkpoints"]) == [str(s) for s in STEPS]
