"""The public verbs on folders: scan, forecast, combine, and all three in one pass: extrapolate."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from relex_ext.dtypes import parse_delta
from relex_ext.errors import InputError
from relex_ext.forecasts import Weights, check_targets
from relex_ext.hub.names import Revisions
from relex_ext.identities import job_of
from relex_ext.inputs import open_inputs
from relex_ext.job import Extrapolation, Job
from relex_ext.machine import Machine
from relex_ext.methods import AUTO, Options, scan_solver, weigh_scan, weigh_unscanned
from relex_ext.nonfinite import HINT
from relex_ext.output import SCAN, check_names
from relex_ext.progress import ProgressBar
from relex_ext.scanfile import ScanFile, planned_layout
from relex_ext.scanning import Scanning, check_nonfinite
from relex_ext.scans import Scan
from relex_ext.steps import Checkpoints, PathLike
from relex_ext.trajectory import Trajectory
from relex_ext.world import World


def scan(
    base: PathLike,
    checkpoints: Checkpoints,
    *,
    out: PathLike | None = None,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    revisions: Revisions | None = None,
    max_local: str | int | None = None,
    rank: int = 1,
    solver: str = "gram",
    backend: str = "auto",
    device: str | Sequence[str] | None = None,
    memory_limit: str | int | None = None,
    device_memory: str | int | None = None,
    io: str = "auto",
    threads: int | None = None,
    delta_dtype: str = "float32",
    nonfinite: str = "refuse",
    overwrite: bool = False,
    progress: bool = True,
    world: World | None = None,
) -> Scan:
    """One pass over the checkpoints: every tensor's Gram matrix of deltas, G = ΔΔᵀ in float64.

    Args:
        base: the model folder the run started from.
        checkpoints: see :func:`extrapolate`.
        out: a file to keep the result in; without it, it stays in memory.
        until, steps: which checkpoints to use.
        revisions, max_local: see :func:`extrapolate`.
        rank: pairs to find where ``solver`` is ``"power"``.
        solver: ``"gram"``, ``"power"`` (T × rank numbers a tensor instead of T²) or ``"auto"``.
        backend, device, memory_limit, device_memory, io, threads, delta_dtype, nonfinite, world:
            see :func:`extrapolate`.

    With ``out``, a call that was interrupted or killed goes on when it is repeated.

    Raises:
        RelexError: input that does not fit together, or an output that exists.
    """
    options = Options(rank=rank)
    check_nonfinite(nonfinite)
    world = world or World()
    _check_max_local(max_local, world)
    trajectory = open_inputs(
        base, checkpoints, until, steps, revisions=revisions, max_local=max_local,
        progress=progress and world.rank == 0,
    )  # fmt: skip
    deltas = parse_delta(delta_dtype)
    machine = Machine(backend, device, threads, memory_limit, device_memory, io, deltas, world)
    choice, plan = machine.lay_out(
        trajectory, targets=0, scanned=False, solver=solver, rank=options.rank
    )

    def make(file: ScanFile | None) -> Scanning:
        scanning = Scanning(trajectory, rank, nonfinite, file, world)
        shown = progress and world.rank == 0
        with ProgressBar(plan.bytes_read // world.size, "scan", shown) as tick:
            scanning.run(plan, choice, tick)
        trajectory.check_unchanged()
        return scanning

    if out is None:
        scanning = make(None)
        scanning.take_over()
        return Scan.of(trajectory, scanning.found, deltas)
    place = Path(out)
    check = partial(_check_scan_file, place, overwrite)
    check()
    job = job_of(
        trajectory, plan, choice, {"scan": rank, "delta_dtype": deltas, "nonfinite": nonfinite}
    )
    layout = planned_layout(trajectory, plan, rank, deltas)
    with (
        world.workspace(place, job, check) as work,
        ScanFile(work.path / SCAN, layout, work.journal, work.joins) as file,
    ):
        work.begun()
        scanning = make(file)
        file.flush()
        work.ended()

        def complete() -> None:
            scanning.take_over()
            file.complete()
            work.publish(SCAN)

        world.agree(complete)
    return Scan.load(place)


def _check_max_local(max_local: str | int | None, world: World) -> None:
    if max_local is not None and world.size > 1:
        raise InputError(
            f"max_local: expected one process, found {world.size}; fetch the checkpoints first"
        )


def _check_scan_file(out: Path, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"{out}: exists already; choose another file or pass overwrite")
    Scan.load(out)  # refuses what is not a scan: overwrite replaces only what relex wrote


def forecast(
    scan: Scan | PathLike,
    target_steps: Iterable[float] | float,
    *,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    rank: int = 1,
    time_axis: str = "step",
    step_scale: float = 1.0,
    method: str = "relex",
    fit: str = "linear",
    degree: int | None = None,
    window: int | None = None,
    refit: int | None = None,
    alpha: float | None = None,
    decay: float | None = None,
    strength: float | str = 1.0,
) -> Weights:
    """The weights of RELEX's forecast at each target, from a scan alone.

    Args:
        scan: a :class:`Scan` or its file.
        target_steps: where to extrapolate to, in the unit of the checkpoints' steps.
        until, steps: fit on a part of the scan's checkpoints.
        rank: singular directions to use, each with a curve of its own.
        time_axis: ``"step"`` fits against step numbers; ``"index"`` against the rows 0 … W−1 of the
            window, as the authors' script does: a target, rounded to a whole step, lies as many
            rows after the last as it lies steps after the newest.
        step_scale: multiplies each target, and the target alone.
        method: what the weights are (docs/method.md has the formulae):

            - ``"relex"``: the curves' values, from the base;
            - ``"pinned"``: their movement since the newest checkpoint, added to it;
            - ``"reconstruct"``: an observed step, projected on the leading directions;
            - ``"fit-reconstruct"``: the curves at an observed step;
            - ``"latest"``: the newest checkpoint;
            - ``"secant"``: the line from the base to the newest;
            - ``"two-point"``: the line through two checkpoints, the newest and another;
            - ``"first-update"``: the first checkpoint's delta, scaled;
            - ``"ema"``: the checkpoints' exponential average.
        fit: the curve: ``"linear"``, ``"polynomial"`` or ``"sine"``.
        degree: of the polynomial, 1 to 9; 2 by default.
        window: fit the newest so many values; the directions are those of all checkpoints. With
            two-point, how many checkpoints before the newest the other one is. All by default.
        refit: go on step by step, each prediction taking the place of the window's oldest value,
            and fit again after every so many.
        alpha: the scale of first-update; s*/s₁ by default.
        decay: what ema's weights lose with each step back, 0 to 1; 0.9 by default.
        strength: λ, how far to go from the newest checkpoint to what the method says: w becomes
            e_T + λ (w − e_T). 0 is the newest, 1 the method. ``"auto"`` takes for each target the λ
            that the drift in the checkpoints supports (docs/evidence.md); it needs G.

    Raises:
        InputError: options that do not fit together, the checkpoints or the targets, or ask more
            than the scan holds.
    """
    options = Options(
        rank, time_axis, step_scale, method, fit, degree, window, refit, alpha, decay, strength
    )
    targets = check_targets(target_steps)
    loaded = Scan.given(scan)
    return weigh_scan(loaded, _chosen_steps(loaded, until, steps), targets, options)


def combine(
    base: PathLike,
    checkpoints: Checkpoints,
    weights: Weights,
    out: PathLike,
    *,
    names: Sequence[str] | None = None,
    revisions: Revisions | None = None,
    max_local: str | int | None = None,
    backend: str = "auto",
    device: str | Sequence[str] | None = None,
    dtype: str | None = None,
    memory_limit: str | int | None = None,
    device_memory: str | int | None = None,
    io: str = "auto",
    threads: int | None = None,
    delta_dtype: str = "float32",
    overwrite: bool = False,
    progress: bool = True,
    world: World | None = None,
) -> Extrapolation:
    """Write base + Σ_t w_t Δ_t for every target of ``weights``, all in one pass over the shards.

    Checkpoints whose weight is zero everywhere in a tensor are not read for it. ``names``: of the
    targets' folders, where ``step_<target>`` is not what tells them apart; ``delta_dtype``: the
    scan's that the weights are from.
    """
    world = world or World()
    _check_max_local(max_local, world)
    trajectory = open_inputs(
        base, checkpoints, steps=weights.steps, least=1, revisions=revisions, max_local=max_local,
        progress=progress and world.rank == 0,
    )  # fmt: skip
    targets = tuple(map(float, weights.targets))
    check_targets(targets if names is None else set(targets))
    names = check_names(targets, names)
    _check_weights(trajectory, weights)
    deltas = parse_delta(delta_dtype)
    machine = Machine(backend, device, threads, memory_limit, device_memory, io, deltas, world)
    job = Job(trajectory, targets, out, machine, dtype, overwrite, progress, names)
    return job.run(
        Options(), "none", weights=weights, given={"weights": "given", "delta_dtype": deltas}
    )


def extrapolate(
    base: PathLike,
    checkpoints: Checkpoints,
    target_steps: Iterable[float] | float,
    out: PathLike,
    *,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    revisions: Revisions | None = None,
    max_local: str | int | None = None,
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
    method: str = "relex",
    fit: str = "linear",
    degree: int | None = None,
    window: int | None = None,
    refit: int | None = None,
    alpha: float | None = None,
    decay: float | None = None,
    strength: float | str = 1.0,
    delta_dtype: str = "float32",
    nonfinite: str = "refuse",
    scan: Scan | PathLike | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    world: World | None = None,
    command: str | None = None,
) -> Extrapolation:
    """Write the checkpoints of later steps without training them (RELEX, arXiv 2605.21468).

    A call that was interrupted or killed goes on when it is repeated, and ends with the same bytes.

    Args:
        base: the model the run started from (θ₀): a folder or, here and below, a name on the Hub:
            ``org/repo``, ``org/repo@revision`` or ``hf://org/repo@revision/folder``.
        checkpoints: the run folder with its step folders; several, if training went on in phases:
            where a later one does not begin beyond the steps before it, it counts on from them; or
            ``{step: folder}``, (step, folder) pairs, or folders named after their steps. At least
            two checkpoints are needed.
        target_steps: one or several steps; each becomes ``out/step_<target>``.
        out: a folder to make.
        until, steps: use the checkpoints up to a step, or exactly these.
        revisions: of checkpoints that are one repository with a revision for each step: a pattern
            like ``"step_{10..70..10}"``, or ``{step: revision}``.
        max_local: bytes or ``"20GiB"`` of the checkpoints on the Hub to have on disk at a time.
            Their tensors are then fetched as they are read; without it, they go to the Hub's cache.
        rank: how many singular directions to extrapolate, each along its own curve.
        solver: ``"gram"``, ``"power"`` (block power iteration) or ``"auto"``, the cheaper one for
            so many checkpoints: gram, up to some hundreds.
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
        time_axis, step_scale, method, fit, degree, window, refit, alpha, decay, strength: see
            :func:`forecast`. Methods that need no spectrum scan nothing and keep no scan. With
            strength ``"auto"`` all tensors are scanned before the first is written: the shards are
            read twice.
        delta_dtype: ``"float16"`` rounds base and checkpoints to it, and their differences, as the
            authors' delta store does; only the reference backend does that.
        nonfinite: what becomes of a tensor that holds NaN or Inf: ``"refuse"``, or ``"carry"``,
            which copies it from the newest checkpoint.
        scan: a scan of these checkpoints, or its file: then no shard is read to scan. A file that
            does not exist yet is written.
        overwrite: replace an ``out`` that relex wrote.
        dry_run: plan only; write nothing.
        progress: show a progress bar.
        world: the processes that share the work (docs/world.md); by default this one is alone.
        command: what made it, for the model cards.

    Returns:
        Where the checkpoints are, the weights behind them and the record kept in ``relex.json``.

    Raises:
        RelexError: with one line that says what does not fit; nothing has been written.
    """
    options = Options(
        rank, time_axis, step_scale, method, fit, degree, window, refit, alpha, decay, strength
    )
    targets = check_targets(target_steps)
    check_nonfinite(nonfinite)
    deltas = parse_delta(delta_dtype)
    world = world or World()
    _check_max_local(max_local, world)
    trajectory = open_inputs(
        base, checkpoints, until, steps, revisions=revisions, max_local=max_local,
        progress=progress and world.rank == 0,
    )  # fmt: skip
    options.check(trajectory.steps, targets)
    given = {
        **asdict(options), "solver": solver, "delta_dtype": deltas, "nonfinite": nonfinite
    }  # fmt: skip
    weights, keep, loaded = None, None, None
    if isinstance(scan, Scan) or (scan is not None and Path(scan).exists()):
        loaded = Scan.given(scan)
        loaded.check(trajectory, deltas)
        if loaded.nonfinite and nonfinite == "refuse":
            raise InputError(f"scan: tensor {loaded.nonfinite[0]}: holds NaN or Inf; {HINT}")
        weights = weigh_scan(loaded, trajectory.steps, targets, options)
    elif not options.spectral and options.strength != AUTO:
        if scan is not None:
            raise InputError(f"scan: {scan}: not there, and method {method} makes none")
        names = [tensor.name for tensor in trajectory.trained]
        weights = weigh_unscanned(names, trajectory.steps, targets, options)
    elif scan is not None:
        keep = Path(scan)
        if Path(out).absolute() in keep.absolute().parents:
            raise InputError(
                f"scan: {keep}: expected a path outside {out}, which keeps its own {SCAN}"
            )
    machine = Machine(backend, device, threads, memory_limit, device_memory, io, deltas, world)
    job = Job(trajectory, targets, out, machine, dtype, overwrite, progress)
    job.command = command
    solver = scan_solver(solver, strength)
    return job.run(
        options, solver, weights=weights, given=given, scan=loaded, keep=keep,
        nonfinite=nonfinite, dry_run=dry_run,
    )  # fmt: skip


def _chosen_steps(scan: Scan, until: int | None, steps: Sequence[int] | None) -> tuple[int, ...]:
    chosen = scan.chosen(until, steps)
    if len(chosen) < 2:
        raise InputError(f"scan: expected at least 2 steps to fit a line, found {len(chosen)}")
    return chosen


def _check_weights(trajectory: Trajectory, weights: Weights) -> None:
    expected = (len(weights.targets), len(weights.steps))
    for tensor in trajectory.trained:
        if tensor.name in weights.carried:
            continue
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
