"""Tensor by tensor: what is left to be written of an output."""

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
from relex_ext.scanfile import is_finite
from relex_ext.scanning import Scanning
from relex_ext.trajectory import Trajectory

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
    ) -> None:
        self._trajectory = trajectory
        self._plan = plan
        self._choice = choice
        self._rank = rank
        self._output = output
        self._tick = tick
        self._written = output.finished()
        if self._written:
            LOG.info(
                "an unfinished run goes on: %d of %d tensors are written",
                len(self._written), len(plan.tensors),
            )  # fmt: skip

    def combine(self, weights: Weights) -> Weights:
        """Write every target of given weights."""

        def work(run: TensorRun, item: TensorPlan) -> None:
            name = item.tensor.name
            table = np.ascontiguousarray(weights.tensors[name], np.float64)
            self._combine(run, item, table, name in weights.carried)

        items = [replace(item, solver="none") for item in self._left()]
        self._run(items, work, rows_needed(weights))
        return weights

    def scan_and_combine(
        self, scanning: Scanning, targets: tuple[float, ...], options: Options
    ) -> Weights:
        """Scan, weigh and write every tensor, one after the other; the weights."""
        steps = self._trajectory.steps
        strengths = options.strengths(targets)
        fitted: dict[str, Found] = {}

        def weigh_one(name: str) -> None:
            found = scanning.found[name]
            if is_finite(found):
                source = Source(name, found)
                fitted[name] = weigh(source, steps, targets, options, strengths)
            else:
                fitted[name] = np.zeros((len(targets), len(steps))), ()

        def work(run: TensorRun, item: TensorPlan) -> None:
            name = item.tensor.name
            scanning.scan(run, item)
            weigh_one(name)
            carried = not is_finite(scanning.found[name])
            self._combine(run, item, fitted[name][0], carried)

        # A tensor that was written without a trace of its scan is done again.
        self._written &= scanning.found.keys()
        for name in self._written:
            weigh_one(name)
        items = [
            replace(item, solver="none") if item.tensor.name in scanning.found else item
            for item in self._left()
        ]
        self._run(items, work)
        # In the trajectory's order: devices finish their tensors in any.
        names = [tensor.name for tensor in self._trajectory.trained]
        return Weights(
            steps, targets, {name: fitted[name][0] for name in names},
            {name: fitted[name][1] for name in names}, strengths, options.method,
            tuple(name for name in names if not is_finite(scanning.found[name])),
        )  # fmt: skip

    def _combine(
        self, run: TensorRun, item: TensorPlan, weights: NDArray[np.float64], carried: bool
    ) -> None:
        if carried:
            run.skip(item)
            self._output.carry(item.tensor)
        else:
            run.combine(item, weights)

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
    ) -> None:
        run_plan(
            replace(self._plan, tensors=tuple(items)), self._choice, self._trajectory.steps,
            self._rank, self._output, self._tick, work, rows,
        )  # fmt: skip
