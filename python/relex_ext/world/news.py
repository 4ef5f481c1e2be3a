"""The news of a failure among processes that talk to each other.

A process that fails puts its line into the store, which outlives its connections, before it closes
these: whoever waits for it wakes up and finds the line there; who computes looks for it now and
then. The first process prints it, the others end in silence.
"""

from __future__ import annotations

import json
import re
import socket
import time
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

from relex_ext.errors import RelexError, Resumable

GRACE = timedelta(seconds=5)
"""How long a failing process waits for the others to have noticed."""

FAILURE, TOLD, HEARD, LEFT = "failure", "told", "heard", "left"


class Lost(RelexError, Resumable):
    """Another process is gone without a word."""


class Failed(RelexError):
    """Another process failed: its line."""


class FailedResumable(Failed, Resumable):
    """The same, where what is done until then is good."""


class News:
    """What one of ``size`` processes knows. Of a store that is gone, nothing."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size

    def look(self) -> Failed | None:
        """The first failure, if there is one.

        Raises:
            RuntimeError: the store is gone.
        """
        return _failure(self._store.get(FAILURE)) if self._store.check([FAILURE]) else None

    def instead_of(self, error: RuntimeError) -> RelexError:
        """Why what processes do together came to nothing."""
        try:
            told = self.look()
        except RuntimeError:
            told = None
        return told or Lost(f"another process is gone: {_first_words(error)}")

    def spread(self, error: BaseException) -> BaseException:
        """Tell the others, unless there is an earlier failure. The error that all end with; the
        first process prints what it knows itself."""
        said = {
            "rank": self._rank, "host": socket.gethostname(),
            "line": str(error) or type(error).__name__,
            "resumable": isinstance(error, (KeyboardInterrupt, SystemExit, Resumable)),
        }  # fmt: skip
        try:
            first = self._store.compare_set(FAILURE, "", json.dumps(said))
        except RuntimeError:
            return error
        mine = self._rank == 0 or json.loads(first)["rank"] == self._rank
        return error if mine else _failure(first)

    def tell(self, first: BaseException) -> None:
        """The first process is about to tell the user. It may be what keeps the store."""
        try:
            self._store.set(TOLD, "")
        except RuntimeError:
            return
        if not isinstance(first, Lost):
            self._wait_for_all(HEARD)

    def is_told(self) -> bool:
        """Wait for that. False if the first process is gone, and cannot tell."""
        try:
            self._store.wait([TOLD], GRACE)
            self._store.add(HEARD, 1)
        except RuntimeError:
            return False
        return True

    def left(self) -> None:
        """This process has let go of the output's files."""
        try:
            self._store.add(LEFT, 1)
        except RuntimeError:
            pass  # nobody asks any more

    def wait_until_left(self) -> None:
        """Until all others have, or might be dead."""
        self._wait_for_all(LEFT)

    def _wait_for_all(self, word: str) -> None:
        until = time.monotonic() + GRACE.total_seconds()
        try:
            while self._store.add(word, 0) < self._size - 1 and time.monotonic() < until:
                time.sleep(0.02)
        except RuntimeError:
            pass  # nobody is there any more


def _failure(said: bytes | str) -> Failed:
    first = json.loads(said)
    kind = FailedResumable if first["resumable"] else Failed
    where = f"process {first['rank']} on {first['host']}: " if first["rank"] else ""
    return kind(where + first["line"])


def _first_words(error: RuntimeError) -> str:
    """Without the place in torch's source before, and the advice behind."""
    return re.sub(r"^\[[^]]*\] ", "", str(error)).partition("\n")[0].partition(". ")[0]
