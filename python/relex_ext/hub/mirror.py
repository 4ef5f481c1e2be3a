"""Checkpoints on the Hub of which only so much is on disk as is being read: ``--max-local``.

A mirror has the shape of a Hub cache. Its weights are files of holes with true headers; a tensor's
bytes are fetched by ranges when they are about to be read, and punched out again when others need
the room. What has been let go of stays while there is room for it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from relex_ext.errors import InputError
from relex_ext.headers import Shard, TensorEntry
from relex_ext.hub.holes import BLOCK, Scratch, allocated, punch
from relex_ext.hub.ranges import PIECE, Ranges
from relex_ext.hub.repositories import Repository
from relex_ext.strictjson import LONGEST
from relex_ext.trajectory import Tensor, Trajectory

WORKERS = 8
"""Requests at a time; each holds a piece in memory."""

WEIGHTS = ".safetensors"

_POLL = 0.01


class Extent(NamedTuple):
    """Bytes [begin, end) of a blob's file."""

    blob: Path
    begin: int
    end: int

    @property
    def blocks(self) -> tuple[int, int]:
        """The same in whole blocks of the file system: what it takes on disk, and at most."""
        return self.begin // BLOCK * BLOCK, -(-self.end // BLOCK) * BLOCK

    @property
    def on_disk(self) -> int:
        first, last = self.blocks
        return last - first


