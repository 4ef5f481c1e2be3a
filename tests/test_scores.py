"""Files of scores: written and read back, and refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from folders import listing
from relex_ext.errors import InputError
from relex_ext.scores import COLUMNS, Score, read_scores, write_scores

SCORES = (
    Score("trained", None, 75, None, None, 0.494, 0.008, "run/checkpoint-75"),
    Score("forecast", 75, 300, "relex", 0.5, 0.541, None, 'a "folder", with\ncare'),
    Score("forecast", 75, 62.5 * 2, "two-point", 1, -1e-300),
    Score("reconstruction", 75, 0.1 + 0.2, "pinned", 1 / 3, 1 / 3, 0.0, "ü"),
)
HEADER = ",".join(COLUMNS)


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    for rows in (SCORES, SCORES[:1], (), SCORES):
        write_scores(file, rows)
        assert read_scores(file) == rows
        assert listing(tmp_path) == ["scores.csv"]
    lines = file.read_text().splitlines()
    assert lines[:2] == [HEADER, "trained,,75,,,0.494,0.008,run/checkpoint-75"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected kind,"),
        ("kind,step\n", "line 1: expected kind,"),
        ("trained,,75,,,0.5,\n", "line 2: expected 8 fields, found 7"),
        ("\n", "line 2: expected 8 fields, found 0"),
        ("best,,75,,,0.5,,\n", "kind: expected trained, forecast, reconstruction, found best"),
        ("trained,75,75,,,0.5,,\n", "prefix: expected nothing"),
        ("trained,,75,relex,,0.5,,\n", "method: expected nothing"),
        ("trained,,75,,,,,\n", "score: expected a finite number, found nothing"),
        ("trained,,75,,,nan,,\n", "score: expected a finite number, found nan"),
        ("trained,,75,,,0.5,,\ntrained,,x,,,0.5,,\n", "line 3: step: expected a finite number"),
        ("trained,,75,,,0.5,-1,\n", "error: expected at least 0, found -1"),
        ("forecast,75,300,,1,0.5,,\n", "method: expected one for a forecast"),
        ("forecast,,300,relex,1,0.5,,\n", "prefix: expected one for a forecast"),
        ("forecast,7.5,300,relex,1,0.5,,\n", "prefix: expected a step, found 7.5"),
        ("forecast,75,300,relex,inf,0.5,,\n", "strength: expected a finite number"),
        ("forecast,75,75,relex,1,0.5,,\n", "step: expected beyond prefix 75, found 75"),
        ("reconstruction,75,76,relex,1,0.5,,\n", "step: expected up to prefix 75, found 76"),
        ('trained,,75,,,0.5,,"a\n', "line 2: unexpected end of data"),
    ],
)
def test_wrong_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "scores.csv"
    file.write_text(text if "line 1" in message else f"{HEADER}\n{text}")
    with pytest.raises(InputError) as caught:
        read_scores(file)
    assert str(caught.value).startswith(f"{file}: line ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, message in (("gone", "No such file"), ("bytes", "UTF-8"), (".", "directory")):
        with pytest.raises(InputError, match=message):
            read_scores(tmp_path / name)
