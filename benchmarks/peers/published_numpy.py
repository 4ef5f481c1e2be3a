"""Peer: RELEX as its paper states it, written out of core in numpy with care.

    python published_numpy.py LOAD_DIR TARGET OUT_FILE

Per tensor, blocks of a million columns. Sixteen threads read the block's strips of all checkpoints
with pread and widen them to fp32 deltas in place, one block ahead of the arithmetic. Gram matrices
by the BLAS in fp32, summed in fp64; eigh; a least-squares line; then the blocks again (not read
again where the tensor is one block) for base + w·Δ, rounded to bf16, written in place. Blocks are
cut into pieces, one thread per core: OpenBLAS alone uses one core for a product as flat as this.
The file is synced, as ours is.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 20
PIECE = 1 << 16
READERS = 16


class Shard:
    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        size = int.from_bytes(os.pread(self.descriptor, 8, 0), "little")
        self.header: dict[str, Any] = json.loads(os.pread(self.descriptor, size, 8))
        self.header.pop("__metadata__", None)
        self.start = 8 + size

    def read(self, name: str, begin: int, into: NDArray[np.uint16]) -> None:
        view = into.data.cast("B")
        at = self.start + self.header[name]["data_offsets"][0] + 2 * begin
        done = 0
        while done < len(view):
            done += os.preadv(self.descriptor, [view[done:]], at + done)


@dataclass
class Block:
    """Columns [begin, end) of one tensor in memory."""

    begin: int
    end: int
    base: NDArray[np.float32]
    deltas: NDArray[np.float32]


class Reader:
    def __init__(self, base: Shard, run: list[Shard]) -> None:
        self.base = base
        self.run = run
        self.pool = ThreadPoolExecutor(READERS)
        # Two of each: one block is computed on while the next is read.
        self.words = [np.empty((len(run) + 1, BLOCK), np.uint16) for _ in range(2)]
        self.deltas = [np.empty((len(run), BLOCK), np.float32) for _ in range(2)]
        self.origins = [np.empty(BLOCK, np.float32) for _ in range(2)]

    def blocks(self, name: str, columns: int) -> Iterator[Block]:
        starts = range(0, columns, BLOCK)
        ahead = self._submit(name, 0, columns, 0)
        for i, _ in enumerate(starts):
            block, rows = ahead
            for row in rows:
                row.result()
            if i + 1 < len(starts):
                ahead = self._submit(name, starts[i + 1], columns, (i + 1) % 2)
            yield block

    def _submit(self, name: str, begin: int, columns: int, turn: int) -> tuple[Block, list[Any]]:
        n = min(BLOCK, columns - begin)
        words, origin = self.words[turn], self.origins[turn][:n]
        # Rows side by side without gaps, as the BLAS likes them.
        deltas = self.deltas[turn].reshape(-1)[: len(self.run) * n].reshape(len(self.run), n)
        base = self.pool.submit(self._widen, self.base, name, begin, words[-1][:n], origin)

        def row(t: int, base: Future[None]) -> None:
            self.run[t].read(name, begin, words[t][:n])
            widen(words[t][:n], deltas[t])
            base.result()
            np.subtract(deltas[t], origin, out=deltas[t])

        rows = [self.pool.submit(row, t, base) for t in range(len(self.run))]
        return Block(begin, begin + n, origin, deltas), [base, *rows]

    @staticmethod
    def _widen(
        shard: Shard, name: str, begin: int, words: NDArray[np.uint16], out: NDArray[np.float32]
    ) -> None:
        shard.read(name, begin, words)
        widen(words, out)


def weights(gram: NDArray[np.float64], steps: NDArray[np.float64], target: float) -> Any:
    """w with base + w·Δ the forecast: u · line(target) / σ."""
    values, vectors = np.linalg.eigh(gram)
    if values[-1] <= 0:
        return np.zeros(len(gram), np.float32)
    sigma, u = np.sqrt(values[-1]), vectors[:, -1]
    slope, intercept = np.polyfit(steps, sigma * u, 1)
    return (u * (slope * target + intercept) / sigma).astype(np.float32)


def widen(words: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """bf16 → fp32: words << 16, as a product because numpy's shift is not vectorised."""
    np.multiply(words, np.uint32(1 << 16), out=out.view(np.uint32), dtype=np.uint32)


def round_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """To nearest even; overwrites ``values``."""
    bits = values.view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    bits += odd
    high: NDArray[np.uint16] = values.view(np.uint16)[1::2].copy()
    return high


def gram_of(deltas: NDArray[np.float32]) -> NDArray[np.float32]:
    product: NDArray[np.float32] = deltas @ deltas.T
    return product


def pieces(columns: int) -> list[slice]:
    return [slice(c, min(c + PIECE, columns)) for c in range(0, columns, PIECE)]


def open_run(load: Path) -> tuple[Path, dict[int, Path]]:
    """The base's file and step → file; folders of one shard, as load.py writes them."""
    found = {}
    for folder in (load / "run").iterdir():
        if match := re.search(r"(\d+)$", folder.name):
            found[int(match[1])] = folder / "model.safetensors"
    return load / "base" / "model.safetensors", dict(sorted(found.items()))


def main() -> None:
    load, target, out = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    base_path, run = open_run(load)
    base = Shard(base_path)
    reader = Reader(base, [Shard(path) for path in run.values()])
    cores = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    steps = np.array(list(run), np.float64)
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    os.pwrite(descriptor, os.pread(base.descriptor, base.start, 0), 0)
    for name, entry in base.header.items():
        if entry["dtype"] != "BF16":
            sys.exit(f"{name}: expected BF16, found {entry['dtype']}")
        begin, end = entry["data_offsets"]
        columns = (end - begin) // 2
        gram = np.zeros((len(run), len(run)))
        for block in reader.blocks(name, columns):
            parts = [block.deltas[:, piece] for piece in pieces(block.end - block.begin)]
            for product in cores.map(gram_of, parts):
                gram += product
        w = weights(gram, steps, target)

        def write(block: Block, piece: slice, w: Any = w, at: int = base.start + begin) -> None:
            forecast = w @ block.deltas[:, piece]
            forecast += block.base[piece]
            at += 2 * (block.begin + piece.start)
            os.pwrite(descriptor, round_bf16(forecast).data.cast("B"), at)

        again = [block] if columns <= BLOCK else reader.blocks(name, columns)
        for kept in again:
            cuts = pieces(kept.end - kept.begin)
            list(cores.map(write, [kept] * len(cuts), cuts))
    os.fsync(descriptor)


if __name__ == "__main__":
    main()
