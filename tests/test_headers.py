"""Corrupt safetensors headers: refused with the file's name, in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from folders import SINGLE, with_header
from relex_ext.checkpoints import open_checkpoint
from relex_ext.errors import InputError


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"w": tensor("F32", [4], 0, 16)}
WHOLE = with_header(GOOD, bytes(16))

CASES = {
    "empty file": b"",
    "seven bytes": WHOLE[:7],
    "only the length": WHOLE[:8],
    "half a header": WHOLE[:20],
    "truncated data": WHOLE[:-1],
    "trailing data": WHOLE + b"\0",
    "huge length": (2**63).to_bytes(8, "little") + WHOLE[8:],
    "length past the end": (len(WHOLE)).to_bytes(8, "little") + WHOLE[8:],
    "length one too many": (len(WHOLE) - 24 + 1).to_bytes(8, "little") + WHOLE[8:],
    "zero length": bytes(8) + WHOLE[8:],
    "not json": (16).to_bytes(8, "little") + b"{not json at al}",
    "not utf-8": (4).to_bytes(8, "little") + b'{"\xff}',
    "a list": with_header([1], b""),
    "no offsets": with_header({"w": {"dtype": "F32", "shape": [4]}}, bytes(16)),
    "unknown dtype": with_header({"w": tensor("Q7", [4], 0, 16)}, bytes(16)),
    "unsupported dtype": with_header({"w": tensor("F8_E8M0", [16], 0, 16)}, bytes(16)),
    "complex dtype": with_header({"w": tensor("C64", [2], 0, 16)}, bytes(16)),
    "overlap": with_header(
        {"a": tensor("F32", [4], 0, 16), "b": tensor("F32", [4], 8, 24)}, bytes(24)
    ),
    "same place": with_header(
        {"a": tensor("F32", [4], 0, 16), "b": tensor("F32", [4], 0, 16)}, bytes(16)
    ),
    "gap": with_header({"a": tensor("F32", [4], 8, 24)}, bytes(24)),
    "shape and offsets disagree": with_header({"w": tensor("F32", [5], 0, 16)}, bytes(16)),
    "begin after end": with_header({"w": tensor("F32", [4], 16, 0)}, bytes(16)),
    "negative offset": with_header({"w": tensor("F32", [4], -16, 0)}, bytes(16)),
    "negative size": with_header({"w": tensor("F32", [-4], 0, 16)}, bytes(16)),
    "size overflow": with_header({"w": tensor("F32", [2**62, 2**62], 0, 16)}, bytes(16)),
    "offsets past the end": with_header({"w": tensor("F32", [4], 64, 80)}, bytes(16)),
    "a fraction": with_header({"w": tensor("F32", [4], 0, 16) | {"shape": [4.5]}}, bytes(16)),
}


def test_the_case_they_are_made_from_is_good(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(WHOLE)
    entry = open_checkpoint(tmp_path).tensors["w"]
    assert (entry.dtype, entry.shape, entry.nbytes) == ("F32", (4,), 16)
    assert entry.offset == 8 + len(json.dumps(GOOD))


@pytest.mark.parametrize("case", CASES)
def test_corrupt(tmp_path: Path, case: str) -> None:
    (tmp_path / SINGLE).write_bytes(CASES[case])
    with pytest.raises(InputError, match=re.escape(str(tmp_path / SINGLE))) as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / SINGLE).mkdir()
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        open_checkpoint(tmp_path)
