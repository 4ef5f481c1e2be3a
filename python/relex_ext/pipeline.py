"""The public verbs on folders: scan, forecast, combine, and all three in one pass: extrapolate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext import __version__, dtypes
from relex_ext.backends import Backend, open_backend
from relex_ext.checkpoints import Checkpoints, PathLike
from relex_ext.engine import Run, Tick
from relex_ext.errors import InputError
from relex_ext.forecasts import (
    Component,
    Options,
    Spectrum,
    Weights,
    check_targets,
    relex,
    spectrum_of_gram,
)
from relex_ext.output import SCAN, Output, check_output, check_space, target_name
from relex_ext.plan import Plan, free_space, make_plan
from relex_ext.scans import Scan, ScanFile, identities_of, planned_layout
from relex_ext.trajectory import Trajectory, folder_of, open_trajectory


@dataclass(frozen=True)
class Extrapolation:
    """What a run did, or with ``dry_run`` would do.

    ``folders``: target → the model folder written for it; ``weights``: what went into them (None
    for a dry run without a scan); ``free_space``: bytes, where ``out`` is.
    """

    out: Path
    folders: Mapping[float, Path]
    plan: Plan
    free_space: int
    weights: Weights | None
    record: Mapping[str, Any]


def scan(
    base: PathLike,
    checkpoints: Checkpoints,
    *,
    out: PathLike | None = None,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    rank: int = 1,
    solver: str = "gram",
    backend: str = "auto",
    memory_limit: str | int | None = None,
    io: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Scan:
    """One pass over the checkpoints: every tensor's Gram matrix of deltas, G = ΔΔᵀ in float64.

    Args:
        base: the model folder the run started from.
        checkpoints: a run folder, or ``{step: folder}``.
        out: a file to keep the result in; without it, it stays in memory.
        until, steps: which checkpoints to use.
        rank: pairs to find where ``solver`` is ``"power"``.
        solver: ``"gram"``, ``"power"`` (T × rank numbers a tensor instead of T²) or ``"auto"``.
        backend, memory_limit, io, threads: see :func:`extrapolate`.

    Raises:
        RelexError: input that does not fit together, or an output that exists.
    """
    options = Options(rank=rank)
    trajectory = open_trajectory(base, checkpoints, until, steps)
    engine = open_backend(backend, threads)
    plan = make_plan(
        trajectory, targets=0, scanned=False, solver=solver, rank=options.rank,
        isa=_isa(engine), memory_limit=memory_limit, io=io,
    )  # fmt: skip
    if out is not None and Path(out).exists():
        if not overwrite:
            raise InputError(f"{out}: exists already; choose another file or pass overwrite")
        Scan.load(out)  # refuses what is not a scan: overwrite replaces only what relex wrote
    grams: dict[str, NDArray[np.float64]] = {}
    spectra: dict[str, Spectrum] = {}
    with ExitStack() as stack:
        tick = stack.enter_context(_progress(plan.bytes_read, "scan", progress))
        file = None
        if out is not None:
            layout = planned_layout(trajectory, plan, rank)
            file = stack.enter_context(ScanFile.beside(Path(out), layout))
        run = stack.enter_context(Run(plan, trajectory.steps, engine, rank, None, tick))
        for item in plan.tensors:
            found = run.scan(item)
            if file is not None:
                _keep(file, item.tensor.name, found)
            elif isinstance(found, Spectrum):
                spectra[item.tensor.name] = found
            else:
                grams[item.tensor.name] = found
        if file is not None:
            file.publish()
    if out is not None:
        return Scan.load(out)
    return Scan(trajectory.steps, grams, spectra, identities_of(trajectory))


def forecast(
    scan: Scan | PathLike,
    target_steps: Sequence[float] | float,
    *,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    rank: int = 1,
    time_axis: str = "step",
    step_scale: float = 1.0,
) -> Weights:
    """The weights of RELEX's forecast at each target, from a scan alone.

    Args:
        scan: a :class:`Scan` or its file.
        target_steps: where to extrapolate to, in the unit of the checkpoints' steps.
        until, steps: fit on a part of the scan's checkpoints.
        rank: ranks to extrapolate, each along a line of its own.
        time_axis: ``"step"`` fits against step numbers, ``"index"`` against 0…T−1 as the authors'
            script does.
        step_scale: multiplies each target before the line is evaluated.
    """
    options = Options(rank, time_axis, step_scale)
    targets = check_targets(target_steps)
    loaded = scan if isinstance(scan, Scan) else Scan.load(scan)
    chosen = _chosen_steps(loaded, until, steps)
    tensors, components = {}, {}
    for name in loaded.names:
        spectrum = loaded.spectrum(name, rank, chosen)
        tensors[name], components[name] = relex(spectrum, chosen, targets, options)
    return Weights(chosen, targets, tensors, components)


def combine(
    base: PathLike,
    checkpoints: Checkpoints,
    weights: Weights,
    out: PathLike,
    *,
    backend: str = "auto",
    dtype: str | None = None,
    memory_limit: str | int | None = None,
    io: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Extrapolation:
    """Write base + Σ_t w_t Δ_t for every target of ``weights``, all in one pass over the shards.

    Checkpoints whose weight is zero everywhere in a tensor are not read for it.
    """
    trajectory = open_trajectory(base, checkpoints, steps=weights.steps, least=1)
    targets = check_targets(weights.targets)
    _check_weights(trajectory, weights)
    job = _Job(
        trajectory, targets, out, backend, threads, dtype, memory_limit, io, overwrite, progress
    )
    return job.run(Options(), "none", weights=weights, given={"weights": "given"})


def extrapolate(
    base: PathLike,
    checkpoints: Checkpoints,
    target_steps: Sequence[float] | float,
    out: PathLike,
    *,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    rank: int = 1,
    solver: str = "auto",
    backend: str = "auto",
    dtype: str | None = None,
    memory_limit: str | int | None = None,
    io: str = "auto",
    threads: int | None = None,
    time_axis: str = "step",
    step_scale: float = 1.0,
    scan: Scan | PathLike | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> Extrapolation:
    """Write the checkpoints of later steps without training them (RELEX, arXiv 2605.21468).

    Args:
        base: the model folder the run started from (θ₀).
        checkpoints: the run folder with its step folders, ``{step: folder}``, or (step, folder)
            pairs. At least two are needed.
        target_steps: one or several steps; each becomes ``out/step_<target>``.
        out: a folder to make.
        until, steps: use the checkpoints up to a step, or exactly these.
        rank: how many singular directions to extrapolate, each along its own line.
        solver: ``"gram"``, ``"power"`` (block power iteration) or ``"auto"``, the cheaper one.
        backend: ``"cpu"``, ``"reference"`` (numpy float64) or ``"auto"``.
        dtype: of the weights written; by default each tensor's in the newest checkpoint.
        memory_limit: bytes or ``"2GiB"`` for strips and buffers; half of what is free by default.
        io: ``"mmap"``, ``"pread"`` or ``"auto"``.
        threads: of the arithmetic; by default every processor this process may use.
        time_axis, step_scale: see :func:`forecast`.
        scan: a scan of these checkpoints, or its file: then no shard is read to scan. A file that
            does not exist yet is written.
        overwrite: replace an ``out`` that relex wrote.
        dry_run: plan only; write nothing.
        progress: show a progress bar.

    Returns:
        Where the checkpoints are, the weights behind them and the record kept in ``relex.json``.

    Raises:
        RelexError: with one line that says what does not fit; nothing has been written.
    """
    options = Options(rank, time_axis, step_scale)
    targets = check_targets(target_steps)
    trajectory = open_trajectory(base, checkpoints, until, steps)
    given = {"rank": rank, "solver": solver, "time_axis": time_axis, "step_scale": step_scale}
    weights, keep = None, None
    if isinstance(scan, Scan) or (scan is not None and Path(scan).exists()):
        loaded = scan if isinstance(scan, Scan) else Scan.load(scan)
        loaded.check(trajectory)
        weights = forecast(
            loaded, targets, steps=trajectory.steps, rank=rank,
            time_axis=time_axis, step_scale=step_scale,
        )  # fmt: skip
    elif scan is not None:
        keep = Path(scan)
        if Path(out).absolute() in keep.absolute().parents:
            raise InputError(
                f"scan: {keep}: expected a path outside {out}, which keeps its own {SCAN}"
            )
    job = _Job(
        trajectory, targets, out, backend, threads, dtype, memory_limit, io, overwrite, progress
    )
    return job.run(options, solver, weights=weights, given=given, keep=keep, dry_run=dry_run)


class _Job:
    """A run that writes checkpoints: everything checked first, then tensor by tensor."""

    def __init__(
        self,
        trajectory: Trajectory,
        targets: tuple[float, ...],
        out: PathLike,
        backend: str,
        threads: int | None,
        dtype: str | None,
        memory_limit: str | int | None,
        io: str,
        overwrite: bool,
        progress: bool,
    ) -> None:
        self.trajectory = trajectory
        self.targets = targets
        self.out = Path(out)
        self.backend = open_backend(backend, threads)
        self.dtype = None if dtype is None else dtypes.parse(dtype)
        self.memory_limit = memory_limit
        self.io = io
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
        keep: Path | None = None,
        dry_run: bool = False,
    ) -> Extrapolation:
        trajectory = self.trajectory
        rows = None if weights is None else _rows_needed(weights)
        plan = make_plan(
            trajectory, targets=len(self.targets), scanned=weights is not None,
            solver="auto" if solver == "none" else solver, rank=options.rank,
            isa=_isa(self.backend), memory_limit=self.memory_limit, io=self.io, dtype=self.dtype,
            rows_read=rows,
        )  # fmt: skip
        free = free_space(self.out)
        folders = {t: self.out / target_name(t) for t in self.targets}
        if dry_run:
            return Extrapolation(self.out, folders, plan, free, weights, {})
        check_space(self.out, plan.bytes_written, free)
        tensors: dict[str, NDArray[np.float64]] = {}
        components: dict[str, tuple[Component, ...]] = {}
        with ExitStack() as stack:
            tick = stack.enter_context(_progress(plan.bytes_read, "relex", self.progress))
            output = stack.enter_context(Output(self.out, trajectory, self.targets, self.dtype))
            files: list[ScanFile] = []
            if weights is None:
                layout = planned_layout(trajectory, plan, options.rank)
                files.append(stack.enter_context(ScanFile(output.partial / SCAN, layout)))
                if keep is not None:
                    files.append(stack.enter_context(ScanFile.beside(keep, layout)))
            run = stack.enter_context(
                Run(plan, trajectory.steps, self.backend, options.rank, output, tick, rows)
            )
            for item in plan.tensors:
                name = item.tensor.name
                if weights is None:
                    found = run.scan(item)
                    for file in files:
                        _keep(file, name, found)
                    if not isinstance(found, Spectrum):
                        found = spectrum_of_gram(found, options.rank)
                    tensors[name], components[name] = relex(
                        found, trajectory.steps, self.targets, options
                    )
                else:
                    tensors[name] = np.ascontiguousarray(weights.tensors[name], np.float64)
                    components[name] = weights.components.get(name, ())
                run.combine(item, tensors[name])
            for file in files[:1]:  # inside the output, complete before that is published
                file.publish()
            done = Weights(trajectory.steps, self.targets, tensors, components)
            record = self._record(plan, done, given)
            output.publish(record)
            for file in files[1:]:
                file.publish()
        return Extrapolation(self.out, folders, plan, free, done, record)

    def _record(self, plan: Plan, weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
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
                "frozen": not weights.tensors[tensor.name].any(),
                "components": [
                    {
                        "sigma": c.sigma,
                        "explained_variance": c.explained_variance,
                        "slope": c.slope,
                        "intercept": c.intercept,
                        "r2": c.r2,
                    }
                    for c in fits
                ],
            }
        return {
            "format": "relex/1",
            "versions": {"relex_ext": __version__, "numpy": np.__version__},
            "base": str(folder_of(trajectory.base.folder)),
            "checkpoints": {str(s): str(folder_of(c.folder)) for s, c in pairs},
            "targets": {target_name(t): t for t in self.targets},
            "options": {**given, "dtype": self.dtype, "backend": self.backend.name.split()[0]},
            "explained_variance": pooled(weights, "explained_variance"),
            "r2": pooled(weights, "r2"),
            "tensors": tensors,
        }


def pooled(weights: Weights, what: str) -> float | None:
    """A fit's leading ``explained_variance`` or ``r2``, averaged over tensors by their energy."""
    fits = [c[0] for c in weights.components.values() if c]
    energies = [c.sigma**2 / c.explained_variance for c in fits]
    if not fits:
        return None
    values = [getattr(c, what) for c in fits]
    return float(np.average(values, weights=energies))


