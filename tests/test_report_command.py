"""``relex report`` from the command line: what it refuses, and that it then leaves no trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from folders import digest, listing
from relex_ext import InputError, OutputError, Scan, report
from relex_ext.cli import main
from relex_ext.forecasts import Spectrum
from reports import NAMES, SCORES, made_scan, write_rows
from test_cli import environment, relex


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.safetensors"
    made_scan().save(path)
    return path


def test_writes_page_numbers_and_figures(scan: Path, tmp_path: Path) -> None:
    done = relex("report", scan, "--out", tmp_path / "new" / "r.html", "--target-step", 30)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path / "new" / "r.html") in done.stdout
    files = {"variance", "coefficients", "skill", "modules", "updates"}
    assert set(listing(tmp_path / "new")) == {
        "r.html", "r.json", "r_files", *(f"r_files/{name}.png" for name in files)
    }  # fmt: skip


def test_json_on_stdout(scan: Path, tmp_path: Path) -> None:
    done = relex("report", scan, "--out", tmp_path / "r.html", "--json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "r.json").read_text("utf-8"))


def test_overwrite(scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    scores = write_rows(tmp_path / "s.csv")
    assert relex("report", scan, "--out", out, "--eval", scores).returncode == 0
    before = digest(tmp_path)
    again = relex("report", scan, "--out", out)
    assert again.returncode == 2
    assert again.stderr == (
        f"relex: error: {out}: exists already; choose another name or pass overwrite\n"
    )
    assert digest(tmp_path) == before
    assert relex("report", scan, "--out", out, "--overwrite", "-q").stdout == ""
    assert not (tmp_path / "r_files" / "accuracy.png").exists(), "an earlier report's figure"
    assert (tmp_path / "r_files" / "skill.png").exists()


def test_never_replaces_what_no_report_wrote(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "r_files").mkdir()
    (tmp_path / "r_files" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"expected an earlier report's figures, found thesis"):
        report(scan, tmp_path / "r.html", overwrite=True)
    (tmp_path / "q.json").mkdir()
    with pytest.raises(OutputError, match=r"q\.json: expected a file to write, found a folder"):
        report(scan, tmp_path / "q.html", overwrite=True)
    for name in ("mine.html", "other.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(OutputError, match="expected an earlier report, found another file"):
            report(scan, (tmp_path / name).with_suffix(".html"), overwrite=True)
    (tmp_path / "p_files").write_text("")
    with pytest.raises(OutputError, match="expected a folder to make, found a file"):
        report(scan, tmp_path / "p.html", overwrite=True)


def test_refusals(
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line that says what was expected, exit code 2, nothing written."""
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "not.safetensors").write_bytes(b"hello")
    power = Scan((1, 2, 3), {}, {"x": Spectrum(np.eye(3)[:, :1], np.ones(1), 1.0)}, {})
    power.save(tmp_path / "power.safetensors")
    frozen = tmp_path / "frozen.safetensors"
    made_scan(frozen=NAMES[0]).save(frozen)
    bad = tmp_path / "bad.csv"
    bad.write_text("kind,step\ntrained,5\n")
    worse = write_rows(tmp_path / "worse.csv", [(*SCORES[0][:5], "high", "", "")])
    out = tmp_path / "r.html"
    before = digest(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for args, words in (
        ((tmp_path / "none", "--out", out), "expected a scan file, found none"),
        ((tmp_path / "not.safetensors", "--out", out), "not.safetensors"),
        ((tmp_path / "power.safetensors", "--out", out), "solver gram"),
        ((scan, "--out", out, "--tensor", "x"), "expected one of the scan's, found x"),
        ((frozen, "--out", out, "--tensor", NAMES[0]), f"tensor {NAMES[0]}: never moves, nothing"),
        ((scan, "--out", out, "--until", 0), "until: expected at least step 1, found 0"),
        ((scan, "--out", out, "--until", 2), "expected at least 3 steps"),
        ((scan, "--out", out, "--target-step", "nan"), "expected a finite step"),
        ((scan, "--out", out, "--eval", bad), "bad.csv: line 1: expected kind,prefix"),
        ((scan, "--out", out, "--eval", worse), "score: expected a finite number, found high"),
        ((scan, "--out", out, "--eval", tmp_path / "no.csv"), "no.csv"),
        ((scan, "--out", tmp_path / "folder.html"), "expected a file to write, found a folder"),
        ((scan, "--out", tmp_path / "r.pdf"), "expected a name that ends in .html"),
    ):
        assert main(["report", *map(str, args)]) == 2, args
        found = capsys.readouterr().err
        assert found.startswith("relex: error: ") and found.count("\n") == 1
        assert words in found, args
        assert digest(tmp_path) == before, args


def test_a_tensor_that_moves_late_is_drawn(tmp_path: Path) -> None:
    """The steps that its line is fitted to are all zeros."""
    grams = dict(made_scan().grams)
    late = np.array(grams[NAMES[0]])
    late[:12] = late[:, :12] = 0.0
    scan = Scan(tuple(range(1, 25)), {**grams, NAMES[0]: late}, {}, {})
    assert report(scan, tmp_path / "r.html", tensors=[NAMES[0]]).page.exists()


def test_one_name_and_one_file_need_no_list(scan: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "s.csv")
    for scores in (file, str(file)):
        found = report(
            scan, tmp_path / "r.html", scores=scores, tensors=NAMES[1], overwrite=True
        ).contents
        assert len(found.scores) == len(SCORES)
        assert [curve.name for curve in found.curves] == ["", NAMES[1]]
        assert f"--eval s.csv --tensor {NAMES[1]}" in found.about["command"]


def test_without_matplotlib(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'relex_ext\[report\]'"):
        report(scan, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_failed_figure_leaves_nothing(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = digest(tmp_path)
    monkeypatch.setattr("relex_ext.reports.publish.write_durably", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        report(scan, tmp_path / "new" / "r.html")
    assert digest(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_torch_is_never_imported(scan: Path, tmp_path: Path) -> None:
    """It would cost a second."""
    code = (
        "import sys; from relex_ext.cli import main; "
        f"main(['report', {str(scan)!r}, '--out', {str(tmp_path / 'r.html')!r}, '-q']); "
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "False False\n"
