"""A trainer's saved checkpoints, recorded beside its training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from relex_ext.errors import RelexError
from relex_ext.integrations.standing import Standing
from relex_ext.integrations.watch import Watch, is_complete

LOG = logging.getLogger("relex_ext")

AHEAD = 4
"""Checkpoints that may wait to be recorded; with one more the trainer waits, too."""

POLL = 0.2
"""Seconds between two looks at a checkpoint that is not complete."""


class Failures:
    """What becomes of our errors in somebody's training run: a line of the log, and training goes
    on; or, ``strict``, the error is raised."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.count = 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.strict:
                raise
            self.count += 1
            known = isinstance(error, (RelexError, OSError))
            LOG.warning("relex: %s", error, exc_info=None if known else error)


class Recorder:
    """Adds checkpoints to a watch, one at a time and in order, on a thread of its own unless
    ``background`` is off; what they say is kept for whoever asks on the trainer's thread."""

    def __init__(
        self,
        watch: Watch,
        failures: Failures,
        *,
        background: bool = True,
        target: float | None = None,
        patience: float = 10.0,
    ) -> None:
        """``target``: the step whose verdict is asked for; ``patience``: seconds that a checkpoint
        may take to be complete once its trainer has said that it is saved."""
        self.watch = watch
        self._failures = failures
        self._target = target
        self._patience = patience
        self._found: list[Standing] = []
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(AHEAD)
        self._pending: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(1, "relex-watch") if background else None

    def saved(self, step: int, folder: Path) -> None:
        """A checkpoint has been saved."""

        def add() -> None:
            self._wait_for(folder)
            self.watch.add(step, folder)

        self._do(add)

    def catch_up(self, until: int) -> None:
        """Those of an earlier part of the run may not all have been recorded."""
        self._do(lambda: self.watch.catch_up(until))

    def join(self) -> None:
        """Everything that was saved is recorded."""
        wait(self._pending)
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()  # raises what strict lets through

    def take(self) -> list[Standing]:
        """What was found since the last time."""
        with self._lock:
            found, self._found = self._found, []
        if any(future.done() and future.exception() for future in self._pending):
            self.join()
        return found

    def close(self) -> None:
        try:
            self.join()
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def _do(self, work: Callable[[], object]) -> None:
        def task() -> None:
            with self._failures.caught():
                work()
                if self.watch.steps:
                    standing = self.watch.standing(self._target)
                    LOG.info("%s", standing)
                    with self._lock:
                        self._found.append(standing)

        if self._thread is None:
            task()
            return
        self._room.acquire()
        future = self._thread.submit(task)
        future.add_done_callback(lambda _: self._room.release())
        self._pending = [one for one in self._pending if not one.done() or one.exception()]
        self._pending.append(future)

    def _wait_for(self, folder: Path) -> None:
        deadline = time.monotonic() + self._patience
        while not is_complete(folder) and time.monotonic() < deadline:
            time.sleep(POLL)