def _keep(file: ScanFile, name: str, found: NDArray[np.float64] | Spectrum) -> None:
    if isinstance(found, Spectrum):
        file.put_spectrum(name, found)
    else:
        file.put_gram(name, found)


def _chosen_steps(scan: Scan, until: int | None, steps: Sequence[int] | None) -> tuple[int, ...]:
    chosen = scan.steps if steps is None else tuple(sorted(steps))
    scan.rows_of(chosen)
    if len(set(chosen)) != len(chosen):
        raise InputError(f"steps: expected each step once, found {list(chosen)}")
    if until is not None:
        chosen = tuple(step for step in chosen if step <= until)
    if len(chosen) < 2:
        raise InputError(f"scan: expected at least 2 steps to fit a line, found {len(chosen)}")
    return chosen


def _check_weights(trajectory: Trajectory, weights: Weights) -> None:
    expected = (len(weights.targets), len(weights.steps))
    for tensor in trajectory.trained:
        if tensor.name not in weights.tensors:
            raise InputError(f"weights: tensor {tensor.name}: missing")
        found = np.shape(weights.tensors[tensor.name])
        if found != expected:
            raise InputError(
                f"weights: tensor {tensor.name}: expected shape {expected}, found {found}"
            )
        if not np.isfinite(weights.tensors[tensor.name]).all():
            raise InputError(
                f"weights: tensor {tensor.name}: expected finite numbers, found NaN or Inf"
            )
    if tuple(sorted(weights.steps)) != tuple(weights.steps):
        raise InputError("weights: expected increasing steps")


def _rows_needed(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(np.flatnonzero(np.any(w, axis=0)).tolist())
        for name, w in weights.tensors.items()
    }


def _isa(backend: Backend) -> str:
    return getattr(backend, "isa", "scalar")


class _progress:
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

        def tick(nbytes: int) -> None:
            self._bar.update(nbytes)

        return tick

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.close()


__all__ = ["Extrapolation", "combine", "extrapolate", "forecast", "scan"]
