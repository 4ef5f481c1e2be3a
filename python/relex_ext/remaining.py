"""Tensor by tensor: what is left to be written of an output, and this process's share of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from relex_ext.backends import Choice
from relex_ext.engine import Rows, Tick
from relex_ext.forecasts import Source, Weights
from relex_ext.formulas import Found
from relex_ext.methods import Options, weigh
from relex_ext.output import Output
from relex_ext.plan import Plan, TensorPlan
from relex_ext.runs import TensorRun, run_plan
from relex_ext.scanfile import ScanFile, is_finite
from relex_ext.scanning import Scanning
from relex_ext.trajectory import Tensor, Trajectory
from relex_ext.world import World

LOG = logging.getLogger("relex_ext")


def rows_needed(weights: Weights) -> Rows:
    """The checkpoints that have a weight."""
    return {
        name: tuple(np.flatnonzero(np.any(w, axis=0)).tolist())
        for name, w in weights.tensors.items()
    }


class Remaining:
    """The tensors of an output that an earlier run has not written."""

    def __init__(
        self,
        trajectory: Trajectory,
        plan: Plan,
        choice: Choice,
        rank: int,
        output: Output,
        tick: Tick,
        world: World,
    ) -> None:
        self._trajectory = trajectory
        self._plan = plan
        self._choice = choice
        self._rank = rank
        self._output = output
        self._tick = tick
        self._world = world
        self._to_note: list[Tensor] = []
        """Written by several processes, of which this one answers for them."""
        mine = output.finished(item.tensor for item in world.to_verify(plan))
        self._written = set().union(*world.gather(mine))
        if self._written:
            LOG.info(
                "an unfinished run goes on: %d of %d tensors are written",
                len(self._written), len(plan.tensors),
            )  # fmt: skip

    def combine(self, weights: Weights) -> None:
        """Write every target of given weights."""

        def work(run: TensorRun, item: TensorPlan) -> None:
            name = item.tensor.name
            table = np.ascontiguousarray(weights.tensors[name], np.float64)
            self._combine(run, item, table, name in weights.carried)

        items = [replace(item, solver="none") for item in self._left()]
        self._run(items, work, rows_needed(weights))

    def scan_and_combine(
        self, scanning: Scanning, targets: tuple[float, ...], options: Options
    ) -> Callable[[], Weights]:
        """Scan, weigh and write every tensor, one after the other. Returns what tells the weights
        of all, when all processes have done so."""
        steps = self._trajectory.steps
        strengths = options.strengths(targets)
        fitted: dict[str, Found] = {}

        def weigh_one(name: str) -> Found:
            found = scanning.found[name]
            if is_finite(found):
                return weigh(Source(name, found), steps, targets, options, strengths)
            return np.zeros((len(targets), len(steps))), ()

        def work(run: TensorRun, item: TensorPlan) -> None:
            name = item.tensor.name
            scanning.scan(run, item)
            # LAPACK's last bits are the processor's: parts of one tensor get the same weights.
            fitted[name] = self._world.from_owner(item, lambda: weigh_one(name))
            self._combine(run, item, fitted[name][0], not is_finite(scanning.found[name]))

        # A tensor that was written without a trace of its scan is done again.
        self._written &= scanning.found.keys()
        items = [
            replace(item, solver="none") if item.tensor.name in scanning.found else item
            for item in self._left()
        ]
        self._run(items, work, keep=True)
        for others in self._world.gather(fitted):
            fitted.update(others)

        def all_weights() -> Weights:
            # In the trajectory's order: devices and processes finish their tensors in any.
            names = [tensor.name for tensor in self._trajectory.trained]
            known = {name: fitted[name] if name in fitted else weigh_one(name) for name in names}
            return Weights(
                steps, targets, {name: one[0] for name, one in known.items()},
                {name: one[1] for name, one in known.items()}, strengths, options.method,
                tuple(name for name in names if not is_finite(scanning.found[name])),
            )  # fmt: skip

        return all_weights

    def settle(self, scan: ScanFile | None) -> None:
        """Make durable what this process has written, here and to the scan, and note what several
        have."""
        if self._world.size == 1:
            return  # whoever completes the output does so
        self._output.flush()
        if scan is not None:
            scan.flush()
        self._trajectory.check_unchanged()
        self._world.gather(None)
        for tensor in self._to_note:
            self._output.note(tensor)

    def _combine(
        self, run: TensorRun, item: TensorPlan, weights: NDArray[np.float64], carried: bool
    ) -> None:
        owns = self._world.owns(item)
        if carried:
            run.skip(item)
            if owns:
                self._output.carry(item.tensor)
        else:
            run.combine(item, weights)
            if owns and item.part is not None:
                self._to_note.append(item.tensor)

    def _left(self) -> list[TensorPlan]:
        left = []
        for item in self._plan.tensors:
            if item.tensor.name in self._written:
                self._tick(item.tensor.nbytes)
            else:
                left.append(item)
        return left

    def _run(
        self,
        items: Sequence[TensorPlan],
        work: Callable[[TensorRun, TensorPlan], None],
        rows: Rows | None = None,
        keep: bool = False,
    ) -> None:
        mine = tuple(self._world.share(self._plan, items, keep))
        run_plan(
            replace(self._plan, tensors=mine), self._choice, self._trajectory.steps,
            self._rank, self._output, self._tick, work, rows, self._world,
        )  # fmt: skip
