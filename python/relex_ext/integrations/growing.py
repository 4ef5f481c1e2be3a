"""A scan that takes up checkpoints as they are saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from relex_ext.engine import Run
from relex_ext.errors import InputError
from relex_ext.identities import identities_of
from relex_ext.machine import Machine
from relex_ext.plan import TensorPlan
from relex_ext.power import block_size
from relex_ext.runs import TensorRun, run_plan
from relex_ext.scanning import Scanning
from relex_ext.scans import Scan
from relex_ext.trajectory import Trajectory

Columns = Mapping[str, NDArray[np.float64]]
"""Tensor → G[:, new] (T, k)."""


def grow(scan: Scan | None, trajectory: Trajectory, machine: Machine) -> Scan:
    """The trajectory's scan, of which ``scan`` has some steps already, but not all.

    A few new steps cost T·d operations each where all of G costs T²·d; the shards are read once,
    all of them, in either case.

    Raises:
        InputError: the base or a step is not what it was when ``scan`` saw it, or holds NaN or Inf.
    """
    steps = trajectory.steps
    known = [] if scan is None else [step for step in steps if step in scan.steps]
    new = [row for row, step in enumerate(steps) if step not in known]
    if scan is None or not known or len(new) > block_size(len(steps), 1):
        return _scan_all(trajectory, machine)
    check_known(scan, identities_of(trajectory), known)
    columns = _columns(trajectory, machine, new)
    old = [row for row in range(len(steps)) if row not in new]
    found = {}
    for tensor in trajectory.trained:
        gram = np.zeros((len(steps), len(steps)))
        gram[np.ix_(old, old)] = scan.source(tensor.name, known).gram
        fresh = columns[tensor.name]
        gram[:, new] = fresh
        gram[new, :] = fresh.T
        gram[np.ix_(new, new)] = (fresh[new] + fresh[new].T) / 2.0
        found[tensor.name] = gram
    trajectory.check_unchanged()
    return Scan.of(trajectory, found, scan.delta_dtype)


def only(scan: Scan, steps: Sequence[int]) -> Scan:
    """What a scan knows of some of its steps."""
    kept = {"base", *map(str, steps)}
    return replace(
        scan,
        steps=tuple(steps),
        grams={name: scan.source(name, steps).gram for name in scan.grams},
        identities={key: digest for key, digest in scan.identities.items() if key in kept},
    )


def check_known(scan: Scan, identities: Mapping[str, str], steps: Sequence[int]) -> None:
    """Refuse files that have changed since the scan saw them."""
    for key in ("base", *map(str, steps)):
        if scan.identities.get(key) != identities[key]:
            what = "the base" if key == "base" else f"step {key}"
            raise InputError(f"scan: {what} has other files now than when it was recorded")


def _scan_all(trajectory: Trajectory, machine: Machine) -> Scan:
    choice, plan = machine.lay_out(trajectory, targets=0, scanned=False, solver="gram", rank=1)
    scanning = Scanning(trajectory, 1, "refuse", None, machine.world)
    scanning.run(plan, choice, _no_tick)
    trajectory.check_unchanged()
    return Scan.of(trajectory, scanning.found, machine.delta_dtype)


def _columns(trajectory: Trajectory, machine: Machine, rows: Sequence[int]) -> Columns:
    choice, plan = machine.lay_out(trajectory, targets=0, scanned=False, solver="power", rank=1)
    found: dict[str, NDArray[np.float64]] = {}

    def work(run: TensorRun, item: TensorPlan) -> None:
        assert isinstance(run, Run)  # models, not adapters, are watched
        found[item.tensor.name] = run.columns(item, rows)

    run_plan(plan, choice, trajectory.steps, 1, None, _no_tick, work)
    return found


def _no_tick(nbytes: int) -> None:
    pass
