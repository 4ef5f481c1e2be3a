"""Pack a training run into one small file and unpack it again, bit for bit.

    python examples/tiny_grpo/pack.py unpack DEST
    python examples/tiny_grpo/pack.py pack RUN OUT [--every N] [--held-out SCORES.json ...]

Neighbouring checkpoints of a run differ in few bfloat16 words, and by a unit in the last place
where they do. So the file holds the base and, for each kept step, the difference of every word
from the kept step before, as small integers, compressed with LZMA. The layout is:

    8 bytes   magic
    8 bytes   length of the header, little-endian
    header    JSON: steps, companion files, SHA-256 of every file, the training record
    rest      an xz stream: the base's low and high bytes, the differences' low and high bytes

Needs only numpy; importable as ``unpack(dest)``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint16]

MAGIC = b"RELEXRUN"
FORMAT = 1
WEIGHTS = "model.safetensors"
SHIPPED = Path(__file__).resolve().parent / "trajectory.relexrun"
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0}]


class PackError(ValueError):
    """The run cannot be packed, or the packed file is damaged."""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _flip_negatives(words: Words) -> Words:
    """Map bfloat16 words to integers that grow with the number they stand for.

    Without this, a step across zero would look like a huge difference.
    """
    return np.where(words & 0x8000, ~words, words | 0x8000).astype(np.uint16)


def _restore_negatives(ordered: Words) -> Words:
    """Undo :func:`_flip_negatives`."""
    return np.where(ordered & 0x8000, ordered & 0x7FFF, ~ordered).astype(np.uint16)


def _zigzag(differences: Words) -> Words:
    """Map differences modulo 2**16 to 0, -1, 1, -2, 2 ... in counting order."""
    sign = np.where(differences & 0x8000, 0xFFFF, 0)
    return ((differences << 1) ^ sign).astype(np.uint16)


def _unzigzag(codes: Words) -> Words:
    """Undo :func:`_zigzag`."""
    sign = np.where(codes & 1, 0xFFFF, 0)
    return ((codes >> 1) ^ sign).astype(np.uint16)


def _to_planes(words: Words) -> bytes:
    """Return all low bytes, then all high bytes; the latter are nearly all zero."""
    return (words & 0xFF).astype(np.uint8).tobytes() + (words >> 8).astype(np.uint8).tobytes()


def _from_planes(planes: npt.NDArray[np.uint8]) -> Words:
    """Undo :func:`_to_planes`."""
    low, high = planes.reshape(2, -1).astype(np.uint16)
    return (low | (high << 8)).astype(np.uint16)


def _read_weights(path: Path) -> tuple[bytes, Words]:
    """Split a safetensors file of bfloat16 tensors into its head and its words."""
    data = path.read_bytes()
    head_size = 8 + int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8:head_size])
    kinds = {entry["dtype"] for name, entry in tensors.items() if name != "__metadata__"}
    if kinds != {"BF16"}:
        raise PackError(f"{path} holds {sorted(kinds)}; only BF16 can be packed")
    return data[:head_size], np.frombuffer(data, dtype="<u2", offset=head_size)


def _read_companions(folder: Path) -> dict[str, str]:
    """Read every file of a model folder except the weights."""
    return {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(folder.iterdir())
        if path.name != WEIGHTS
    }


def _folder_name(step: int) -> str:
    return f"checkpoint-{step}" if step else "base"


def pack(run: Path, out: Path, every: int = 1, held_out: Sequence[dict[str, Any]] = ()) -> int:
    """Pack ``run``'s base and every ``every``-th step into ``out``; return the size in bytes.

    ``held_out``, results that ``score.py --json`` wrote, is filed with the run's ``record.json``.
    """
    found = sorted(int(p.name.removeprefix("checkpoint-")) for p in run.glob("checkpoint-*"))
    steps = [step for step in found if step % every == 0]
    head, base = _read_weights(run / "base" / WEIGHTS)
    companions = _read_companions(run / "base")
    ordered = [_flip_negatives(base)]
    for step in steps:
        folder = run / _folder_name(step)
        step_head, words = _read_weights(folder / WEIGHTS)
        if step_head != head or _read_companions(folder) != companions:
            raise PackError(f"{folder} differs from the base in more than its weights")
        ordered.append(_flip_negatives(words))
    header = {
        "format": FORMAT,
        "steps": steps,
        "weights_head": head[8:].decode(),
        "weights_sha256": [
            _sha256((run / _folder_name(step) / WEIGHTS).read_bytes()) for step in [0, *steps]
        ],
        "companions": companions,
        "companions_sha256": {name: _sha256(text.encode()) for name, text in companions.items()},
        "record": json.loads((run / "record.json").read_text()) | {"held_out": list(held_out)},
    }
    history = np.stack(ordered)
    differences = _zigzag(history[1:] - history[:-1])
    # One weight's history side by side: a weight that stood still tends to go on doing so.
    planes = _to_planes(base) + _to_planes(np.ascontiguousarray(differences.T))
    text = json.dumps(header, separators=(",", ":")).encode()
    body = lzma.compress(planes, format=lzma.FORMAT_XZ, filters=LZMA_FILTERS)
    out.write_bytes(MAGIC + len(text).to_bytes(8, "little") + text + body)
    return out.stat().st_size


def read_header(source: Path = SHIPPED) -> dict[str, Any]:
    """Return the header of a packed file: steps, checksums and the training record."""
    with source.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise PackError(f"{source} is not a packed run")
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    if header["format"] != FORMAT:
        raise PackError(f"{source} has format {header['format']}; this reads format {FORMAT}")
    return header


def _write_folders(source: Path, target: Path) -> None:
    """Write every folder of the packed run into the empty folder ``target``."""
    header = read_header(source)
    data = source.read_bytes()
    body_start = len(MAGIC) + 8 + int.from_bytes(data[len(MAGIC) :][:8], "little")
    try:
        body = lzma.decompress(data[body_start:])
    except lzma.LZMAError as error:
        raise PackError(f"{source} is damaged: {error}") from error
    planes = np.frombuffer(body, dtype=np.uint8)
    steps: list[int] = header["steps"]
    words_per_model = planes.size // (2 * (1 + len(steps)))
    base = _from_planes(planes[: 2 * words_per_model])
    codes = _from_planes(planes[2 * words_per_model :]).reshape(words_per_model, len(steps))
    head_text = header["weights_head"].encode()
    head = len(head_text).to_bytes(8, "little") + head_text
    ordered = _flip_negatives(base)
    for index, step in enumerate([0, *steps]):
        if step:
            ordered += _unzigzag(codes[:, index - 1])
        folder = target / _folder_name(step)
        folder.mkdir()
        weights = head + _restore_negatives(ordered).astype("<u2").tobytes()
        _write_checked(folder / WEIGHTS, weights, header["weights_sha256"][index])
        for name, text in header["companions"].items():
            _write_checked(folder / name, text.encode(), header["companions_sha256"][name])
    (target / "record.json").write_text(json.dumps(header["record"], indent=1) + "\n")


def _write_checked(path: Path, data: bytes, expected: str) -> None:
    if _sha256(data) != expected:
        raise PackError(f"checksum of {path.parent.name}/{path.name} does not match")
    path.write_bytes(data)


def unpack(dest: Path, source: Path = SHIPPED) -> Path:
    """Unpack ``source`` into the new folder ``dest`` and return ``dest``.

    ``dest`` appears only when complete and verified; a failure leaves nothing behind.
    """
    if dest.exists():
        raise FileExistsError(f"{dest} exists already")
    dest.parent.mkdir(parents=True, exist_ok=True)
    partial = dest.with_name(f".{dest.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        _write_folders(source, partial)
        partial.rename(dest)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return dest


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="pack a run folder")
    packing.add_argument("run", type=Path)
    packing.add_argument("out", type=Path)
    packing.add_argument("--every", type=int, default=1, help="keep every N-th step")
    packing.add_argument(
        "--held-out", type=Path, nargs="*", default=[], help="results written by score.py --json"
    )
    unpacking = commands.add_parser("unpack", help="unpack into a new folder")
    unpacking.add_argument("dest", type=Path)
    unpacking.add_argument("--source", type=Path, default=SHIPPED)
    options = parser.parse_args(argv)
    if options.command == "pack":
        held_out = [json.loads(path.read_text()) for path in options.held_out]
        size = pack(options.run, options.out, options.every, held_out)
        print(f"{options.out}: {size:,} bytes")
    else:
        print(unpack(options.dest, options.source))


if __name__ == "__main__":
    main()
