"""The public verbs on folders: scan, forecast, combine, and all three in one pass: extrapolate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relex_ext.checkpoints import Checkpoints, PathLike
from relex_ext.engine import Run
from relex_ext.errors import InputError
from relex_ext.forecasts import Options, Spectrum, Weights, check_targets, relex
from relex_ext.job import Extrapolation, Job, ProgressBar, keep_in
from relex_ext.machine import Machine
from relex_ext.output import SCAN
from relex_ext.plan import TensorPlan
from relex_ext.runs import run_plan
from relex_ext.scans import Scan, ScanFile, identities_of, planned_layout
from relex_ext.trajectory import Trajectory, open_trajectory


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
    device: str | Sequence[str] | None = None,
    memory_limit: str | int | None = None,
    device_memory: str | int | None = None,
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
        backend, device, memory_limit, device_memory, io, threads: see :func:`extrapolate`.

    Raises:
        RelexError: input that does not fit together, or an output that exists.
    """
    options = Options(rank=rank)
    trajectory = open_trajectory(base, checkpoints, until, steps)
    machine = Machine(backend, device, threads, memory_limit, device_memory, io)
    choice, plan = machine.lay_out(
        trajectory, targets=0, scanned=False, solver=solver, rank=options.rank
    )
    if out is not None and Path(out).exists():
        if not overwrite:
            raise InputError(f"{out}: exists already; choose another file or pass overwrite")
        Scan.load(out)  # refuses what is not a scan: overwrite replaces only what relex wrote
    found: dict[str, NDArray[np.float64] | Spectrum] = {}
    with ExitStack() as stack:
        tick = stack.enter_context(ProgressBar(plan.bytes_read, "scan", progress))
        file = None
        if out is not None:
            layout = planned_layout(trajectory, plan, rank)
            file = stack.enter_context(ScanFile.beside(Path(out), layout))

        def work(run: Run, item: TensorPlan) -> None:
            result = run.scan(item)
            if file is not None:
                keep_in(file, item.tensor.name, result)
            else:
                found[item.tensor.name] = result

        run_plan(plan, choice, trajectory.steps, rank, None, tick, work)
        if file is not None:
            file.publish()
    if out is not None:
        return Scan.load(out)
    ordered = [(item.tensor.name, found[item.tensor.name]) for item in plan.tensors]
    grams = {name: one for name, one in ordered if not isinstance(one, Spectrum)}
    spectra = {name: one for name, one in ordered if isinstance(one, Spectrum)}
    return Scan(trajectory.steps, grams, spectra, identities_of(trajectory))


def forecast(
    scan: Scan | PathLike,
    target_steps: Iterable[float] | float,
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
    device: str | Sequence[str] | None = None,
    dtype: str | None = None,
    memory_limit: str | int | None = None,
    device_memory: str | int | None = None,
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
    machine = Machine(backend, device, threads, memory_limit, device_memory, io)
    job = Job(trajectory, targets, out, machine, dtype, overwrite, progress)
    return job.run(Options(), "none", weights=weights, given={"weights": "given"})


def extrapolate(
    base: PathLike,
    checkpoints: Checkpoints,
    target_steps: Iterable[float] | float,
    out: PathLike,
    *,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    rank: int = 1,
    solver: str = "auto",
    backend: str = "auto",
    device: str | Sequence[str] | None = None,
    dtype: str | None = None,
    memory_limit: str | int | None = None,
    device_memory: str | int | None = None,
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
        backend: ``"cpu"``, ``"cuda"``, ``"triton"``, ``"reference"`` (numpy float64) or ``"auto"``:
            cuda where it is built and there is a GPU, else triton, else cpu. What it chose is
            logged (logger ``relex_ext``, INFO).
        device: ``"cuda:1"``, or several, ``"cuda:0,cuda:2"``, each with a part of the tensors; by
            default all GPUs that torch sees.
        dtype: of the weights written; by default each tensor's in the newest checkpoint.
        memory_limit: bytes or ``"2GiB"`` for strips and buffers; half of what is free by default.
            With a GPU it bounds the pinned memory through which they pass.
        device_memory: the same for strips, buffers and scratch on each GPU; 80 % of what is free
            there by default.
        io: ``"mmap"``, ``"pread"`` or ``"auto"``; with a GPU ``"pread"``, ``"gds"`` (GPUDirect
            Storage) or ``"auto"``.
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
    machine = Machine(backend, device, threads, memory_limit, device_memory, io)
    job = Job(trajectory, targets, out, machine, dtype, overwrite, progress)
    return job.run(options, solver, weights=weights, given=given, keep=keep, dry_run=dry_run)


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


__all__ = ["Extrapolation", "combine", "extrapolate", "forecast", "scan"]
