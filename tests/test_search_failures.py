"""Searches whose evaluation fails, that are interrupted, or whose input is wrong."""

from __future__ import annotations

import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from folders import RunFolder, listing
from relex_ext import EvaluationError, InputError, search
from relex_ext.scores import read_scores
from relex_ext.searches.evaluation import Evaluation, parse_score
from searches import arguments, calls, command, make_search, mode, relex
from test_cli import environment


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_search(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "found"


def test_a_line_with_several_numbers_is_shown(tmp_path: Path) -> None:
    command = "echo {model}: 0.49 '(standard error 0.05)'"
    with pytest.raises(EvaluationError) as caught:
        Evaluation(command, None, tmp_path / "logs")(Path("/m"), "m")
    assert str(caught.value) == (
        "/m: echo /m: 0.49 '(standard error 0.05)': expected one number on its last line, "
        "or 0.541 ± 0.008, found 2: '/m: 0.49 (standard error 0.05)'"
    )


def test_the_examples_score_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    folder = Path(__file__).resolve().parent.parent / "examples" / "tiny_grpo"
    monkeypatch.syspath_prepend(str(folder))
    module = runpy.run_path(str(folder / "score.py"))
    module["main"].__globals__["score"] = lambda *_: 0.4943
    module["main"](["runs/500/checkpoint-200", "--problems", "4000"])
    assert parse_score(capsys.readouterr().out) == (0.4943, 0.0079)


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("fail", (), "found exit status 3: loading | CUDA out of memory"),
        ("garbage", (), "found no number in the last line: some table | 12 | 13 | all done"),
        ("sleep", ("--timeout", 1.5), "found none within 1.5 s: some table | 12 | 13"),
    ],
)
@pytest.mark.parametrize("at", [1, 4])
def test_a_failing_evaluation_stops_the_search(
    run: RunFolder, out: Path, what: str, options: tuple[object, ...], message: str, at: int
) -> None:
    mode(run, f"{what} {at}")
    found = relex(arguments(run, *options))
    assert (found.returncode, found.stdout) == (2, "")
    last = found.stderr.splitlines()[-1]
    assert last.startswith("relex: error: ") and message in last
    assert "expected a score from" in last and calls(run)[-1] in last
    assert "evaluate.py" in last and "Traceback" not in found.stderr
    scores = read_scores(out / "scores.csv") if at > 1 else ()
    assert len(scores) == at - 1
    mode(run, "peak 140")
    assert relex(arguments(run, "-q")).returncode == 0
    assert len(read_scores(out / "scores.csv")) == 10
    assert calls(run).count(calls(run)[at - 1]) == 2, "what failed is evaluated again"


def test_a_command_that_is_none(run: RunFolder, out: Path) -> None:
    with pytest.raises(EvaluationError, match=r"exit status 127.*not found"):
        search(run.base, run.checkpoints, out, "no-such-thing {model}", progress=False)


def test_interrupt(run: RunFolder, tmp_path: Path) -> None:
    mode(run, "sleep 3")
    line = shlex.join([sys.executable, "-m", "relex_ext", *arguments(run, "-q")])
    process = subprocess.Popen(
        ["sh", "-c", f"exec {line}"], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    pids = tmp_path / "pids"
    deadline = time.monotonic() + 20
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "relex: interrupted; the same command continues\n"
    for pid in pids.read_text().split():
        assert not alive(int(pid)), "all that the command started has ended"
    mode(run, "peak 140")
    assert relex(arguments(run, "-q")).returncode == 0
    assert len(read_scores(tmp_path / "found" / "scores.csv")) == 10


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


# ---- wrong inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--eval", "python evaluate.py"), "expected {model} in the command"),
        (("--evaluations", 1), "evaluations: expected at least 2"),
        (("--per-pass", 0), "per_pass: expected at least 1"),
        (("--timeout", 0), "timeout"),
        (("--timeout", "nan"), "timeout"),
        (("--strength", 0), "strengths"),
        (("--target-step", -5), "target_steps"),
        (("--target-step", 100, "--target-step", 100), "twice"),
        (("--method", "magic"), "method"),
        (("--method", "reconstruct"), "expected one that forecasts"),
        (("--method", "secant", "--rank", 2), "rank"),
        (("--until", 10), "at least 2"),
        (("--dtype", "int8"), "dtype"),
        (("--memory-limit", "1KiB"), "memory_limit"),
        (("--backend", "gpu"), "backend"),
        (("--scan", __file__), Path(__file__).name),
        (("--scan", "OUT/other"), "outside"),
        (("--out", "BASE"), "apart from the inputs"),
        (("--out", "RUN"), "apart from the inputs"),
        (("--out", __file__), "found a file"),
        (("--out", str(Path(__file__).parent)), "no search in it"),
        (("--out", "/proc/relex/out"), "/proc/relex"),
    ],
)
def test_wrong_input_is_one_line(
    run: RunFolder, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    places = {"BASE": run.base, "RUN": run.checkpoints, "OUT/other": tmp_path / "found" / "other"}
    before = listing(tmp_path)
    found = relex(arguments(run, *(places.get(str(o), o) for o in options)))
    assert (found.returncode, found.stdout) == (2, "")
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert message in found.stderr
    assert listing(tmp_path) == before


def test_a_nan_in_a_checkpoint(run: RunFolder, tmp_path: Path) -> None:
    shard = run.folder(20) / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\xc0\x7f")
    before = listing(tmp_path)
    with pytest.raises(InputError, match="NaN or Inf in step 20"):
        search(run.base, run.checkpoints, tmp_path / "a" / "b", command(run), progress=False)
    assert listing(tmp_path) == before
