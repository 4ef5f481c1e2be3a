"""Shards → windows in memory, read ahead of the arithmetic as far as the memory goes.

One thread walks the passes in order and admits windows as there is room; a few others load them.
The consumer takes the windows in the same order and releases each when it is done with it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from relex_ext.windows import Memory, Pass, Window

Ticket = queue.SimpleQueue[Window | BaseException]
"""Where a loader leaves one window, or why there is none. A Future would do, but for Ctrl-C: see
windows.Budget."""


class Stream:
    """The windows of a sequence of passes, in order, brought to a memory. A context manager."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._queue: queue.SimpleQueue[Ticket | BaseException | None] = queue.SimpleQueue()
        self._loaders = ThreadPoolExecutor(memory.loaders, thread_name_prefix="relex-load")
        self._walker: threading.Thread | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._memory.stop()
        if self._walker is not None:
            self._walker.join()
        self._loaders.shutdown(wait=True, cancel_futures=True)
        self._memory.close()

    def start(self, passes: Iterable[Pass]) -> None:
        """Begin reading; ``passes`` is consumed on another thread, as far ahead as memory goes."""
        self._walker = threading.Thread(target=self._walk, args=(passes,), name="relex-walk")
        self._walker.start()

    def windows(self) -> Iterator[Window]:
        """The windows of the next pass, each as soon as it is in memory."""
        while (ticket := self._queue.get()) is not None:
            found = ticket if isinstance(ticket, BaseException) else ticket.get()
            if isinstance(found, BaseException):
                raise found
            found.arrive()
            yield found

    def _walk(self, passes: Iterable[Pass]) -> None:
        try:
            for item in passes:
                for begin, end in item.plan.windows:
                    room = self._memory.admit(item, end - begin)
                    if room is None:
                        return
                    ticket: Ticket = queue.SimpleQueue()
                    self._loaders.submit(self._load, ticket, item, begin, end, room)
                    self._queue.put(ticket)
                self._queue.put(None)
        except BaseException as error:  # the consumer raises it
            self._queue.put(error)

    def _load(self, ticket: Ticket, item: Pass, begin: int, end: int, room: Any) -> None:
        try:
            ticket.put(self._memory.load(item, begin, end, room))
        except BaseException as error:
            ticket.put(error)
