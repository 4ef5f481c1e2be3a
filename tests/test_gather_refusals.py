"""Checkpoints in pieces that do not hold together, or are hostile: one line, and nothing is run."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from relex_ext import gather
from relex_ext.errors import InputError
from relex_ext.gathering.distributed import Distributed
from relex_ext.gathering.inert import MOST_ARGUMENTS
from relex_ext.gathering.metadata import ALLOWED, read_metadata
from relex_ext.gathering.ranks import Ranks

EMBED = "model.model.embed_tokens.weight"


class Call:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.fixture
def dcp(pieces: Path, tmp_path: Path) -> Path:
    """A checkpoint of two processes, to be changed."""
    place = tmp_path / "run" / "checkpoint-10" / "pytorch_model_fsdp_0"
    shutil.copytree(pieces / "dcp-2" / "checkpoint-10" / "pytorch_model_fsdp_0", place)
    return place


@pytest.fixture
def ranks(pieces: Path, tmp_path: Path) -> Path:
    """The files of four ranks, to be changed."""
    place = tmp_path / "run" / "global_step_10" / "actor"
    shutil.copytree(pieces / "fsdp2-4" / "global_step_10" / "actor", place)
    return place


def refusal(place: Path) -> str:
    """What gather says of the run that a place is in. It writes nothing."""
    out = place.parents[2] / "out"
    with pytest.raises(InputError, match=f"^{place}") as caught:
        gather(place.parents[1], out, progress=False)
    assert not out.exists()
    assert str(caught.value).isprintable()
    return str(caught.value)


def change(place: Path, how: Callable[[Metadata], object]) -> None:
    """A checkpoint's metadata, changed in memory and written back."""
    metadata = pickle.loads((place / ".metadata").read_bytes())
    how(metadata)
    (place / ".metadata").write_bytes(pickle.dumps(metadata))


# ---- pickles that call ---------------------------------------------------------------------------

