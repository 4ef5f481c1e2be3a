"""Where commands are disturbed, one case after the other.

ROOT/in     a base and three checkpoints
ROOT/work   where commands write: made anew for every case
"""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import relex_ext
from faults import scenarios
from faults.children import Ending, in_child, returned
from faults.scenarios import TARGETS, make_inputs
from faults.shim import Shim
from folders import digest


@dataclass(frozen=True)
class Last:
    """Of a child, when its command was over. ``fired``: how often the fault struck; ``held``: files
    below the root that were still open; ``locked``: so that the process could not try again."""

    fired: int
    held: list[str]
    locked: bool


class Place:
    """Where cases happen, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.root = self.folder / "root"
        self.work = self.root / "work"
        self.inputs = make_inputs(self.root / "in")
        self.shim = Shim(self.root)
        logging.disable()
        self._import_everything()
        scan = self.folder / "scan"
        returned(in_child(lambda: scenarios.scan(self.inputs, scan, "pread")))
        weights = returned(in_child(lambda: relex_ext.forecast(scan, TARGETS))).value
        self.inputs = replace(self.inputs, weights=weights)
        self._begun = self._stamps()
        self._digests = digest(self.root / "in")

    def _import_everything(self) -> None:
        """What a child imports, this process has already."""

        def work() -> None:
            scenarios.extrapolate(self.inputs, self.folder / "never", "mmap")
            scenarios.extrapolate(self.inputs, self.folder / "never", "pread", overwrite=True)

        import_for(work)
        shutil.rmtree(self.folder / "never")

    def perform(self, work: Callable[[], object], before: Callable[[], None]) -> Ending:
        """A command in a child, watched. ``before``: told to the library there."""

        def watched() -> None:
            before()
            with self.shim.watching():
                work()

        return in_child(watched, lambda: Last(self.shim.fired, self._held(), self._locked()))

    def _held(self) -> list[str]:
        """Files below the root that this process has open."""
        links = [p for p in Path("/proc/self/fd").iterdir() if p.is_symlink()]
        found = [str(link.readlink()) for link in links]
        return sorted(path for path in found if path.startswith(str(self.root)))

    def _locked(self) -> bool:
        for folder in self.work.rglob(".*.partial"):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
        return False

    def _stamps(self) -> list[tuple[str, int, int, int]]:
        found = []
        for path in sorted((self.root / "in").rglob("*")):
            stat = path.stat()
            found.append((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return found

    def inputs_changed(self) -> bool:
        return self._stamps() != self._begun

    def check_inputs(self) -> None:
        """All of their bytes."""
        assert digest(self.root / "in") == self._digests


def import_for(work: Callable[[], object]) -> None:
    """What a child imports as it does this work, this process has then."""

    def imported() -> list[str]:
        work()
        return list(sys.modules)

    for name in returned(in_child(imported)).value:
        importlib.import_module(name)
