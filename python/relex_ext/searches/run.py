"""The public search: everything checked, then the work begun or taken up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from relex_ext import dtypes
from relex_ext.errors import InputError
from relex_ext.hub.names import Revisions
from relex_ext.identities import identities_of
from relex_ext.inputs import open_inputs
from relex_ext.machine import Machine
from relex_ext.methods import Options
from relex_ext.output import SCAN, check_space
from relex_ext.pipeline import scan as make_scan
from relex_ext.plan import free_space
from relex_ext.scans import Scan
from relex_ext.searches.evaluation import Evaluation
from relex_ext.searches.folder import SearchFolder
from relex_ext.searches.found import Search, SearchPlan
from relex_ext.searches.place import LOGS, check_folder, read_state, remove_search
from relex_ext.searches.strategy import STRENGTHS, Space, coarse_count, grid
from relex_ext.searches.work import Forecasts, Work
from relex_ext.steps import Checkpoints, PathLike
from relex_ext.trajectory import Trajectory

KEEPS = ("best", "all")


def search(
    base: PathLike,
    checkpoints: Checkpoints,
    out: PathLike,
    evaluate: str,
    *,
    target_steps: Iterable[float] | float | None = None,
    strengths: Iterable[float] | float = STRENGTHS,
    evaluations: int = 10,
    higher_is_better: bool = True,
    per_pass: int = 4,
    keep: str = "best",
    timeout: float | None = None,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    revisions: Revisions | None = None,
    rank: int = 1,
    scan: Scan | PathLike | None = None,
    solver: str = "gram",
    backend: str = "auto",
    device: str | Sequence[str] | None = None,
    dtype: str | None = None,
    memory_limit: str | int | None = None,
    device_memory: str | int | None = None,
    io: str = "auto",
    threads: int | None = None,
    delta_dtype: str = "float32",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
    **forecast: Any,
) -> Search:
    """Find the forecast that scores best in the user's own evaluation, in few evaluations.

    The newest checkpoint is the bar to beat. Which forecasts are tried, in which order: see
    :mod:`relex_ext.searches.strategy`. A call that was interrupted or failed continues when it is
    repeated; ``evaluations``, ``per_pass``, ``timeout`` and the machine's options may then differ.

    Args:
        base, checkpoints, until, steps, rank, scan: see :func:`extrapolate`. Without ``scan`` the
            scan is kept in ``out``.
        out: a folder for the search: ``best``, the best forecast; ``scores.csv``; ``search.json``.
        evaluate: a shell command with ``{model}`` where the folder goes, which ends its standard
            output with the score: ``0.512``, ``0.512 ± 0.008``, or JSON with ``score`` and, if
            known, ``error``, its standard error.
        target_steps: the range of targets; by default 1.25 to 6 times the newest step.
        strengths: the range of strengths, see :func:`forecast`.
        evaluations: how often the command may run, the bar included.
        higher_is_better: whether the score is to be high or low.
        per_pass: forecasts written in one pass over the shards; each takes a model's disk space.
        keep: ``"best"`` removes what is not the best as soon as that is known, ``"all"`` nothing.
        timeout: seconds that one evaluation may take.
        dtype, solver, progress: see :func:`extrapolate`.
        backend, device, memory_limit, device_memory, io, threads, delta_dtype: as there.
        overwrite: give up an earlier search in ``out`` and begin again.
        dry_run: plan only; write and evaluate nothing.
        forecast: other options of :func:`forecast`: ``method``, ``fit``, ``window``…

    Raises:
        EvaluationError: the command failed or printed no score; what was done before is kept.
        RelexError: with one line that says what does not fit; nothing has been written.
    """
    place = Path(out)
    if evaluations < 2:
        raise InputError(f"evaluations: expected at least 2, found {evaluations}")
    if per_pass < 1:
        raise InputError(f"per_pass: expected at least 1, found {per_pass}")
    if keep not in KEEPS:
        raise InputError(f"keep: expected {' or '.join(KEEPS)}, found {keep}")
    evaluation = Evaluation(evaluate, timeout, place.absolute() / LOGS)
    trajectory = open_inputs(
        base, checkpoints, until, steps, revisions=revisions, progress=progress
    )
    if trajectory.model is not trajectory.newest:
        raise InputError(
            "checkpoints: expected models, of which the newest is evaluated, found LoRA adapters"
        )
    base = trajectory.base.folder  # a revision on the Hub may move while the search goes on
    checkpoints = {
        s: c.folder for s, c in zip(trajectory.steps, trajectory.checkpoints, strict=True)
    }
    space = Space.of(trajectory.steps[-1], target_steps, strengths)
    options = Options(rank=rank, **forecast)
    if options.method in ("reconstruct", "fit-reconstruct"):
        raise InputError(f"method: expected one that forecasts, found {options.method}")
    options.check(trajectory.steps, space.targets)
    described: dict[str, Any] = {
        "steps": list(trajectory.steps),
        "inputs": identities_of(trajectory),
        "evaluate": evaluate,
        "higher_is_better": higher_is_better,
        "forecast": {n: v for n, v in asdict(options).items() if n != "strength"},
        "targets": list(space.targets),
        "strengths": list(space.strengths),
        "dtype": None if dtype is None else dtypes.parse(dtype),
        "delta_dtype": dtypes.parse_delta(delta_dtype),
        "keep": keep,
    }
    inputs = [trajectory.base.folder, *(c.folder for c in trajectory.checkpoints)]
    exists = check_folder(place, inputs)
    if exists and not overwrite:
        read_state(place, described)
    deltas = described["delta_dtype"]
    known, scan_file = _find_scan(scan, place, trajectory, deltas, stale=exists and overwrite)
    to_scan = options.spectral and known is None
    machine = Machine(backend, device, threads, memory_limit, device_memory, io, deltas)
    budget = (evaluations, per_pass, keep)
    plan = _plan(trajectory, machine, space, rank, budget, described["dtype"], place, to_scan)
    if dry_run:
        return Search(place, plan, higher_is_better)
    if exists and overwrite:
        remove_search(place)
    if not exists or overwrite:
        check_space(place, plan.disk, plan.free_space)
    settings: dict[str, Any] = {
        "backend": backend, "device": device, "threads": threads, "memory_limit": memory_limit,
        "device_memory": device_memory, "io": io, "delta_dtype": delta_dtype, "progress": progress,
    }  # fmt: skip
    if to_scan:
        known = make_scan(
            base, checkpoints, out=scan_file, until=until, steps=steps, rank=rank, solver=solver,
            **settings,
        )  # fmt: skip
    settings["dtype"] = dtype
    forecasts = Forecasts(base, checkpoints, trajectory, known, options, settings)
    with SearchFolder(place, described, keep) as folder:
        return Work(folder, forecasts, evaluation, plan, progress).run(space)


def _find_scan(
    scan: Scan | PathLike | None, out: Path, trajectory: Trajectory, deltas: str, stale: bool
) -> tuple[Scan | None, Path]:
    """The scan, if there is one already, and the file that keeps it.

    ``stale``: the one in ``out`` is about to be removed.
    """
    own = out / SCAN
    if isinstance(scan, Scan):
        scan.check(trajectory, deltas)
        return scan, own
    file = own if scan is None else Path(scan)
    inside = out.absolute() in file.absolute().parents
    if inside and file.absolute() != own.absolute():
        raise InputError(f"scan: {file}: expected a path outside {out}, which keeps its own {SCAN}")
    if not file.exists() or (inside and stale):
        return None, file
    found = Scan.load(file)
    found.check(trajectory, deltas)
    return found, file


def _plan(
    trajectory: Trajectory,
    machine: Machine,
    space: Space,
    rank: int,
    budget: tuple[int, int, str],
    dtype: str | None,
    out: Path,
    to_scan: bool,
) -> SearchPlan:
    evaluations, per_pass, keep = budget
    size = min(per_pass, evaluations - 1)
    choice, plan = machine.lay_out(trajectory, targets=size, scanned=True, rank=rank, dtype=dtype)
    model = plan.bytes_written // size
    models = size + 1 if keep == "best" else evaluations - 1
    reading = sum(tensor.nbytes for tensor in trajectory.trained) if to_scan else 0
    return SearchPlan(
        space=space,
        coarse=tuple(grid(space, coarse_count(evaluations))),
        evaluations=evaluations,
        per_pass=size,
        model_bytes=model,
        disk=min(models, evaluations - 1) * model,
        free_space=free_space(out),
        bytes_read=plan.bytes_read,
        scan_bytes=reading,
        backend=str(choice),
    )
