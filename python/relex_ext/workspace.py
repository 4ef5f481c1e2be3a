"""The hidden folder beside an output in which it is made: locked, resumable, published by a rename.

.NAME.partial/journal   what is being made, and what of it is done
.NAME.partial/…         the output, until it gets its name
.NAME.partial/ready     for a moment the output, and then the earlier one that it replaced
.NAME.partial/replaced  an earlier output, on a file system that cannot exchange two names

A run that ends early leaves it if anything in it is worth going on with, and else nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from relex_ext.errors import Interrupted, OutputError, Resumable
from relex_ext.journal import Journal
from relex_ext.layout import (
    make_folder,
    remove_folders,
    remove_tree,
    replace_folder,
    sync_folder,
)

LOG = logging.getLogger("relex_ext")

JOURNAL = "journal"
READY = "ready"
REPLACED = "replaced"


def workspace_of(out: Path) -> Path:
    return out.absolute().with_name(f".{out.name}.partial")


def space_held(out: Path) -> int:
    """Bytes of the device that an unfinished run of this output has taken."""
    files = (path.lstat() for path in workspace_of(out).rglob("*"))
    return sum(found.st_blocks * 512 for found in files)


class Workspace:
    """Use as a context manager; one process has it at a time.

    ``path``: the folder; ``journal``: of this job, with what an earlier run of it has done.
    """

    journal: Journal
    joins = False
    """Another process makes the output's files; this one opens them."""

    def __init__(self, out: Path, job: Mapping[str, Any], check: Callable[[], None]) -> None:
        """``job``: everything that decides the bytes; ``check``: raises if ``out`` may not be
        written, asked again when nobody else can be at work on it."""
        self.out = out.absolute()
        self.path = workspace_of(out)
        self._job = job
        self._check = check
        self._created: list[Path] = []
        self._lock = -1
        self._published = False

    def __enter__(self) -> Workspace:
        self._created = make_folder(self.out.parent)
        try:
            self._take()
            self._recover()
            self._check()
            self.journal = Journal(self.path / JOURNAL, self._job)
            if not self.journal.done:
                self._clear()
            if self.journal.differs is not None:
                LOG.info(
                    "%s: begins afresh; the unfinished run there was another: %s",
                    self.out, self.journal.differs,
                )  # fmt: skip
            self.journal.open()
        except BaseException:
            self._let_go()
            remove_folders(self._created)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        resumable = isinstance(error, (KeyboardInterrupt, SystemExit, Resumable))
        if resumable and not self._published and self.journal.done:
            self.journal.close()
            self._unlock()
            kept = f"{self.out}: what is done is kept in {self.path}; the same command goes on"
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(kept) from error
            LOG.info("%s", kept)
            return
        try:
            self.journal.close()
            self._clear()
            sync_folder(self.path)  # nothing of it comes back without the journal
            (self.path / JOURNAL).unlink(missing_ok=True)
        finally:
            self._let_go()
        if not self._published:
            remove_folders(self._created)

    def begun(self) -> None:
        """The output's files are there: other processes may open them."""

    def ended(self) -> None:
        """This process's share is done and durable. Who comes back from here with all shares done
        completes the output.

        Raises:
            Unfinished: somebody else will.
        """

    def publish(self, made: str) -> None:
        """Give ``path/made``, which is durable, the output's name. An output that was there before
        is there until then."""
        source = self.path / made
        try:
            if source.is_dir() and self.out.is_dir() and any(self.out.iterdir()):
                # What an exchange leaves under this name must not be gone on with.
                ready = source.rename(self.path / READY)
                replace_folder(ready, self.out, aside=self.path / REPLACED)
            else:
                source.replace(self.out)
        except OSError as error:
            raise OutputError(f"{self.out}: cannot be published: {error.strerror}") from error
        self._published = True
        sync_folder(self.out.parent)

    def _recover(self) -> None:
        """Put back an output that a crash caught between its two renames, or finish the second."""
        ready = self.path / READY
        if ready.is_dir():
            remove_tree(ready)
        else:
            ready.unlink(missing_ok=True)
        replaced = self.path / REPLACED
        if not replaced.exists():
            return
        if os.path.lexists(self.out):
            remove_tree(replaced)
        else:
            replaced.rename(self.out)
            sync_folder(self.out.parent)

    def _take(self) -> None:
        """Have the folder, alone, and make sure that it is one of ours."""
        while True:
            if not self._reach():
                continue
            self._hold(fcntl.LOCK_EX)
            if self._is_mine():
                break
            self._unlock()
        self._check_ours()

    def _reach(self) -> bool:
        """Open the folder; False if who had it before has just removed it."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = os.open(self.path, flags)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be made: {error.strerror}") from error
        return True

    def _hold(self, lock: int) -> None:
        try:
            fcntl.flock(self._lock, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            self._unlock()
            raise OutputError(f"{self.out}: another relex is writing it") from None
        except OSError:
            pass  # a file system without locks

    def _check_ours(self) -> None:
        found = sorted(entry.name for entry in self.path.iterdir())
        if found and JOURNAL not in found:
            self._unlock()
            raise OutputError(
                f"{self.path}: expected relex's unfinished work, found {found[0]}; remove it"
            )

    def _is_mine(self) -> bool:
        """The folder that is locked is still the one of that name."""
        try:
            return os.path.samestat(os.fstat(self._lock), self.path.lstat())
        except FileNotFoundError:
            return False

    def _clear(self) -> None:
        """Remove everything but the journal, by which the folder is known as ours."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                remove_tree(entry)
            elif entry.name != JOURNAL:
                entry.unlink()

    def _let_go(self) -> None:
        if self._lock >= 0:
            try:
                remove_folders([self.path])  # if it is empty
            finally:
                self._unlock()

    def _unlock(self) -> None:
        descriptor, self._lock = self._lock, -1
        os.close(descriptor)
