"""A run that writes checkpoints: everything checked first, then tensor by tensor."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext import __version__, dtypes
from relex_ext.advice import verdicts_on, walk_beside
from relex_ext.backends import Choice
from relex_ext.cards import card
from relex_ext.checkpoints import PathLike
from relex_ext.engine import Run, Tick
from relex_ext.evidence.verdict import Verdict
from relex_ext.forecasts import Source, Spectrum, Weights
from relex_ext.formulas import Found
from relex_ext.layout import Layout
from relex_ext.machine import Machine
from relex_ext.methods import AUTO, Options, weigh, weigh_scan
from relex_ext.output import SCAN, Output, check_output, check_space, target_name
from relex_ext.plan import Plan, TensorPlan, free_space
from relex_ext.runs import run_plan
from relex_ext.scans import Scan, ScanFile, planned_layout
from relex_ext.trajectory import Trajectory, folder_of


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
        self.progress = progress
        folders = [trajectory.base.folder, *(c.folder for c in trajectory.checkpoints)]
        check_output(self.out, overwrite, folders)

    def run(
        self,
        options: Options,
        solver: str,
        *,
        weights: Weights | None,
        given: Mapping[str, Any],
        scan: Scan | None = None,
        keep: Path | None = None,
        dry_run: bool = False,
    ) -> Extrapolation:
        """``weights``: known already, so that nothing is scanned, ``scan``: what they are from;
        ``keep``: a file for the scan."""
        trajectory = self.trajectory
        # Which strength is right shows in all tensors together, before the first is combined.
        apart = weights is None and options.strength == AUTO
        rows = None if weights is None else _rows_needed(weights)
        choice, plan = self.machine.lay_out(
            trajectory, targets=len(self.targets), scanned=weights is not None,
            solver="auto" if solver == "none" else solver, rank=options.rank, dtype=self.dtype,
            rows_read=rows, apart=apart,
        )  # fmt: skip
        free = free_space(self.out)
        folders = {k: self.out / name for k, name in zip(self.keys, self.names, strict=True)}
        if dry_run:
            return Extrapolation(self.out, folders, plan, free, weights, {}, str(choice))
        check_space(self.out, plan.bytes_written, free)
        fitted: dict[str, Found] = {}
        with ExitStack() as stack:
            tick = stack.enter_context(ProgressBar(plan.bytes_read, "relex", self.progress))
            writers = len(choice.backends)
            output = stack.enter_context(
                Output(self.out, trajectory, self.names, self.dtype, writers)
            )
            files: list[ScanFile] = []
            if weights is None:
                layout = self._scan_layout(plan, options)
                files.append(stack.enter_context(ScanFile(output.partial / SCAN, layout)))
                if keep is not None:
                    files.append(stack.enter_context(ScanFile.beside(keep, layout)))

            known, left = weights, plan
            if apart:
                known = self._scan_first(plan, choice, options, files, tick)
                rows = _rows_needed(known)
                left = replace(plan, tensors=tuple(replace(p, solver="none") for p in plan.tensors))
            strengths = options.strengths(self.targets) if known is None else known.strengths

            def work(run: Run, item: TensorPlan) -> None:
                name = item.tensor.name
                if known is None:
                    found = run.scan(item)
                    for file in files:
                        keep_in(file, name, found)
                    source = Source(name, found)
                    fitted[name] = weigh(source, trajectory.steps, self.targets, options, strengths)
                else:
                    table = np.ascontiguousarray(known.tensors[name], np.float64)
                    fitted[name] = table, known.components.get(name, ())
                run.combine(item, fitted[name][0])

            run_plan(left, choice, trajectory.steps, options.rank, output, tick, work, rows)
            for file in files[:1]:  # inside the output, complete before that is published
                file.publish()
            method = options.method if known is None else known.method
            done = _weights(trajectory, self.targets, fitted, strengths, method)
            record = self._record(plan, choice, done, given, options)
            if files:
                scan = Scan.load(files[0].path)
            verdicts = verdicts_on(scan, trajectory.steps, self.targets, options, strengths)
            record["random_walk"] = walk_beside(scan, trajectory.steps)
            record["verdicts"] = {
                name: verdicts[target].record()
                for name, target in zip(self.names, self.targets, strict=True)
                if target in verdicts
            }
            output.publish(record, self._cards(done, verdicts))
            for file in files[1:]:
                file.publish()
        return Extrapolation(self.out, folders, plan, free, done, record, str(choice), verdicts)

    def _cards(self, weights: Weights, verdicts: Mapping[float, Verdict]) -> list[bytes]:
        base, steps = self.trajectory.base.folder, self.trajectory.steps
        method = weights.method or "given weights"
        strengths = weights.strengths or [1.0] * len(self.targets)
        found = zip(self.targets, strengths, strict=True)
        return [card(base, steps, t, method, s, verdicts.get(t)) for t, s in found]

    def _scan_layout(self, plan: Plan, options: Options) -> Layout:
        return planned_layout(self.trajectory, plan, options.rank, self.machine.delta_dtype)

    def _scan_first(
        self,
        plan: Plan,
        choice: Choice,
        options: Options,
        files: Sequence[ScanFile],
        tick: Tick,
    ) -> Weights:
        """Scan every tensor; the weights that follow from all of them."""
        trajectory = self.trajectory
        found: dict[str, NDArray[np.float64] | Spectrum] = {}

        def work(run: Run, item: TensorPlan) -> None:
            found[item.tensor.name] = run.scan(item)
            for file in files:
                keep_in(file, item.tensor.name, found[item.tensor.name])

        run_plan(plan, choice, trajectory.steps, options.rank, None, tick, work)
        scan = Scan.of(trajectory, found, self.machine.delta_dtype)
        return weigh_scan(scan, trajectory.steps, self.targets, options)

    def _record(
        self,
        plan: Plan,
        choice: Choice,
        weights: Weights,
        given: Mapping[str, Any],
        options: Options,
    ) -> dict[str, Any]:
        """The contents of relex.json. Nothing in it depends on threads, memory or the clock."""
        trajectory = self.trajectory
        pairs = zip(trajectory.steps, trajectory.checkpoints, strict=True)
        solvers = {p.tensor.name: p.solver for p in plan.tensors}
        tensors = {}
        for tensor in trajectory.trained:
            fits = weights.components[tensor.name]
            tensors[tensor.name] = {
                "shape": list(tensor.shape),
                "solver": solvers[tensor.name],
                "frozen": not weights.tensors[tensor.name].any() if options.spectral else None,
                "components": [
                    {
                        "sigma": c.sigma,
                        "explained_variance": c.explained_variance,
                        "slope": c.slope,
                        "intercept": c.intercept,
                        "r2": c.r2,
                        "parameters": list(c.parameters),
                    }
                    for c in fits
                ],
            }
        return {
            "format": "relex/1",
            "versions": {"relex_ext": __version__, "numpy": np.__version__},
            "base": str(folder_of(trajectory.base.folder)),
            "checkpoints": {str(s): str(folder_of(c.folder)) for s, c in pairs},
            "targets": dict(zip(self.names, self.targets, strict=True)),
            "options": {**given, "dtype": self.dtype, "backend": choice.name},
            "strengths": dict(zip(self.names, weights.strengths, strict=False)),
            "devices": choice.device_names(),
            "explained_variance": pooled(weights, "explained_variance"),
            "r2": pooled(weights, "r2"),
            "tensors": tensors,
        }


def _weights(
    trajectory: Trajectory,
    targets: tuple[float, ...],
    fitted: Mapping[str, Found],
    strengths: tuple[float, ...],
    method: str,
) -> Weights:
    """In the trajectory's order: devices finish their tensors in any."""
    names = [tensor.name for tensor in trajectory.trained]
    tensors = {name: fitted[name][0] for name in names}
    components = {name: fitted[name][1] for name in names}
    return Weights(trajectory.steps, targets, tensors, components, strengths, method)


