"""One command, disturbed again and again, and what must hold whatever happened."""

from __future__ import annotations

import errno
import hashlib
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import relex_ext
from faults.children import Ending, in_child, returned
from faults.place import Place, import_for
from faults.scenarios import Scenario
from faults.shim import Call, Entry, calls_of, entries_of
from faults.trees import read_tree, tree_digest
from folders import digest

EXISTS = "exists already"
"""The words by which a finished output is refused."""


class Bench:
    """One scenario with one way of reading, again and again from the same start."""

    def __init__(self, place: Place, scenario: Scenario, io: str) -> None:
        self.place = place
        self.scenario = scenario
        self.out = place.work / scenario.out
        self.io = io
        self._start = place.folder / "start"
        shutil.rmtree(self._start, ignore_errors=True)
        self._start.mkdir()
        self.reset()
        self.history: list[Entry] = []
        """What the killed run did."""
        self._seen: dict[tuple[bytes, bool], str | None] = {}
        self.right = self._undisturbed()
        self.earlier = self._begin()
        self.calls = self.follow()

    @property
    def name(self) -> str:
        return f"{self.scenario.name} {self.io}"

    def reset(self, start: Path | None = None) -> None:
        shutil.rmtree(self.place.work, ignore_errors=True)
        shutil.copytree(start or self._start, self.place.work, symlinks=True)

    def command(self) -> None:
        self.scenario.command(self.place.inputs, self.out, self.io)

    def perform(self, *told: Callable[[], None]) -> Ending:
        def before() -> None:
            if self.scenario.lacks is not None:
                self.place.shim.lack(self.scenario.lacks, errno.EINVAL)
            for tell in told:
                tell()

        return self.place.perform(self.command, before)

    def at(self, call: Call, way: str, code: int = 0) -> Callable[[], None]:
        """To be told: what happens at a call."""
        return lambda: self.place.shim.want(call, way, code)

    def record(self, data: bool, *told: Callable[[], None]) -> tuple[Ending, list[Entry]]:
        """A command from what is there on, and its calls."""
        file = self.place.folder / "record"
        file.unlink(missing_ok=True)
        ending = self.perform(lambda: self.place.shim.record(file, data), *told)
        return ending, entries_of(file)

    def follow(self) -> list[Call]:
        """The calls of the run that goes on from what is there; none if it is refused."""
        ending, entries = self.record(data=False)
        return calls_of(entries) if ending.how == "returned" else []

    def _undisturbed(self) -> dict[str, str]:
        import_for(self.command)
        right = content(self.out)
        assert right is not None
        return right

    def _begin(self) -> dict[str, str] | None:
        """Make the start, from which every case begins; the output there is then, if any."""
        self.reset()
        if self.scenario.begins == "out":
            returned(in_child(self._other))
        elif self.scenario.begins == "killed":
            writes = [call for call in self.follow() if call.op == "pwrite"]
            self.reset()
            late = self.at(writes[len(writes) * 2 // 3], "before", signal.SIGKILL)
            ending, self.history = self.record(True, late)
            assert ending.how == "killed"
        shutil.rmtree(self._start)
        self.place.work.rename(self._start)
        self.reset()
        return content(self.out)

    def _other(self) -> None:
        """An output with other bytes."""
        run = self.place.inputs.run
        relex_ext.extrapolate(
            run.base, run.checkpoints, [100, 1000], self.out, strength=0.5, progress=False
        )

    # ---- what must hold --------------------------------------------------------------------------

    def wrong_output(self) -> str | None:
        """What must not be at any time: an output that is neither the earlier one nor right."""
        found = content(self.out)
        if found is None and self.scenario.lacks == "exchange":
            found = content(self.hidden / "replaced")  # between two renames
        if self.place.inputs_changed():
            return "an input was changed"
        if found not in (self.earlier, self.right):
            return f"the output is neither old nor new: {_difference(found, self.right)}"
        return None

    def wrong(self, ending: Ending, hidden: bool = False) -> str | None:
        """What must not be after one disturbed command, however it ended. ``hidden``: it could not
        remove what it wanted to."""
        if problem := self.wrong_output():
            return problem
        if ending.how in ("broken", "hung", "died"):
            return f"{ending.how}: {ending.said}"
        if ending.stray:
            return f"nobody caught: {ending.stray}"
        if ending.how == "returned" and content(self.out) != self.right:
            return "returned, but nothing was written"
        if ending.how == "refused" and "\n" in ending.said:
            return f"more than one line: {ending.said!r}"
        if ending.how in ("returned", "refused") and ending.last.held:
            return f"left open: {ending.last.held}"
        if ending.how != "killed" and ending.last.locked:
            return "left locked"
        if ending.how == "refused" and not hidden and self._empty_parent():
            return "left behind: an empty folder made for the output"
        return self._litter(hidden or ending.how != "returned")

    def wrong_again(self, hidden: bool = False) -> str | None:
        """What must not be when the same command is given once more, undisturbed.

        It does the same from the same bytes, so that it is given once for each state there is.
        """
        state = tree_digest(read_tree(self.place.root)), hidden
        if state not in self._seen:
            self._seen[state] = self._wrong_again(hidden)
        return self._seen[state]

    @property
    def states(self) -> int:
        """From which the command was given once more."""
        return len(self._seen)

    def _wrong_again(self, hidden: bool) -> str | None:
        done = content(self.out) == self.right and not self.scenario.replaces
        ending = self.perform()
        refused = done and ending.how == "refused" and EXISTS in ending.said
        if ending.how != "returned" and not refused:
            return f"again: {ending.how}: {ending.said}"
        found = content(self.out)
        if found != self.right:
            return f"again: other bytes: {_difference(found, self.right)}"
        litter = self._litter(hidden or (refused and self._only_journal()))
        return f"again: {litter}" if litter else None

    @property
    def hidden(self) -> Path:
        """Where a run keeps what is unfinished."""
        return self.out.with_name(f".{self.out.name}.partial")

    def _litter(self, hidden: bool) -> str | None:
        """Names beside the output. ``hidden``: an unfinished run's folder may be there."""
        allowed = {self.out, *self.out.parents, *([self.hidden] if hidden else [])}
        folders = {self.place.work, self.out.parent}
        beside = {path for folder in folders if folder.exists() for path in folder.iterdir()}
        left = sorted(str(path.relative_to(self.place.work)) for path in beside - allowed)
        return f"left behind: {', '.join(left)}" if left else None

    def _only_journal(self) -> bool:
        """A crash that comes when the output has its name may leave that much."""
        return self.hidden.is_dir() and {p.name for p in self.hidden.iterdir()} <= {"journal"}

    def _empty_parent(self) -> bool:
        folder = self.out.parent
        return folder != self.place.work and folder.is_dir() and not any(folder.iterdir())


def content(out: Path) -> dict[str, str] | None:
    """Every file's digest; None where there is nothing."""
    if out.is_file():
        return {"": hashlib.sha256(out.read_bytes()).hexdigest()}
    return digest(out) if out.exists() else None


def _difference(found: Mapping[str, str] | None, right: Mapping[str, str]) -> str:
    if found is None:
        return "there is none"
    names = sorted({*found, *right})
    return ", ".join(name for name in names if found.get(name) != right.get(name))
