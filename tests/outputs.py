"""Outputs of relex, changed in one place, or made up so that every digest fits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from folders import SINGLE
from relex_ext.seals import sealed


@contextmanager
def flipped(path: Path, at: int, mask: int = 1) -> Iterator[None]:
    """Bits of one byte flipped, for a while."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))
        file.flush()
        yield
        file.seek(at)
        file.write(bytes([byte]))


def extents(shard: Path) -> dict[str, tuple[int, int]]:
    """Tensor → where it begins and ends in the file."""
    data = shard.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    return {
        name: (start + value["data_offsets"][0], start + value["data_offsets"][1])
        for name, value in header.items()
        if name != "__metadata__"
    }


def place_of(folder: Path, name: str) -> tuple[Path, int, int]:
    """The shard of a model folder that has a tensor, and where in it that begins and ends."""
    return next(
        (shard, *found[name])
        for shard in sorted(folder.glob("*.safetensors"))
        if name in (found := extents(shard))
    )


def record_in(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "relex.json").read_bytes())
    return found


def reseal(out: Path, record: dict[str, Any]) -> None:
    (out / "relex.json").write_bytes(sealed(record))


def forge(out: Path, target: str, name: str, at: int = 0, mask: int = 1) -> None:
    """Flip bits of a tensor's byte ``at``, and let its digest follow."""
    shard, begin, end = place_of(out / target, name)
    data = bytearray(shard.read_bytes())
    data[begin + at] ^= mask
    shard.write_bytes(data)
    record = record_in(out)
    record["sha256"]["tensors"][target][name] = hashlib.sha256(data[begin:end]).hexdigest()
    reseal(out, record)


def sparse_output(out: Path, nbytes: int) -> Path:
    """An output with a tensor of so many zeros that take no disk, and of whose digest nobody has
    an idea."""
    folder = out / "step_1"
    folder.mkdir(parents=True)
    entry = {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}
    header = json.dumps({"w": entry}).encode()
    region = len(header).to_bytes(8, "little") + header
    with (folder / SINGLE).open("wb") as file:
        file.write(region)
        file.truncate(len(region) + nbytes)
    (out / "weights.safetensors").write_bytes(b"")
    digests = {
        "tensors": {"step_1": {"w": "0" * 64}},
        "files": {
            f"step_1/{SINGLE}": hashlib.sha256(region).hexdigest(),
            "weights.safetensors": "0" * 64,
        },
    }
    reseal(out, {
        "format": "relex/1", "base": "", "checkpoints": {}, "identities": {},
        "targets": {"step_1": 1.0}, "options": {"dtype": None, "delta_dtype": "F32"},
        "carried": [], "sha256": digests,
    })  # fmt: skip
    return out
