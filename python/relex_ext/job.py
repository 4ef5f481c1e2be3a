"""A run that writes checkpoints: everything checked first, then tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from relex_ext import dtypes
from relex_ext.advice import verdicts_on, walk_beside
from relex_ext.applied import weights_file
from relex_ext.backends import Choice
from relex_ext.cards import card
from relex_ext.errors import OutputError
from relex_ext.evidence.verdict import Verdict
from relex_ext.forecasts import Weights
from relex_ext.identities import job_of
from relex_ext.layout import make_folder, replace_durably
from relex_ext.machine import Machine
from relex_ext.methods import AUTO, Options, weigh_scan
from relex_ext.output import SCAN, Output, check_output, check_space, target_name
from relex_ext.plan import Plan, free_space
from relex_ext.progress import ProgressBar
from relex_ext.record import record_of
from relex_ext.remaining import Remaining, rows_needed
from relex_ext.scanfile import ScanFile, planned_layout
from relex_ext.scanning import Scanning
from relex_ext.scans import Scan
from relex_ext.steps import PathLike
from relex_ext.trajectory import Trajectory
from relex_ext.workspace import Workspace, space_held

Made: TypeAlias = "tuple[Weights, dict[str, Any], dict[float, Verdict]]"

MADE = "output"
"""Where in its workspace an output is made."""


@dataclass(frozen=True)
class Extrapolation:
    """What a run did, or with ``dry_run`` would do.

    ``folders``: target, or the name it was given, → the model folder written for it; ``weights``:
    what went into them (None for a dry run without a scan); ``free_space``: bytes, where ``out``
    is; ``backend``: what computes, and why that; ``verdicts``: target → whether to believe its
    forecast, of the targets that are ahead, where method and scan allow a judgement.
    """

    out: Path
    folders: Mapping[float | str, Path]
    plan: Plan
    free_space: int
    weights: Weights | None
    record: Mapping[str, Any]
    backend: str
    verdicts: Mapping[float, Verdict] = field(default_factory=dict)


class Job:
    """One call of extrapolate or combine."""

    def __init__(
        self,
        trajectory: Trajectory,
        targets: tuple[float, ...],
        out: PathLike,
        machine: Machine,
        dtype: str | None,
        overwrite: bool,
        progress: bool,
        names: Sequence[str] | None = None,
    ) -> None:
        self.trajectory = trajectory
        self.targets = targets
        self.names = names or [target_name(target) for target in targets]
        self.keys: Sequence[float | str] = names or targets
        self.out = Path(out)
        self.machine = machine
        self.dtype = None if dtype is None else dtypes.parse(dtype)
        self.progress = progress and machine.world.rank == 0
        self.command: str | None = None
        """What was typed, for the model cards."""
        folders = [trajectory.base.folder, *(c.folder for c in trajectory.checkpoints)]
        self._check = partial(check_output, self.out, overwrite, folders)
        self._check()

    def run(
        self,
        options: Options,
        solver: str,
        *,
        weights: Weights | None,
        given: Mapping[str, Any],
        scan: Scan | None = None,
        keep: Path | None = None,
        nonfinite: str = "refuse",
        dry_run: bool = False,
    ) -> Extrapolation:
        """``weights``: known already, so that nothing is scanned, ``scan``: what they are from;
        ``keep``: a file for the scan."""
        trajectory = self.trajectory
        # Which strength is right shows in all tensors together, before the first is combined.
        apart = weights is None and options.strength == AUTO
        choice, plan = self.machine.lay_out(
            trajectory, targets=len(self.targets), scanned=weights is not None,
            solver="auto" if solver == "none" else solver, rank=options.rank, dtype=self.dtype,
            rows_read=None if weights is None else rows_needed(weights), apart=apart,
        )  # fmt: skip
        free = free_space(self.out)
        folders = {k: self.out / name for k, name in zip(self.keys, self.names, strict=True)}
        if dry_run:
            return Extrapolation(self.out, folders, plan, free, weights, {}, str(choice))
        world = self.machine.world
        if world.rank == 0:
            check_space(self.out, plan.bytes_written, free + space_held(self.out))
            if keep is not None:
                _check_keep(keep)
        asked = {**given, "dtype": self.dtype}
        targets = dict(zip(self.names, self.targets, strict=True))
        job = job_of(trajectory, plan, choice, asked, weights, targets)
        with world.workspace(self.out, job, self._check) as place:
            done, record, verdicts = self._make(
                place, plan, choice, options, asked, weights, scan, nonfinite, keep
            )
        return Extrapolation(self.out, folders, plan, free, done, record, str(choice), verdicts)

    def _make(
        self,
        place: Workspace,
        plan: Plan,
        choice: Choice,
        options: Options,
        asked: Mapping[str, Any],
        weights: Weights | None,
        scan: Scan | None,
        nonfinite: str,
        keep: Path | None,
    ) -> Made:
        trajectory, world, rank = self.trajectory, self.machine.world, options.rank
        with ExitStack() as stack:
            begun = (place.journal, place.joins)
            output = stack.enter_context(
                Output(place.path / MADE, trajectory, self.names, self.dtype, *begun)
            )
            file = None
            if weights is None:
                layout = planned_layout(trajectory, plan, rank, self.machine.delta_dtype)
                file = stack.enter_context(ScanFile(output.folder / SCAN, layout, *begun))
            place.begun()
            mine = plan.bytes_read // world.size
            tick = stack.enter_context(ProgressBar(mine, "relex", self.progress))
            left = Remaining(trajectory, plan, choice, rank, output, tick, world)
            scanning = Scanning(trajectory, rank, nonfinite, file, world)
            if plan.apart:
                scanning.run(plan, choice, tick)
                place.ended()
                weights = world.agree(partial(self._weights_of_all, scanning, options))
            if weights is None:
                all_weights = left.scan_and_combine(scanning, self.targets, options)
            else:
                left.combine(weights)
                all_weights = partial(_given, weights)
            left.settle(file)
            place.ended()

            def complete() -> Made:
                known = scan
                if file is not None:
                    scanning.take_over()
                    file.complete()
                    known = Scan.load(file.path)
                done = all_weights()
                verdicts = verdicts_on(
                    known, trajectory.steps, self.targets, options, done.strengths
                )
                record = record_of(
                    trajectory, self.names, plan, choice, done, asked, options.spectral
                )
                record["random_walk"] = walk_beside(known, trajectory.steps)
                record["verdicts"] = {
                    name: verdicts[target].record()
                    for name, target in zip(self.names, self.targets, strict=True)
                    if target in verdicts
                }
                record = output.complete(record, self._cards(done, verdicts), weights_file(done))
                trajectory.check_unchanged()
                place.publish(MADE)
                if keep is not None:
                    _keep(self.out / SCAN, keep)
                return done, record, verdicts

            return world.agree(complete)

    def _weights_of_all(self, scanning: Scanning, options: Options) -> Weights:
        scanning.take_over()
        scan = Scan.of(self.trajectory, scanning.found, self.machine.delta_dtype)
        return weigh_scan(scan, self.trajectory.steps, self.targets, options)

    def _cards(self, weights: Weights, verdicts: Mapping[float, Verdict]) -> list[bytes]:
        base, steps = self.trajectory.base.folder, self.trajectory.steps
        method = weights.method or "given weights"
        strengths = weights.strengths or [1.0] * len(self.targets)
        found = zip(self.targets, strengths, strict=True)
        return [card(base, steps, t, method, s, verdicts.get(t), self.command) for t, s in found]


def _given(weights: Weights) -> Weights:
    return weights


def _check_keep(place: Path) -> None:
    """Find out before the work whether the scan can be kept there, as far as that can be known."""
    if place.is_dir():
        raise OutputError(f"{place}: expected a file to write, found a folder")
    folder = next(parent for parent in place.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"{place}: cannot be written: {folder} is no folder to write in")


def _keep(scan: Path, place: Path) -> None:
    """Put a copy of the output's scan where it was asked for."""
    try:
        make_folder(place.absolute().parent)
        replace_durably(place, scan.read_bytes())
    except OSError as error:
        raise OutputError(
            f"{place}: cannot be written: {error.strerror}; the scan is in {scan}"
        ) from error
