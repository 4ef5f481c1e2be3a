"""A training run, watched: its scan grows with every checkpoint that is saved."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from relex_ext.checkpoints import Checkpoint, open_checkpoint
from relex_ext.errors import InputError, RelexError
from relex_ext.evidence.verdict import Verdict, judge
from relex_ext.identities import identity
from relex_ext.integrations.growing import grow, only
from relex_ext.integrations.standing import Standing, furthest, shifted, standing_of
from relex_ext.job import Extrapolation
from relex_ext.machine import Machine
from relex_ext.output import SCAN
from relex_ext.pipeline import extrapolate
from relex_ext.scans import Scan
from relex_ext.steps import PathLike, check_finished, few_of, resolve
from relex_ext.trajectory import align

LOG = logging.getLogger("relex_ext")

FOLDER = "relex"
"""Beside a run's step folders: what is kept about it."""


class Watch:
    """A run's scan while it trains, kept in a file, so that a resumed run goes on with it.

    ``relex extrapolate --scan`` takes the file up without another scan. Steps are the trainer's;
    where training started over from a model at step ``after``, the scan counts from there. From any
    thread.
    """

    def __init__(
        self,
        base: PathLike,
        run: PathLike,
        *,
        file: PathLike | None = None,
        after: int = 0,
        backend: str = "auto",
        device: str | Sequence[str] | None = None,
        memory_limit: str | int | None = None,
        device_memory: str | int | None = None,
        io: str = "auto",
        threads: int | None = None,
    ) -> None:
        """
        Args:
            base: the model folder that training started from, at step ``after``.
            run: the folder in which the trainer makes its step folders.
            file: where the scan is kept; ``run/relex/scan.safetensors`` by default.
            backend, device, memory_limit, device_memory, io, threads: see
                :func:`relex_ext.extrapolate`.

        Raises:
            InputError: no usable base, or a file that is no scan, or one from another base.
        """
        self.base = Path(base)
        self.run = Path(run)
        self.after = after
        self.file = self.run / FOLDER / SCAN if file is None else Path(file)
        self._machine: dict[str, Any] = {
            "backend": backend, "device": device, "memory_limit": memory_limit,
            "device_memory": device_memory, "io": io, "threads": threads,
        }  # fmt: skip
        self._lock = threading.RLock()
        self._folders: dict[int, Path] = {}
        """Of the scan's steps, those that are known."""
        checkpoint = open_checkpoint(self.base)  # one that is no good is found now
        self._scan = self._taken_up(checkpoint) if self.file.exists() else None

    def _taken_up(self, base: Checkpoint) -> Scan:
        scan = Scan.load(self.file)
        if scan.spectra or scan.nonfinite:
            raise InputError(f"{self.file}: expected Gram matrices of every tensor; choose another")
        if scan.identities.get("base") != identity(base):
            raise InputError(
                f"{self.file}: made from another base than {self.base}; choose another file"
            )
        self._folders = {s: f for s, f in self._found().items() if s - self.after in scan.steps}
        return scan

    @property
    def scan(self) -> Scan | None:
        """Of the steps recorded, counted from ``after``; None before the first."""
        return self._scan

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps recorded."""
        return () if self._scan is None else tuple(s + self.after for s in self._scan.steps)

    # ---- recording -----------------------------------------------------------------------------

    def add(self, step: int, folder: PathLike) -> None:
        """Record a checkpoint that has been saved: one reading of all that are there.

        A step that is recorded already, with these files, changes nothing. Earlier checkpoints that
        the trainer has deleted are left out from then on, which is logged.

        Raises:
            InputError: a step before the newest, one recorded with other files, or a checkpoint
                that is not complete or does not fit the others.
        """
        self.add_all({step: folder})

    def add_all(self, folders: Mapping[int, PathLike]) -> None:
        """:meth:`add` for several: in one reading."""
        with self._lock:
            fresh = {s: Path(f) for s, f in sorted(folders.items()) if not self._has(s, Path(f))}
            for step, folder in fresh.items():
                self._check_order(step, folder)
            check_finished(fresh.values())
            if fresh:
                self._grow(fresh)

    def catch_up(self, until: int | None = None) -> tuple[int, ...]:
        """Record the step folders of the run that are complete and not recorded yet, up to
        ``until``; the steps added. Steps that were saved again since are recorded again."""
        with self._lock:
            fresh = self._fresh(until)
            changed = self._first_changed() if fresh else None
            if changed is not None:
                LOG.warning("step %d was saved again: recorded anew from there on", changed)
                self.rewind(changed - 1)
                fresh = self._fresh(until)
            self.add_all(fresh)
            return tuple(fresh)

    def rewind(self, step: int) -> None:
        """Forget what was recorded after ``step``: training goes on from there."""
        with self._lock:
            self._keep([s for s in self.steps if s <= step])

    def _fresh(self, until: int | None) -> dict[int, Path]:
        newest = max(self.steps, default=self.after)
        found: dict[int, Path] = {}
        for step, folder in self._found().items():
            if step > newest and (until is None or step <= until):
                if not is_complete(folder):
                    break  # the trainer is at it
                found[step] = folder
        return found

    def _first_changed(self) -> int | None:
        for step in self.steps:
            folder = self._folders.get(step)
            if folder is not None and folder.is_dir() and not self._is_recorded(step, folder):
                return step
        return None

    def _is_recorded(self, step: int, folder: Path) -> bool:
        assert self._scan is not None
        noted = self._scan.identities[str(step - self.after)]
        return is_complete(folder) and noted == identity(open_checkpoint(folder))

    def _has(self, step: int, folder: Path) -> bool:
        if step not in self.steps:
            return False
        if self._is_recorded(step, folder):
            self._folders[step] = folder
            return True
        raise InputError(
            f"{folder}: step {step} was recorded with other files; if training was resumed from "
            f"before it, forget it and what follows: rewind({step - 1})"
        )

    def _check_order(self, step: int, folder: Path) -> None:
        newest = max(self.steps, default=self.after)
        if step <= newest:
            raise InputError(
                f"{folder}: expected a step after {newest}, found {step}; if training was resumed "
                f"from before it, forget what follows: rewind({step - 1})"
            )

    def _grow(self, fresh: Mapping[int, Path]) -> None:
        while True:
            self._leave_out_deleted()
            known = {step: self._folders[step] for step in self.steps}
            try:
                self._scan = self._grown({**known, **fresh})
                break
            except (RelexError, OSError):
                if all(folder.is_dir() for folder in known.values()):
                    raise
        self._folders.update(fresh)
        self._scan.save(self.file)

    def _grown(self, folders: Mapping[int, Path]) -> Scan:
        opened = {step - self.after: open_checkpoint(folder) for step, folder in folders.items()}
        trajectory = align(open_checkpoint(self.base), opened)
        return grow(self._scan, trajectory, Machine(**self._machine))

    def _leave_out_deleted(self) -> None:
        """A row of G takes the weights of both its checkpoints."""
        there = [s for s in self.steps if s in self._folders and self._folders[s].is_dir()]
        gone = [step for step in self.steps if step not in there]
        if gone:
            LOG.warning(
                "%s: the checkpoints of steps %s are gone: new ones cannot be compared with them, "
                "and forecasts go by those still there; have the trainer keep more "
                "(save_total_limit, max_actor_ckpt_to_keep)", self.run, few_of(gone),
            )  # fmt: skip
            self._keep(there)

    def _keep(self, steps: Sequence[int]) -> None:
        if list(steps) == list(self.steps) or self._scan is None:
            return
        self._folders = {step: f for step, f in self._folders.items() if step in steps}
        if steps:
            self._scan = only(self._scan, [step - self.after for step in steps])
            self._scan.save(self.file)
        else:
            self._scan = None
            self.file.unlink(missing_ok=True)

    def _found(self) -> dict[int, Path]:
        try:
            return {step: f for step, f in resolve(self.run).items() if step > self.after}
        except InputError:
            return {}  # no step folder yet

    # ---- asking --------------------------------------------------------------------------------

    def verdict(self, target: float) -> Verdict:
        """Whether to believe a forecast of ``target``, a step of the trainer's.

        Raises:
            InputError: fewer than two steps are recorded, or the target is not ahead of them.
        """
        return shifted(judge(self._recorded(), target - self.after), self.after)

    def reach(self) -> int | None:
        """The furthest step that the verdict is ``go`` for; None: no step."""
        found = furthest(self._recorded())
        return None if found is None else found + self.after

    def standing(self, target: float | None = None) -> Standing:
        """Everything that is logged, ``target``'s verdict in it."""
        return standing_of(self._recorded(), target, self.after)

    def forecast(
        self, targets: Iterable[float] | float, out: PathLike, **options: Any
    ) -> Extrapolation:
        """Write forecasts from what is recorded, without another scan. ``options``:
        :func:`relex_ext.extrapolate`'s. Folders are named after steps counted from ``after``."""
        scan = self._recorded()
        wanted = [targets] if isinstance(targets, (int, float)) else list(targets)
        lost = [step for step in self.steps if step not in self._folders]
        if lost:
            raise InputError(f"{self.run}: the checkpoints of steps {few_of(lost)} are gone")
        folders = {step - self.after: self._folders[step] for step in self.steps}
        return extrapolate(
            self.base, folders, [target - self.after for target in wanted], out, scan=scan,
            **{"progress": False, **self._machine, **options},
        )  # fmt: skip

    def _recorded(self) -> Scan:
        if self._scan is None:
            raise InputError(f"{self.run}: no checkpoint recorded yet")
        return self._scan


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint's weights are all there."""
    try:
        check_finished([folder])
        open_checkpoint(folder)
    except InputError:
        return False
    return True