CALLS = {
    "posix.system": lambda mark: Call(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda mark: Call(getattr, Path, "touch"),
    "pathlib.Path.touch": lambda mark: Call(Path.touch, mark),
    "torch.serialization.load": lambda mark: Call(torch.load, mark),
    "torch.nn.modules.linear.Linear": lambda mark: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("named", CALLS)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_metadata_that_calls(dcp: Path, tmp_path: Path, named: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    hostile = CALLS[named](mark)
    whole = pickle.dumps(hostile, protocol)
    metadata = pickle.loads((dcp / ".metadata").read_bytes())
    metadata.planner_data = hostile
    for data in (whole, pickle.dumps(metadata, protocol)):
        (dcp / ".metadata").write_bytes(data)
        assert "a pickle that names " in refusal(dcp)
        assert not mark.exists()


def test_metadata_changes_nothing_of_torch(dcp: Path) -> None:
    """A pickle can set attributes of what it names: of a class that all share, for good."""
    setting = b"ctorch\nSize\n(N(S'marked'\nI1\ndtb."
    (dcp / ".metadata").write_bytes(setting)
    assert "expected torch's metadata" in refusal(dcp)
    assert not hasattr(torch.Size, "marked")
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    (dcp / ".metadata").write_bytes(name + setting.partition(b"\n")[2].partition(b"\n")[2])
    assert "expected torch's metadata" in refusal(dcp)
    assert not hasattr(Metadata, "marked")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected torch's metadata, found"),
        (b"\x80\x04.", "expected torch's metadata, found"),
        (b"\x80\x04N.", "expected torch's metadata, found NoneType"),
        (b"N" + b"r\xff\xff\xff\xff" + b".", "metadata, found: place "),
        (b"Np99999999999\n.", "metadata, found: place "),
        (b"]" * 100_000 + b"a" * 99_999 + b".", "expected torch's metadata, found list"),
        (
            b"ctorch\nSize\n(" + b"N" * (MOST_ARGUMENTS + 1) + b"tR.",
            "metadata, found: more than 64 arguments of torch.Size",
        ),
        (b"\x96" + b"\xff" * 7 + b"\x7f.", "expected torch's metadata, found"),
    ],
)
def test_pickles_that_cost(dcp: Path, data: bytes, message: str) -> None:
    (dcp / ".metadata").write_bytes(data)
    assert message in refusal(dcp)


def test_what_a_metadata_may_name_is_not_even_imported(dcp: Path) -> None:
    assert all(path.split(".")[0] in ("torch", "collections", "pathlib") for path in ALLOWED)
    found = read_metadata(dcp)
    assert found[EMBED].shape == (7, 11)
    assert [(chunk.offsets, chunk.sizes) for chunk in found[EMBED].chunks] == [
        ((0, 0), (4, 11)), ((4, 0), (3, 11)),
    ]  # fmt: skip


def test_a_piece_that_calls(dcp: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save(Call(eval, f"open({str(mark)!r}, 'w')"), tmp_path / "hostile")
    hostile = (tmp_path / "hostile").read_bytes()
    (tmp_path / "hostile").unlink()
    behind = (dcp / "__0_0.distcp").stat().st_size
    with (dcp / "__0_0.distcp").open("ab") as file:
        file.write(hostile)

    def point_at_it(metadata: Metadata) -> None:
        _piece(metadata).offset, _piece(metadata).length = behind, len(hostile)

    change(dcp, point_at_it)
    with torch.serialization.safe_globals([eval]):
        assert f"{dcp}: cannot be read: " in refusal(dcp)
    assert not mark.exists()


def test_a_weight_that_is_no_tensor(dcp: Path, tmp_path: Path) -> None:
    """What torch unpickles without limits is never asked for."""
    mark = tmp_path / "mark"
    data = pickle.dumps(Call(os.system, f"touch {mark}"))
    (dcp / "__0_0.distcp").write_bytes(data)
    index = MetadataIndex(EMBED)

    def replace(metadata: Metadata) -> None:
        info = next(iter(metadata.storage_data.values()))
        info.relative_path, info.offset, info.length = "__0_0.distcp", 0, len(data)
        metadata.state_dict_metadata = {EMBED: BytesStorageMetadata()}
        metadata.storage_data = {index: info}

    change(dcp, replace)
    assert "expected names like model.embed_tokens.weight, found no tensor" in refusal(dcp)
    assert not mark.exists()


@pytest.mark.parametrize("named", CALLS)
def test_a_rank_file_that_calls(ranks: Path, tmp_path: Path, named: str) -> None:
    """Even where this process trusts what it names."""
    mark = tmp_path / "mark"
    torch.save({"a": CALLS[named](mark)}, ranks / "model_world_size_4_rank_2.pt")
    with torch.serialization.safe_globals([os.system, eval, torch.load, torch.nn.Linear]):
        before = set(torch.serialization.get_safe_globals())
        assert "rank_2.pt: expected tensors that torch.load(weights_only=True)" in refusal(ranks)
        assert set(torch.serialization.get_safe_globals()) == before
    assert not mark.exists()


# ---- what does not hold together -----------------------------------------------------------------


def _piece(metadata: Metadata, number: int = 0) -> Any:
    chunk = metadata.state_dict_metadata[EMBED].chunks[number]
    return metadata.storage_data[MetadataIndex(EMBED, chunk.offsets)]


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
        lambda m: setattr(_piece(m), "offset", -4),
        "expected a whole number, found -4",
    ),
    "too few bytes": (
        lambda m: setattr(_piece(m), "length", 175),
        f"tensor {EMBED}: expected its bytes in __0_0.distcp, found 175",
    ),
    "beyond the end": (
        lambda m: setattr(_piece(m), "offset", 1 << 40),
        "__0_0.distcp: expected 10995",
    ),
    "the same bytes twice": (
        lambda m: [setattr(i, "length", 4000) for i in m.storage_data.values()],
        "__0_0.distcp: expected ",
    ),
    "another folder": (
        lambda m: setattr(_piece(m), "relative_path", "../__0_0.distcp"),
        "expected a plain file name, found ../__0_0.distcp",
    ),
    "no file": (
        lambda m: setattr(_piece(m), "relative_path", "__9_0.distcp"),
        "__9_0.distcp: cannot be read: No such file",
    ),
    "transformed": (
        lambda m: setattr(_piece(m), "transform_descriptors", ["stream.zstd"]),
        f"tensor {EMBED}: expected pieces as they are, found transformed ones",
    ),
    "no text": (
        lambda m: setattr(_piece(m), "relative_path", 3),
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


@pytest.mark.parametrize("kind", ["dcp", "ranks"])
def test_flipped_bytes(kind: str, request: pytest.FixtureRequest) -> None:
    """Whatever they make of the pickle, it is one line or the same kind of tensors."""
    place: Path = request.getfixturevalue(kind)
    path = place / (".metadata" if kind == "dcp" else "model_world_size_4_rank_0.pt")
    data = path.read_bytes()
    random.seed(kind)
    refused = 0
    for _ in range(300):
        flipped = bytearray(data)
        for _ in range(random.randint(1, 4)):
            flipped[random.randrange(len(data))] = random.randrange(256)
        path.write_bytes(flipped)
        try:
            (Distributed if kind == "dcp" else Ranks)(place)
        except InputError as error:
            refused += 1
            assert str(error).startswith(str(place))
    assert refused > 100
