"""What an error says, whatever was put into the names that it quotes."""

from __future__ import annotations

import pytest

from relex_ext.errors import EvaluationError, InputError, OutputError, RelexError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain: λ × 2", "plain: λ × 2"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b\u200bc", r"a\u2028b\u200bc"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
        ("\U000e0041", r"\U000e0041"),
        ("", ""),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    for kind in (RelexError, InputError, OutputError, EvaluationError):
        assert str(kind(text)) == shown


@pytest.mark.parametrize("character", ["x", "\x1b", "é"])
@pytest.mark.parametrize("length", [999, 1000, 1001, 100_000])
def test_the_middle_of_a_long_one_is_left_out(character: str, length: int) -> None:
    shown = printable(f"begin{character * (length - 8)}end")
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert shown.isprintable()
    if character.isprintable() and length <= 1000:
        assert len(shown) == length
    else:
        assert len(shown) == 999
        assert shown[499] == "…"
