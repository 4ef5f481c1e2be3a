"""The scan of a trajectory's tensors: found, kept, and taken up where an earlier run ended."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from relex_ext.backends import Choice
from relex_ext.engine import Tick
from relex_ext.errors import InputError
from relex_ext.forecasts import Spectrum
from relex_ext.nonfinite import NonFinite
from relex_ext.plan import Plan, TensorPlan
from relex_ext.runs import TensorRun, run_plan
from relex_ext.scanfile import Found, ScanFile, is_finite
from relex_ext.trajectory import Trajectory
from relex_ext.world import World

NONFINITE = ("refuse", "carry")


def check_nonfinite(nonfinite: str) -> None:
    if nonfinite not in NONFINITE:
        raise InputError(f"nonfinite: expected {' or '.join(NONFINITE)}, found {nonfinite}")


class Scanning:
    """``found``: tensor → G (T, T) or its leading spectrum, all NaN where the tensor holds NaN or
    Inf and that is not refused."""

    def __init__(
        self,
        trajectory: Trajectory,
        rank: int,
        nonfinite: str,
        file: ScanFile | None,
        world: World,
    ) -> None:
        """``nonfinite``: ``"refuse"`` or ``"carry"``; ``file``: where what is found is kept, with
        what an earlier run has left there."""
        self.found: dict[str, Found] = {}
        self._trajectory = trajectory
        self._rank = rank
        self._carry = nonfinite == "carry"
        self._file = file
        self._world = world
        self._take()
        for names in world.gather([*self.found]):  # one that only some can read is scanned again
            self.found = {name: self.found[name] for name in names if name in self.found}

    def _take(self) -> None:
        if self._file is None:
            return
        for tensor in self._trajectory.trained:
            if tensor.name not in self.found:
                found = self._file.take(tensor.name, len(self._trajectory.steps), self._rank)
                if found is not None:
                    self.found[tensor.name] = found

    def take_over(self) -> None:
        """What the other processes have found, too; where there is a file, by the first alone,
        after their journals have been read."""
        if self._file is not None:
            self._take()
        else:
            for found in self._world.gather(self.found):
                self.found.update(found)

    def scan(self, run: TensorRun, item: TensorPlan) -> None:
        """One tensor, if it has not been scanned."""
        name = item.tensor.name
        if name in self.found:
            return
        try:
            found = run.scan(item)
        except NonFinite:
            if not self._carry:
                raise
            found = self._unknown(item)
        if self._file is not None and self._world.owns(item):
            self._file.put(name, found)
        self.found[name] = found

    def run(self, plan: Plan, choice: Choice, tick: Tick) -> None:
        """All tensors, without writing any."""
        left = [item for item in plan.tensors if item.tensor.name not in self.found]
        mine = tuple(self._world.share(plan, left))

        def work(run: TensorRun, item: TensorPlan) -> None:
            self.scan(run, item)
            if not is_finite(self.found[item.tensor.name]):
                run.skip(item)

        steps = self._trajectory.steps
        run_plan(
            replace(plan, tensors=mine), choice, steps, self._rank, None, tick, work,
            world=self._world,
        )  # fmt: skip

    def _unknown(self, item: TensorPlan) -> Found:
        t = len(self._trajectory.steps)
        if item.solver == "gram":
            return np.full((t, t), np.nan)
        k = min(self._rank, t)
        return Spectrum(np.full((t, k), np.nan), np.full(k, np.nan), float("nan"))
