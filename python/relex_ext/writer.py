"""Writing beside the arithmetic: a thread that does one task after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

Ticket: TypeAlias = "queue.SimpleQueue[BaseException | None]"
"""Where a task leaves None when it is done, or why it is not. A Future would do, but for Ctrl-C:
see windows.Budget."""


class Writer:
    """A context manager: leaving it drops what has not begun. After a task has failed, none is done
    any more; all later tickets say why."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], None], Ticket] | None] = (
            queue.SimpleQueue()
        )
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="relex-write")

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._tasks.put(None)
        self._thread.join()

    def submit(self, task: Callable[[], None]) -> Ticket:
        ticket: Ticket = queue.SimpleQueue()
        self._tasks.put((task, ticket))
        return ticket

    def _work(self) -> None:
        failure: BaseException | None = None
        while (item := self._tasks.get()) is not None:
            task, ticket = item
            if failure is None and not self._stopped:
                try:
                    task()
                except BaseException as error:  # whoever holds the ticket raises it
                    failure = error
            ticket.put(failure)


def settle(ticket: Ticket) -> None:
    """Wait until a task is done; raises what it raised."""
    failure = ticket.get()
    if failure is not None:
        raise failure