def pooled(weights: Weights, what: str) -> float | None:
    """A fit's leading ``explained_variance`` or ``r2``, averaged over tensors by their energy."""
    fits = [c[0] for c in weights.components.values() if c and getattr(c[0], what) is not None]
    energies = [c.sigma**2 / c.explained_variance for c in fits]
    if not fits:
        return None
    values = [getattr(c, what) for c in fits]
    return float(np.average(values, weights=energies))


def keep_in(file: ScanFile, name: str, found: NDArray[np.float64] | Spectrum) -> None:
    if isinstance(found, Spectrum):
        file.put_spectrum(name, found)
    else:
        file.put_gram(name, found)


def _rows_needed(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(np.flatnonzero(np.any(w, axis=0)).tolist())
        for name, w in weights.tensors.items()
    }


class ProgressBar:
    """A bar over bytes; entering it gives the function that advances it."""

    def __init__(self, total: int, label: str, shown: bool) -> None:
        self._total, self._label, self._shown = total, label, shown

    def __enter__(self) -> Tick:
        if not self._shown:
            return lambda nbytes: None
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=self._total, desc=self._label, unit="B", unit_scale=True, unit_divisor=1024
        )

        lock = threading.Lock()

        def tick(nbytes: int) -> None:
            with lock:  # devices tick from threads of their own
                self._bar.update(nbytes)

        return tick

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.close()
