"""Checkpoints in pieces that do not hold together: one line, and nothing is written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from broken_pieces import EMBED, change, piece, refusal
from relex_ext import gather
from relex_ext.errors import InputError
from relex_ext.gathering.ranks import Ranks


def _chunk(metadata: Metadata) -> Any:
    return metadata.state_dict_metadata[EMBED].chunks[1]


UNSOUND: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "missing": (
        lambda m: m.state_dict_metadata[EMBED].chunks.pop(),
        f"tensor {EMBED}: expected pieces that fill [7, 11], found others",
    ),
    "twice": (
        lambda m: m.state_dict_metadata[EMBED].chunks.append(_chunk(m)),
        f"tensor {EMBED}: expected pieces that fill [7, 11]",
    ),
    "short": (
        lambda m: setattr(_chunk(m), "sizes", torch.Size([2, 11])),
        f"tensor {EMBED}: expected pieces that fill [7, 11]",
    ),
    "long": (
        lambda m: setattr(_chunk(m), "sizes", torch.Size([4, 11])),
        f"tensor {EMBED}: expected pieces that fill [7, 11]",
    ),
    "larger": (
        lambda m: setattr(m.state_dict_metadata[EMBED], "size", torch.Size([1 << 40, 11])),
        f"tensor {EMBED}: expected pieces that fill [1099511627776, 11]",
    ),
    "flat": (
        lambda m: setattr(m.state_dict_metadata[EMBED], "size", torch.Size([77])),
        f"tensor {EMBED}: expected pieces that fill [77]",
    ),
    "elsewhere": (
        lambda m: setattr(_chunk(m), "offsets", torch.Size([5, 0])),
        f"tensor {EMBED}: expected a file for its piece at [5, 0]",
    ),
    "negative": (
        lambda m: setattr(piece(m), "offset", -4),
        "expected a whole number, found -4",
    ),
    "too few bytes": (
        lambda m: setattr(piece(m), "length", 175),
        f"tensor {EMBED}: expected its bytes in __0_0.distcp, found 175",
    ),
    "beyond the end": (
        lambda m: setattr(piece(m), "offset", 1 << 40),
        "__0_0.distcp: expected 10995",
    ),
    "the same bytes twice": (
        lambda m: [setattr(i, "length", 4000) for i in m.storage_data.values()],
        "__0_0.distcp: expected ",
    ),
    "another folder": (
        lambda m: setattr(piece(m), "relative_path", "../__0_0.distcp"),
        "expected a plain file name, found ../__0_0.distcp",
    ),
    "no file": (
        lambda m: setattr(piece(m), "relative_path", "__9_0.distcp"),
        "__9_0.distcp: cannot be read: No such file",
    ),
    "transformed": (
        lambda m: setattr(piece(m), "transform_descriptors", ["stream.zstd"]),
        f"tensor {EMBED}: expected pieces as they are, found transformed ones",
    ),
    "no text": (
        lambda m: setattr(piece(m), "relative_path", 3),
        "expected text, found int",
    ),
}


@pytest.mark.parametrize("how", UNSOUND)
def test_metadata_that_does_not_hold_together(dcp: Path, how: str) -> None:
    alter, message = UNSOUND[how]
    change(dcp, alter)
    assert message in refusal(dcp)


def test_a_piece_that_is_a_link(dcp: Path, tmp_path: Path) -> None:
    shutil.move(dcp / "__1_0.distcp", tmp_path / "elsewhere")
    (dcp / "__1_0.distcp").symlink_to(tmp_path / "elsewhere")
    assert "__1_0.distcp: expected a part of its folder, found a link to " in refusal(dcp)


def test_truncated_pieces(dcp: Path) -> None:
    size = (dcp / "__1_0.distcp").stat().st_size
    os.truncate(dcp / "__1_0.distcp", size - 1)
    assert f"__1_0.distcp: expected {size} bytes, found {size - 1}" in refusal(dcp)


def test_a_piece_of_zeros(dcp: Path) -> None:
    """It is found when the tensors are read: then nothing of that step is published."""
    path = dcp / "__1_0.distcp"
    path.write_bytes(bytes(path.stat().st_size))
    out = dcp.parents[2] / "out"
    with pytest.raises(InputError, match=f"^{dcp}: cannot be read: "):
        gather(dcp.parents[1], out, progress=False)
    assert [path.name for path in out.parent.iterdir()] == ["run"]


def test_a_rank_that_is_missing(ranks: Path) -> None:
    (ranks / "model_world_size_4_rank_1.pt").unlink()
    assert "expected files of ranks 0 to 3, found none of rank 1" in refusal(ranks)


def test_a_rank_too_many(ranks: Path) -> None:
    shutil.copy(ranks / "model_world_size_4_rank_1.pt", ranks / "model_world_size_4_rank_4.pt")
    assert "expected files of ranks 0 to 3, found one of rank 4" in refusal(ranks)


def test_two_world_sizes(ranks: Path) -> None:
    shutil.copy(ranks / "model_world_size_4_rank_0.pt", ranks / "model_world_size_2_rank_0.pt")
    assert re.search("expected files of one world size, found [24] and [24]", refusal(ranks))


def test_a_rank_of_a_larger_world(pieces: Path, ranks: Path) -> None:
    """Two of four files, under the names of a world of two: half of every tensor."""
    source = pieces / "fsdp1-2" / "global_step_10" / "actor"
    shutil.rmtree(ranks)
    ranks.mkdir()
    for rank in range(2):
        shutil.copy(
            source / f"model_world_size_2_rank_{rank}.pt",
            ranks / f"model_world_size_4_rank_{rank}.pt",
        )
        shutil.copy(
            source / f"model_world_size_2_rank_{rank}.pt",
            ranks / f"model_world_size_4_rank_{rank + 2}.pt",
        )
    assert "expected ranks that fill a mesh, found [(0,), (1,)]" in refusal(ranks)
    for rank in (2, 3):
        (ranks / f"model_world_size_4_rank_{rank}.pt").unlink()
    (ranks / "model_world_size_4_rank_1.pt").unlink()
    (ranks / "model_world_size_4_rank_0.pt").rename(ranks / "model_world_size_1_rank_0.pt")
    assert "expected parts of [7, 11], found [4, 11] together" in refusal(ranks)


@pytest.mark.parametrize("size", [0, 1, 1000, -1])
def test_a_truncated_rank(ranks: Path, size: int) -> None:
    path = ranks / "model_world_size_4_rank_3.pt"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    assert "rank_3.pt: expected tensors that torch.load" in refusal(ranks)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "expected a table of tensors, found dict"),
        (torch.ones(2), "expected a table of tensors, found Tensor"),
        ({"a": 3}, "expected tensors by name, found a"),
        ({"a": torch.ones(2)}, "expected the tensors of model_world_size_4_rank_0.pt, found a di"),
    ],
)
def test_a_rank_of_something_else(ranks: Path, state: object, message: str) -> None:
    torch.save(state, ranks / "model_world_size_4_rank_1.pt")
    assert message in refusal(ranks)


def test_plain_tensors_of_several_ranks(ranks: Path) -> None:
    """Copies are taken; what differs may be anything."""
    name = "model.embed_tokens.weight"
    for rank in range(4):
        torch.save({name: torch.ones(3, 2)}, ranks / f"model_world_size_4_rank_{rank}.pt")
    assert torch.equal(Ranks(ranks).read([name])[name], torch.ones(3, 2))
    torch.save({name: torch.zeros(3, 2)}, ranks / "model_world_size_4_rank_3.pt")
    assert f"tensor {name}: expected DTensors, or the same on all ranks" in refusal(ranks)
