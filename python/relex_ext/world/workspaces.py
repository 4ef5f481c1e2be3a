"""The workspace of an output that several processes make: one leads, the others join."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from relex_ext.errors import OutputError, Resumable
from relex_ext.journal import Journal
from relex_ext.workspace import JOURNAL, Workspace


class Peers(Protocol):
    """What processes that talk to each other can do."""

    rank: int

    def gather(self, mine: Any) -> list[Any]: ...

    def failed(self, error: BaseException) -> BaseException:
        """Tell the others of an error; the one that all end with."""

    def left(self) -> None:
        """This process has let go of the output's files."""

    def wait_until_left(self) -> None:
        """Until all others have."""


class Led(Workspace):
    """The first process's: it has the lock, makes the files, publishes or clears away."""

    def __init__(
        self, out: Path, job: Mapping[str, Any], check: Callable[[], None], peers: Peers
    ) -> None:
        super().__init__(out, job, check)
        self._peers = peers

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error = self._peers.failed(error)
            kind = type(error)
            self.journal.refresh()
            if not isinstance(error, Resumable):
                self._peers.wait_until_left()
        super().__exit__(kind, error, trace)

    def begun(self) -> None:
        self._peers.gather(None)

    def ended(self) -> None:
        self._peers.gather(None)
        self.journal.refresh()


class Joined(Workspace):
    """Any other process's: it has a journal of its own."""

    joins = True

    def __init__(
        self, out: Path, job: Mapping[str, Any], check: Callable[[], None], peers: Peers
    ) -> None:
        super().__init__(out, job, check)
        self._peers = peers

    def __enter__(self) -> Joined:
        self._peers.gather(None)
        own = self.path / f"{JOURNAL}.{self._peers.rank}"
        self.journal = Journal(self.path / JOURNAL, self._job, own)
        if not self.path.is_dir() or self.journal.differs is not None:
            raise OutputError(f"{self.path}: not there, though another process has made it")
        self.journal.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.journal.close()
        if error is not None:
            self._peers.failed(error)
        self._peers.left()

    def ended(self) -> None:
        self.journal.seal(f"of process {self._peers.rank}")
        self._peers.gather(None)
