"""From folders to tensor entries: single files, shards, indexes, configs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from folders import INDEX, SINGLE, Raw, raw, write_index, write_model
from relex_ext.checkpoints import open_checkpoint
from relex_ext.errors import InputError

A = raw(np.arange(12, dtype=np.uint16), "BF16", (3, 4))
B = raw(np.arange(5, dtype=np.uint32), "F32")
C = raw(np.array([7], np.uint16), "F16", ())
TENSORS = {"a": A, "b": B, "c": C}


def contents(folder: Path) -> dict[str, Raw]:
    """What open_checkpoint says lies where, read from there."""
    found = {}
    for name, entry in open_checkpoint(folder).tensors.items():
        data = entry.shard.path.read_bytes()
        part = data[entry.offset : entry.offset + entry.nbytes]
        found[name] = Raw(entry.dtype, entry.shape, part)
    return found


# ---- single and sharded ------------------------------------------------------------------------


@pytest.mark.parametrize("pad", range(5))
@pytest.mark.parametrize("shards", [None, [["a", "b", "c"]], [["c"], ["b", "a"]]])
def test_entries_point_at_the_bytes(
    tmp_path: Path, pad: int, shards: list[list[str]] | None
) -> None:
    assert contents(write_model(tmp_path, TENSORS, shards, pad=pad)) == TENSORS


@pytest.mark.parametrize("sub", ["", "actor/huggingface", "huggingface"])
def test_weights_in_a_subfolder(tmp_path: Path, sub: str) -> None:
    (tmp_path / "actor").mkdir()
    (tmp_path / "actor" / "model_world_size_8_rank_0.pt").write_bytes(b"fsdp")
    write_model(tmp_path / sub, TENSORS)
    assert open_checkpoint(tmp_path).folder == tmp_path / sub
    assert contents(tmp_path) == TENSORS


def test_index_wins_over_a_single_file(tmp_path: Path) -> None:
    """As transformers does; a stale model.safetensors beside an index is not the model."""
    write_model(tmp_path, {"stale": A})
    write_model(tmp_path, TENSORS, [["a"], ["b", "c"]])
    assert set(contents(tmp_path)) == set(TENSORS)


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ('{"tie_word_embeddings": true}', True),
        ('{"tie_word_embeddings": false}', False),
        ("{}", None),
        ("not json", None),
        ("[]", None),
        ('{"tie_word_embeddings": "yes"}', None),
    ],
)
def test_tied(tmp_path: Path, config: str, tied: bool | None) -> None:
    write_model(tmp_path, TENSORS, companions={"config.json": config.encode()})
    assert open_checkpoint(tmp_path).tied is tied


# ---- what is wrong with an index ---------------------------------------------------------------


def broken_index(folder: Path, weight_map: object) -> None:
    write_model(folder, TENSORS, [["a"], ["b", "c"]])
    write_index(folder, weight_map)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": FIRST, "b": SECOND}, "tensor c: .*no shard"),
        ({"a": SECOND, "b": SECOND, "c": SECOND}, "tensor a: named by .*not in the file"),
        ({"a": FIRST, "b": FIRST, "c": SECOND}, f"tensor b: expected {SECOND}"),
        ({"a": FIRST, "b": SECOND, "c": SECOND, "d": FIRST}, "tensor d: named by"),
        ({"a": "gone.safetensors", "b": SECOND, "c": SECOND}, "gone.safetensors"),
        ({"a": "../" + FIRST, "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "/etc/passwd", "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "..", "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "", "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "x\0y", "b": SECOND, "c": SECOND}, r"plain file name, found 'x\\x00y'"),
        ({"a": "x/y", "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "x\ny", "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "\ud800", "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": "." * 999, "b": SECOND, "c": SECOND}, "cannot be read: File name too long"),
        ({"a": None, "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({"a": 3, "b": SECOND, "c": SECOND}, "tensor a: expected a plain file name"),
        ({}, "weight_map"),
        ([], "weight_map"),
        ("x", "weight_map"),
    ],
)
def test_index_errors(tmp_path: Path, weight_map: object, message: str) -> None:
    broken_index(tmp_path, weight_map)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1, 2]", b'"x"', b"{}", b"null"])
def test_index_that_is_not_one(tmp_path: Path, text: bytes) -> None:
    write_model(tmp_path, TENSORS, [["a"], ["b", "c"]])
    (tmp_path / INDEX).write_bytes(text)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / INDEX))):
        open_checkpoint(tmp_path)


def test_index_may_say_more_than_its_weight_map(tmp_path: Path) -> None:
    write_model(tmp_path, TENSORS, [["a"], ["b", "c"]])
    index = json.loads((tmp_path / INDEX).read_text())
    more = {"metadata": {"total_size": 13476839424.0, "change": -1}, "x": []}
    (tmp_path / INDEX).write_text(json.dumps({**index, **more}))
    assert contents(tmp_path) == TENSORS


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('"weight_map": {"a": "other.safetensors"}', "each name once, found weight_map twice"),
        ('"x": {"y": 1, "y": 2}', "each name once, found y twice"),
        ('"x": NaN', "expected a number, found NaN"),
        (f'"x": {"1" * 5000}', "expected a number of up to 20 digits, found 5000"),
        ('"x": ' + "[" * 99999, "nested too deeply|expected JSON"),
    ],
)
def test_index_with_two_meanings_or_none(tmp_path: Path, more: str, message: str) -> None:
    write_model(tmp_path, TENSORS, [["a"], ["b", "c"]])
    text = (tmp_path / INDEX).read_text()
    (tmp_path / INDEX).write_text(f"{{{more}, {text[1:]}")
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / INDEX))}: .*{message}"):
        open_checkpoint(tmp_path)


def test_index_that_is_too_large_or_no_file(tmp_path: Path) -> None:
    write_model(tmp_path, TENSORS, [["a"], ["b", "c"]])
    os.truncate(tmp_path / INDEX, 100_000_001)
    with pytest.raises(InputError, match="expected at most 100000000 bytes, found 100000001"):
        open_checkpoint(tmp_path)
    (tmp_path / INDEX).unlink()
    os.mkfifo(tmp_path / INDEX)
    with pytest.raises(InputError, match=f"{INDEX}: expected a regular file, found a FIFO"):
        open_checkpoint(tmp_path)


def test_config_that_is_too_large_or_no_file(tmp_path: Path) -> None:
    write_model(tmp_path, TENSORS, companions={"config.json": b"[" * 99999})
    assert open_checkpoint(tmp_path).tied is None
    os.truncate(tmp_path / "config.json", (16 << 20) + 1)
    with pytest.raises(InputError, match=r"config.json: expected at most 16777216 bytes"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"config.json: expected a regular file, found a FIFO"):
        open_checkpoint(tmp_path)


# ---- folders without weights -------------------------------------------------------------------


def test_empty_missing_and_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"expected {SINGLE} or"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="found no folder"):
        open_checkpoint(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="found no folder"):
        open_checkpoint(tmp_path / "file")
