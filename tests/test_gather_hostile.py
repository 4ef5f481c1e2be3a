"""Checkpoints in pieces that are hostile: one line, and nothing of them is run."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from broken_pieces import EMBED, change, piece, refusal
from relex_ext.errors import InputError
from relex_ext.gathering.distributed import Distributed
from relex_ext.gathering.inert import MOST_ARGUMENTS
from relex_ext.gathering.metadata import ALLOWED, read_metadata
from relex_ext.gathering.ranks import Ranks


class Call:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


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
        piece(metadata).offset, piece(metadata).length = behind, len(hostile)

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


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(1 << 20, 1 << 20),
        torch.ones(3, device="meta"),
        torch.ones(3).to_sparse(),
    ],
)
def test_tensors_that_are_not_in_their_file(ranks: Path, tensor: torch.Tensor) -> None:
    """One element for 4 TiB of them, or none."""
    for rank in range(4):
        state = {"model.embed_tokens.weight": tensor}
        torch.save(state, ranks / f"model_world_size_4_rank_{rank}.pt")
    assert "expected plain tensors or DTensors, found another kind" in refusal(ranks)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.\ud800", "expected a printable name"),
        ("model.\x1b[2J", "expected a printable name"),
        ("_orig_mod.model.a", "twice, as model.a and as _orig_mod.model.a"),
    ],
)
def test_names_that_are_none(ranks: Path, name: str, message: str) -> None:
    for rank in range(4):
        state = {key: torch.ones(2) for key in ("model.embed_tokens.weight", "model.a", name)}
        torch.save(state, ranks / f"model_world_size_4_rank_{rank}.pt")
    assert message in refusal(ranks)
