"""Outputs of relex, changed in one place, or changed such that every digest fits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from folders import SINGLE, Raw, file_bytes
from relex_ext import Verification, verify
from relex_ext.output import RECORD, WEIGHTS
from relex_ext.seals import sealed

OTHER = "its bytes are not those that were written"


def check(out: Path, samples: int = 0, **options: Any) -> Verification:
    return verify(out, samples=samples, progress=False, **options)


def files_of(out: Path) -> list[Path]:
    """All that is recorded, and the record."""
    return sorted(p for p in out.rglob("*") if p.is_file() and p.name != "README.md")


@contextmanager
def flipped(path: Path, at: int, mask: int = 1) -> Iterator[None]:
    """Bits of one byte flipped, for a while."""
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        (byte,) = file.read(1)
        for value in (byte ^ mask, byte):
            file.seek(at)
            file.write(bytes([value]))
            if value != byte:
                yield


def extents(shard: Path) -> dict[str, tuple[int, int]]:
    """Tensor → where it begins and ends in the file."""
    data = shard.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    described = json.loads(data[8:start])
    described.pop("__metadata__", None)
    offsets = {name: value["data_offsets"] for name, value in described.items()}
    return {name: (start + begin, start + end) for name, (begin, end) in offsets.items()}


def place_of(folder: Path, name: str) -> tuple[Path, int, int]:
    """The shard of a model folder that has a tensor, and where in it that begins and ends."""
    return next(
        (shard, *found[name])
        for shard in sorted(folder.glob("*.safetensors"))
        if name in (found := extents(shard))
    )


def record_in(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / RECORD).read_bytes())
    return found


def rewrite(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what relex.json says, and let its seal follow."""
    record = record_in(out)
    change(record)
    (out / RECORD).write_bytes(sealed(record))


def redigest(out: Path) -> None:
    """Let all digests follow what lies there."""

    def change(record: dict[str, Any]) -> None:
        tensors, files = record["sha256"]["tensors"], record["sha256"]["files"]
        for place in files:
            data, start = (out / place).read_bytes(), None
            target, _, name = place.rpartition("/")
            if target and name.endswith(".safetensors"):
                start = 8 + int.from_bytes(data[:8], "little")
                for tensor, (begin, end) in extents(out / place).items():
                    tensors[target][tensor] = hashlib.sha256(data[begin:end]).hexdigest()
            files[place] = hashlib.sha256(data[:start]).hexdigest()

    rewrite(out, change)


def sparse_output(out: Path, nbytes: int) -> Path:
    """An output with a tensor of so many zeros that take no disk, and another digest."""
    folder = out / "step_1"
    folder.mkdir(parents=True)
    header = file_bytes({"w": Raw("U8", (nbytes,), b"")}).replace(b"[0, 0]", b"[0, %d]" % nbytes)
    header = (len(header) - 8).to_bytes(8, "little") + header[8:]
    with (folder / SINGLE).open("wb") as file:
        file.write(header)
        file.truncate(len(header) + nbytes)
    files = {f"step_1/{SINGLE}": hashlib.sha256(header).hexdigest(), WEIGHTS: "0" * 64}
    record = {
        "format": "relex/1", "base": "", "checkpoints": {}, "identities": {}, "carried": [],
        "targets": {"step_1": 1.0}, "options": {"dtype": None, "delta_dtype": "F32"},
        "sha256": {"tensors": {"step_1": {"w": "0" * 64}}, "files": files},
    }  # fmt: skip
    (out / RECORD).write_bytes(sealed(record))
    return out