class Mirror:
    """``limit``: bytes on disk; ``least``: that it has to be; ``total``: what there is to fetch."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.least = self.total = 0
        scratch = Scratch()
        self.folder = scratch.folder
        self._kept = 0
        """Bytes of headers, configs, integer buffers."""
        self._places: dict[Path, tuple[Repository, str]] = {}
        """A blob → a path of some repository that has it."""
        self._held: dict[Extent, int] = {}
        """What is here → how many have fetched it and not let go, the longest idle first."""
        self._by_blob: dict[Path, set[Extent]] = {}
        """What is here or kept."""
        self._ranges = Ranges()
        self._room = threading.Lock()
        self._fetching = threading.Lock()
        weakref.finalize(self, scratch.remove)

    # ---- made ----------------------------------------------------------------------------------

    def add(self, repository: Repository, paths: Sequence[str]) -> Path:
        """A repository's files: weights as holes with headers, the others as they are."""
        files = repository.files
        if files is None:
            raise InputError(
                f"max_local: {repository.name}: expected a Hub to read from, found none"
            )
        place = repository.fetch([p for p in paths if not p.endswith(WEIGHTS)], self.folder)
        fresh: list[Path] = []
        for path in (p for p in paths if p.endswith(WEIGHTS)):
            blob, link = place.parents[1] / "blobs" / files[path].blob, place / path
            for folder in (blob.parent, link.parent):
                folder.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(blob, link.parent))
            source = (repository, path)
            if self._places.setdefault(blob, source) is source:  # from several threads
                self._by_blob[blob] = set()
                with blob.open("wb") as made:
                    made.truncate(files[path].size)
                fresh.append(blob)
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="relex-hub") as threads:
            list(threads.map(self._fetch_header, fresh))
        return place

    def complete(self, trajectory: Trajectory) -> None:
        """Everything is added. What is copied, not computed, is fetched for good.

        Raises:
            InputError: the limit is too small.
        """
        copied = self._extents(t.base for t in trajectory.tensors if not t.trained)
        self._kept = sum(map(allocated, self.folder.rglob("*")))
        self._kept += sum(extent.on_disk for extent in copied)
        sizes = sorted(map(self._on_disk, trajectory.trained))
        self.least = self._kept + sum(sizes[-2:])
        self.total = self._kept + sum(sizes)
        if self.limit < self.least:
            raise InputError(
                f"max_local: expected at least {self.least} bytes, for two tensors of all "
                f"checkpoints, found {self.limit}"
            )
        for extent in copied:
            self._by_blob[extent.blob].add(extent)
            for piece in _pieces(extent):
                self._fetch_piece(piece)

    def _fetch_header(self, blob: Path) -> None:
        end = 8 + int.from_bytes(self._fetch_piece(Extent(blob, 0, 8)), "little")
        if 8 < end <= min(LONGEST, blob.stat().st_size):  # else its reader says what is wrong
            for piece in _pieces(Extent(blob, 8, end)):
                self._fetch_piece(piece)
            self._by_blob[blob].add(Extent(blob, 0, end))

    # ---- read ----------------------------------------------------------------------------------

    def keeps(self, shard: Shard) -> bool:
        """Whether its file is one of holes, which change while it is read."""
        return self.folder in shard.path.parents

    def fetch(self, entries: Sequence[TensorEntry], over: Callable[[], bool]) -> bool:
        """Bring tensors' bytes as soon as there is room; False if ``over()`` before."""
        extents = self._extents(entries)
        with self._fetching:
            with self._room:
                missing = [extent for extent in extents if extent not in self._held]
            while not self._make_room(missing, extents):
                if over():
                    return False
                time.sleep(_POLL)
            pieces = [piece for extent in missing for piece in _pieces(extent)]
            with ThreadPoolExecutor(WORKERS, thread_name_prefix="relex-hub") as threads:
                try:
                    list(threads.map(partial(self._fetch_piece_unless, over), pieces))
                except BaseException:
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise
        return not over()

    def release(self, entries: Sequence[TensorEntry]) -> None:
        """Their bytes may go when others need the room."""
        with self._room:
            for extent in self._extents(entries):
                self._held[extent] = count = self._held.pop(extent) - 1
                assert count >= 0, "released as often as fetched"

    def _extents(self, entries: Iterable[TensorEntry]) -> dict[Extent, None]:
        """Those of the entries that are not whole here, each once, in their order."""
        return {
            Extent(Path(os.path.realpath(e.shard.path)), e.offset, e.offset + e.nbytes): None
            for e in entries
            if e.nbytes and self.keeps(e.shard)
        }

    def _on_disk(self, tensor: Tensor) -> int:
        return sum(extent.on_disk for extent in self._extents([tensor.base, *tensor.rows]))

    def _make_room(self, missing: Sequence[Extent], wanted: Collection[Extent]) -> bool:
        """Punch out what is idle until the missing fit, and count them in; else False."""
        with self._room:
            used = self._kept + sum(extent.on_disk for extent in self._held)
            needed = sum(extent.on_disk for extent in missing)
            idle = [e for e, count in self._held.items() if count == 0 and e not in wanted]
            while used + needed > self.limit and idle:
                extent = idle.pop(0)
                del self._held[extent]
                self._by_blob[extent.blob].remove(extent)
                self._punch(extent)
                used -= extent.on_disk
            if used + needed > self.limit:
                return False
            for extent in wanted:
                self._held[extent] = self._held.pop(extent, 0) + 1
                self._by_blob[extent.blob].add(extent)
            return True

    def _punch(self, extent: Extent) -> None:
        """Give back its blocks but for those that a neighbour has a part of."""
        first, last = extent.blocks
        others = self._by_blob[extent.blob]
        if any(other.begin < extent.begin and other.end > first for other in others):
            first += BLOCK
        if any(other.end > extent.end and other.begin < last for other in others):
            last -= BLOCK
        punch(extent.blob, first, last)

    def _fetch_piece_unless(self, over: Callable[[], bool], piece: Extent) -> None:
        if not over():
            self._fetch_piece(piece)

    def _fetch_piece(self, piece: Extent) -> bytes:
        repository, path = self._places[piece.blob]
        size = piece.blob.stat().st_size
        data = self._ranges.read(repository.name, path, size, piece.begin, piece.end)
        with piece.blob.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, piece.begin)
        return data


def _pieces(extent: Extent) -> list[Extent]:
    begins = range(extent.begin, extent.end, PIECE)
    return [Extent(extent.blob, begin, min(begin + PIECE, extent.end)) for begin in begins]
