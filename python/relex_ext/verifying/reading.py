"""Recorded bytes read again and hashed: never mapped, a piece at a time, by several threads."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from relex_ext.engine import Tick
from relex_ext.layout import CHUNK
from relex_ext.plainfiles import opened, read_at

Item = TypeVar("Item")


class Reader:
    """Reads in so many ``threads``; ``tick`` is told of every byte."""

    def __init__(self, threads: int, tick: Tick) -> None:
        self._threads = threads
        self._tick = tick
        self._stop = threading.Event()

    def sha256(self, path: Path, folder: Path, begin: int = 0, nbytes: int | None = None) -> str:
        """The digest of so many bytes of a file of ``folder``, of all to its end by default."""
        digest = hashlib.sha256()
        with opened(path, folder) as (descriptor, info):
            end = info.st_size if nbytes is None else begin + nbytes
            for at in range(begin, end, CHUNK):
                if self._stop.is_set():
                    break  # nobody is waiting for it any more
                data = read_at(path, descriptor, at, min(CHUNK, end - at))
                digest.update(data)
                self._tick(len(data))
        return digest.hexdigest()

    def each(self, work: Callable[[Item], str | None], items: Sequence[Item]) -> list[str]:
        """What ``work`` finds wrong with items, in their order."""

        def one(item: Item) -> str | None:
            return None if self._stop.is_set() else work(item)

        with ThreadPoolExecutor(self._threads, thread_name_prefix="relex-verify") as pool:
            try:
                return [found for found in pool.map(one, items) if found is not None]
            except BaseException:  # Ctrl-C: the threads end at their next piece
                self._stop.set()
                raise
