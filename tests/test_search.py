"""relex search: real runs, real evaluation commands, in processes of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import searches
from folders import RunFolder, digest, listing, model_digest, read_model
from relex_ext import InputError, combine, extrapolate, forecast, search
from relex_ext import scan as make_scan
from relex_ext.scores import Score, read_scores
from searches import NEWEST, arguments, calls, command, make_search, mode, most_models, relex


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_search(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "found"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_finds_the_best(run: RunFolder, out: Path) -> None:
    found = search(run.base, run.checkpoints, out, command(run), evaluations=14, progress=False)
    assert found.bar == Score(
        "trained", None, NEWEST, None, None, -90.0, None, str(run.folder(NEWEST))
    )
    best = found.best
    assert best is not None and found.gains and best.score > -8  # of a range of 350 steps
    assert best.model == str(out / "best")
    assert found.scores == read_scores(out / "scores.csv")
    assert len(found.scores) == 14 == len(set(calls(run))) == len(calls(run))
    assert most_models(run) <= 5  # a pass of four, and the best
    assert names_in(out) == [
        "best",
        "logs",
        "scan.safetensors",
        "scores.csv",
        "search.json",
    ]
    # The best is what extrapolate writes for that target and strength.
    extrapolate(
        run.base, run.checkpoints, best.step, out / "direct", strength=best.strength,
        scan=out / "scan.safetensors", progress=False,
    )  # fmt: skip
    (direct,) = (out / "direct").glob("step_*")
    kept = model_digest(out / "best")
    record = json.loads((out / "best" / "relex.json").read_text())
    del kept["relex.json"]
    assert kept == model_digest(direct)
    assert list(record["targets"].values()) == [best.step]
    assert list(record["strengths"].values()) == [best.strength]
    assert record["options"]["method"] == "relex"
    result = searches.state(run)["result"]
    assert isinstance(result, dict) and result["best"]["score"] == best.score


def test_the_command_line(run: RunFolder, out: Path) -> None:
    mode(run, "error")
    found = relex(arguments(run, "--evaluations", 6, "--per-pass", 2))
    assert found.returncode == 0, found.stderr
    assert "checkpoint of step 50: -90 ± 2 (1 of 6)" in found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].split() == ["step", "strength", "score", "error"]
    assert lines[1].split() == ["1", "50", "trained", "-90", "2"]
    assert sum(line.endswith("best") for line in lines[:7]) == 1
    best = max(read_scores(out / "scores.csv"), key=lambda score: score.score)
    assert (best.error, best.strength is None) == (2.0, False)
    assert lines[8].startswith(
        f"forecast of step {best.step:g} at strength {best.strength:g} scores"
    )
    assert "the newest checkpoint (step 50) -90" in lines[8]
    assert "standard errors" not in lines[8]
    assert most_models(run) <= 3
    again = relex(arguments(run, "--evaluations", 6, "--json"))
    described = json.loads(again.stdout)
    assert described["best"]["score"] == best.score and described["gains"] is True
    assert len(described["scores"]) == 6 == len(calls(run))


def test_lower_is_better(run: RunFolder, out: Path) -> None:
    mode(run, "far")
    found = relex(arguments(run, "--lower-is-better", "-q", "--keep", "all"))
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    scores = read_scores(out / "scores.csv")
    best = min(scores, key=lambda score: score.score)
    assert best.score < 20 and best.model == str(out / "best")
    forecasts = [score for score in scores if score.kind == "forecast"]
    assert len(names_in(out / "candidates")) == len(forecasts) - 1 == 8
    for score in forecasts:  # each model is where its row says, and what it says
        assert score.model is not None
        (weight, *_) = read_model(Path(score.model))["w"].values
        assert abs(weight * 1024 - 140) == score.score
        record = json.loads((Path(score.model) / "relex.json").read_text())
        assert list(record["targets"].values()) == [score.step]


def test_nothing_beats_the_bar(run: RunFolder, out: Path) -> None:
    mode(run, "worse")
    found = relex(arguments(run, "--evaluations", 6))
    assert found.returncode == 0, found.stderr
    said = found.stdout.splitlines()[8]
    assert said.startswith("no forecast beats the newest checkpoint (step 50), which scores 0.02;")
    scores = read_scores(out / "scores.csv")
    assert [score.model for score in scores] == [str(run.folder(NEWEST)), *[None] * 5]
    assert names_in(out) == ["logs", "scan.safetensors", "scores.csv", "search.json"]


@pytest.mark.parametrize("method", ["secant", "pinned"])
def test_other_methods(run: RunFolder, out: Path, method: str) -> None:
    relex(arguments(run, "-q", "--method", method, "--target-step", 140, "--strength", 1))
    scores = read_scores(out / "scores.csv")
    assert [(score.method, score.step, score.score) for score in scores] == [
        (None, NEWEST, -90.0), (method, 140, pytest.approx(0, abs=1e-3)),
    ]  # fmt: skip
    assert (out / "scan.safetensors").exists() == (method == "pinned")


def test_a_scan_is_reused_or_written(run: RunFolder, out: Path, tmp_path: Path) -> None:
    scan = tmp_path / "kept.scan"
    for _ in range(2):
        done = relex(arguments(run, "-q", "--scan", scan, "--evaluations", 2, "--overwrite"))
        assert (done.returncode, done.stderr) == (0, "")
        assert scan.is_file() and not (out / "scan.safetensors").exists()
    assert calls(run).count("checkpoint-50") == 2  # overwrite began again


def test_dry_run(run: RunFolder, tmp_path: Path) -> None:
    before = listing(tmp_path)
    text = relex(arguments(run, "--dry-run"))
    described = relex(arguments(run, "--dry-run", "--json", "--per-pass", 2))
    assert listing(tmp_path) == before
    for word in ("10 at most", "for the scan", "80 B at most, 16 B a model", "strength_0.5"):
        assert word in text.stdout, text.stdout
    plan = json.loads(described.stdout)
    assert (plan["model_bytes"], plan["disk"], plan["per_pass"]) == (16, 48, 2)
    assert plan["scan_bytes"] == plan["bytes_read"] == 6 * 16


def test_quoting_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    run = make_search(tmp_path / "it's a $HOME")
    out = tmp_path / "it's a $HOME" / "found"
    line = 'test -z "$OPENBLAS_NUM_THREADS$MKL_NUM_THREADS" && ls {model} >&2 && ' + command(run)
    found = relex([*arguments(run, "-q", "--evaluations", 3, "--eval", line)])
    assert (found.returncode, found.stderr) == (0, "")
    assert "config.json" in next((out / "logs").glob("*strength*.stderr")).read_text()


def test_names_of_written_folders(run: RunFolder, out: Path) -> None:
    """relex_ext.combine writes one target twice, if its folders are told apart."""
    scan = make_scan(run.base, run.checkpoints, progress=False)
    weights = forecast(scan, [100])
    twice = replace(
        weights, targets=(100.0, 100.0), strengths=(1.0, 1.0),
        tensors={name: np.repeat(w, 2, axis=0) for name, w in weights.tensors.items()},
    )  # fmt: skip
    inputs = (run.base, run.checkpoints, twice, out)
    for names in (
        None,
        ["a"],
        ["a", "a"],
        ["a", "../b"],
        ["a", ""],
        ["a", ".."],
        ["a", "relex.json"],
    ):
        with pytest.raises(InputError, match=r"^names|twice"):
            combine(*inputs, names=names, progress=False)
    done = combine(*inputs, names=["a", "b"], progress=False)
    assert done.folders == {"a": out / "a", "b": out / "b"}
    assert digest(out / "a") == digest(out / "b")
    assert done.record["targets"] == {"a": 100.0, "b": 100.0}
