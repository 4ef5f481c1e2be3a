"""Processes that share nothing but the file system: the tasks of a job array, in any order.

Each makes whole tensors and enters them in a journal of its own. The journal file that all of them
read is the door: who holds its lock may make files, or complete the output.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from relex_ext.errors import InputError, OutputError, Resumable, Unfinished
from relex_ext.journal import PART, Journal
from relex_ext.layout import make_folder, remove_folders
from relex_ext.plan import Plan, TensorPlan
from relex_ext.room import SPAN
from relex_ext.steps import few_of
from relex_ext.workspace import JOURNAL, Workspace
from relex_ext.world import World
from relex_ext.world.partition import shares_of


class Tasks(World):
    """One of ``size`` that are started apart from each other."""

    def __init__(self, rank: int, size: int, span: int = SPAN) -> None:
        super().__init__(span)
        if not 0 <= rank < size:
            raise InputError(f"world_rank: expected 0 to {size - 1}, found {rank}")
        self.rank = rank
        self.size = size

    def workspace(self, out: Path, job: Mapping[str, Any], check: Callable[[], None]) -> Workspace:
        return Shared(out, job, check, self.rank, self.size)

    def to_verify(self, plan: Plan) -> Sequence[TensorPlan]:
        return shares_of(plan.tensors, self.size)[self.rank]

    def share(self, plan: Plan, left: Sequence[TensorPlan], keep: bool = False) -> list[TensorPlan]:
        if plan.apart:
            raise InputError(
                "strength: auto looks at all tensors before the first is written, and tasks apart "
                "cannot; let them run `relex scan` first, then extrapolate with its --scan"
            )
        mine = {item.tensor.name for item in self.to_verify(plan)}
        return [item for item in left if item.tensor.name in mine]


class Shared(Workspace):
    """The folder while several processes may be at work in it. Whoever finds all parts done when
    its own is, completes and publishes."""

    def __init__(
        self, out: Path, job: Mapping[str, Any], check: Callable[[], None], rank: int, size: int
    ) -> None:
        super().__init__(out, job, check)
        self._rank, self._size = rank, size
        self._door = -1
        self._own = -1

    def __enter__(self) -> Shared:
        self._created = make_folder(self.out.parent)
        try:
            self._take()
            self._recover()
            self._check()
            self._begin()
        except BaseException:
            self._leave()
            raise
        return self

    def begun(self) -> None:
        self._close("_door")

    def ended(self) -> None:
        mine = self._part(self._rank)
        self.journal.seal(mine)
        if not self._lock_door():
            raise Unfinished(f"{self.out}: part {mine} is done; another task has published it")
        self.journal.refresh()
        missing = [i for i in range(self._size) if (PART, self._part(i)) not in self.journal.done]
        if missing:
            raise Unfinished(
                f"{self.out}: part {mine} is done, {self._size - len(missing)} of {self._size} "
                f"are; to be done: {few_of(missing)}"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._published:
            super().__exit__(kind, error, trace)
        else:
            self.journal.close()
            if not isinstance(error, (KeyboardInterrupt, SystemExit, Resumable)):
                self._own_path.unlink(missing_ok=True)  # what it says may not be there
        self._leave()

    def _take(self) -> None:
        """Have the folder with other tasks, and the door for now."""
        while True:
            if not self._reach():
                continue
            self._check_ours()
            if self._lock_door():
                break
            self._unlock()
        self._hold(fcntl.LOCK_SH)

    def _lock_door(self) -> bool:
        """Wait for it; False if the folder is not any more that which this process has opened."""
        try:
            self._door = _open(self.path / JOURNAL)
            _lock(self._door)
        except FileNotFoundError:
            return False
        if self._is_mine():
            return True
        self._close("_door")
        return False

    def _begin(self) -> None:
        """Take up what there is of this job, as one of several. Behind the door."""
        leading = Journal(self.path / JOURNAL, self._job)
        if not leading.done:
            if self._alone():
                self._clear()
            elif leading.differs is not None:
                raise OutputError(
                    f"{self.out}: other tasks are at work on something else: {leading.differs}"
                )
        leading.open()
        leading.close()
        self._own = _open(self._own_path)
        try:
            _lock(self._own, fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{self.out}: part {self._part(self._rank)}: another relex is at work on it"
            ) from None
        self.journal = Journal(self.path / JOURNAL, self._job, self._own_path)
        self.journal.open()

    def _alone(self) -> bool:
        """No other task is at work. Behind the door: for a moment the folder's lock is let go."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        except OSError:
            return False  # a file system without locks
        self._hold(fcntl.LOCK_SH)
        return alone

    def _leave(self) -> None:
        """Nothing stays that is not worth going on with."""
        try:
            inside = self._lock >= 0 and (self._door >= 0 or self._lock_door())
            if inside and self._alone() and not Journal(self.path / JOURNAL, self._job).done:
                self._clear()
                (self.path / JOURNAL).unlink(missing_ok=True)
        finally:
            self._close("_own")
            self._close("_door")
            self._let_go()
            remove_folders(self._created)

    def _close(self, which: str) -> None:
        descriptor = getattr(self, which)
        setattr(self, which, -1)
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def _own_path(self) -> Path:
        return self.path / f"{JOURNAL}.{self._rank}"

    def _part(self, rank: int) -> str:
        return f"{rank}/{self._size}"


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _lock(descriptor: int, how: int = 0) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks
