"""The steps of a run: their folders, which of them to use, and whether those are finished."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from relex_ext.errors import InputError
from relex_ext.plainfiles import read_small
from relex_ext.trainers import DEEPEST, DONE_FILES, TRACKERS, TRAINERS, WEIGHT_FOLDERS, step_of

PathLike: TypeAlias = "str | os.PathLike[str]"
Checkpoints: TypeAlias = (
    "PathLike | Mapping[int, PathLike] | Sequence[tuple[int, PathLike]] | Sequence[PathLike]"
)

LOG = logging.getLogger("relex_ext")

_BEING_WRITTEN = re.compile(r"tmp[-_](?P<after>.+)|(?P<before>.+)\.(tmp|incomplete|partial)")


def discover(run: PathLike) -> dict[int, Path]:
    """The step folders of a run folder, sorted by step: ``{12: run/checkpoint-12, …}``.

    Where it has none with weights, they are those of its one folder that has: ``run/broadcasts``.

    Raises:
        InputError: the folder does not exist, holds no step folder or several runs of them, is a
            step itself, or has one step twice.
    """
    root = Path(run)
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of checkpoints, found no folder")
    found = _steps_in(root)
    if not have_weights(found.values()):
        found = _steps_below(root, found)
    if not found:
        _check_place(root)
        names = ", ".join(dict.fromkeys(row.example for row in TRAINERS))
        raise InputError(f"{root}: expected step folders named like {names}; found none")
    return dict(sorted(found.items()))


def _steps_in(root: Path) -> dict[int, Path]:
    return _steps_among(_folders(root)) or _steps_among(_folders(root), epochs=True)


def _steps_among(folders: Iterable[Path], *, epochs: bool = False) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for folder in folders:
        step = step_of(folder.name, epochs=epochs)
        if step is not None:
            _add_step(found, step, folder)
    return found


def _steps_below(root: Path, found: dict[int, Path]) -> dict[int, Path]:
    """The steps of the one folder of a root that has some with weights, else those ``found`` in
    the root, else those of the one folder that has any."""
    others = [folder for folder in _folders(root) if folder not in found.values()]
    readable = [folder for folder in others if os.access(folder, os.R_OK | os.X_OK)]
    runs = {folder: steps for folder in readable if (steps := _steps_in(folder))}
    full = {folder: steps for folder, steps in runs.items() if have_weights(steps.values())}
    if found and len(full) != 1:
        return found
    likely = full or runs
    if len(likely) > 1:
        names = ", ".join(map(str, likely))
        raise InputError(f"{root}: expected one run, found several; give one of {names}")
    for folder in likely:
        LOG.info("%s: its steps are in %s", root, folder)
    return next(iter(likely.values()), {})


def have_weights(steps: Iterable[Path]) -> bool:
    """Whether a safetensors file is where one of these steps may have some."""
    places = (step / place for step in steps for place in WEIGHT_FOLDERS)
    return any(next(place.glob("*.safetensors"), None) is not None for place in places)


def _check_place(root: Path) -> None:
    """Refuse a part of a run with the path of the whole."""
    path = root.absolute()
    for place in (path, *path.parents[:DEEPEST]):
        if step_of(place.name) is not None:
            raise InputError(
                f"{root}: expected a run's folder, found what belongs to one of its steps; give "
                f"{place.parent}"
            )


def _folders(root: Path) -> list[Path]:
    return sorted(e for e in root.iterdir() if e.is_dir() and not e.name.startswith("."))


def resolve(checkpoints: Checkpoints) -> dict[int, Path]:
    """A run folder, a mapping, pairs, step-named folders or the run folders of several phases →
    ``{step: folder}`` sorted by step.

    Raises:
        InputError: one step twice, no step at all, or a mixture of these.
    """
    if isinstance(checkpoints, (str, os.PathLike)):
        return discover(checkpoints)
    given: list[Any] = [*(checkpoints.items() if isinstance(checkpoints, Mapping) else checkpoints)]
    folders = [Path(one) for one in given if isinstance(one, (str, os.PathLike))]
    steps = [step_of(folder.name) for folder in folders]
    runs = [folder for folder, step in zip(folders, steps, strict=True) if step is None]
    if len(folders) not in (0, len(given)) or len(runs) not in (0, len(folders)):
        raise InputError(
            "checkpoints: expected step=folder pairs, folders named after their steps, or run "
            f"folders, found a mixture: {runs[0] if runs else folders[0]} is another kind"
        )
    if runs:
        return _join_phases(runs)
    pairs: Iterable[Any] = zip(steps, folders, strict=True) if folders else given
    found: dict[int, Path] = {}
    for step, folder in pairs:
        _add_step(found, int(step), Path(folder))
    return dict(sorted(found.items()))


def _join_phases(runs: Sequence[Path]) -> dict[int, Path]:
    """The phases of one training, in their order. A phase that does not begin beyond the steps
    before it has counted from the start again: its steps are added to the last of those."""
    found = discover(runs[0])
    for run in runs[1:]:
        last = max(found)
        phase = discover(run)
        again = min(phase) <= last
        count = last if again else 0
        LOG.info(
            "%s: steps %s to %s count as %s to %s: it %s", run, min(phase), max(phase),
            min(phase) + count, max(phase) + count,
            f"began again after step {last}" if again else f"goes on after step {last}",
        )  # fmt: skip
        for step, folder in phase.items():
            _add_step(found, step + count, folder)
    return found


def select(
    found: Mapping[int, Path],
    until: int | None = None,
    steps: Sequence[int] | None = None,
    least: int = 2,
) -> dict[int, Path]:
    """The checkpoints to use: those of ``steps`` (all must exist), up to ``until`` inclusive.

    Raises:
        InputError: a step asked for is not there, fewer than ``least`` are left, or a trainer has
            not finished one of them.
    """
    chosen = dict(found)
    if steps is not None:
        wanted = sorted({int(step) for step in steps})
        if len(wanted) != len(steps):
            raise InputError(f"steps: expected each step once, found {few_of(sorted(steps))}")
        missing = [step for step in wanted if step not in found]
        if missing:
            raise InputError(
                f"steps: no checkpoint of step {few_of(missing)}; found {few_of(found)}"
            )
        chosen = {step: found[step] for step in wanted}
    if until is not None:
        chosen = {step: folder for step, folder in chosen.items() if step <= until}
    if len(chosen) < least:
        detail = f" of {few_of(found)}" if found else ""
        raise InputError(f"checkpoints: expected at least {least}, found {len(chosen)}{detail}")
    check_finished(chosen.values())
    return chosen


def check_finished(folders: Iterable[Path]) -> None:
    """Refuse steps that their trainer has begun to write and not declared complete."""
    runs: dict[Path, list[Path]] = {}
    for folder in folders:
        check_name(folder)
        step = step_folder(folder)
        runs.setdefault(step.parent, []).append(step)
    for run, steps in runs.items():
        _check_done_files(run, steps)
        _check_trackers(run, steps)


def check_name(folder: Path) -> None:
    """Refuse a folder under the name that a step has until it is complete."""
    match = _BEING_WRITTEN.fullmatch(folder.name)
    if match and step_of(match["after"] or match["before"]) is not None:
        raise InputError(f"{folder}: expected a finished step, found one begun and not finished")


def step_folder(folder: Path) -> Path:
    """The step's, where one inside it was given: ``run/global_step_12/actor/huggingface``."""
    places = (folder, *folder.parents)[: 1 + DEEPEST]
    return next((place for place in places if step_of(place.name) is not None), folder)


def _check_done_files(run: Path, steps: Sequence[Path]) -> None:
    for name, trainer in DONE_FILES.items():
        missing = [step for step in steps if not (step / name).exists()]
        if missing and any((step / name).exists() for step in _siblings(run)):
            raise _unfinished(missing[0], f"{trainer} puts {name} into the finished ones of {run}")


def _siblings(run: Path) -> list[Path]:
    try:
        return [entry for entry in run.iterdir() if step_of(entry.name) is not None]
    except OSError:
        return []  # folders given one by one may lie where nobody may look around


def _check_trackers(run: Path, steps: Sequence[Path]) -> None:
    for name, trainer in TRACKERS.items():
        if not os.path.lexists(run / name):
            continue
        text = read_small(run / name, 4096, run).decode("utf-8", "replace").strip()
        if text == "release":  # Megatron's word for weights that no step of this run wrote
            continue
        if not (text.isascii() and text.isdigit()):
            raise InputError(
                f"{run / name}: expected the number of the newest finished step, found "
                f"{text or 'nothing'}"
            )
        for step in steps:
            if (step_of(step.name) or 0) > int(text):
                raise _unfinished(step, f"{trainer} noted {text} as the newest in {run / name}")


def _unfinished(folder: Path, why: str) -> InputError:
    return InputError(f"{folder}: expected a finished step, but {why}; leave it out (until, steps)")


def _add_step(found: dict[int, Path], step: int, folder: Path) -> None:
    if step in found:
        raise InputError(f"checkpoints: step {step} twice: {found[step]} and {folder}")
    found[step] = folder


def few_of(steps: Iterable[int]) -> str:
    """Steps for a message, in one line: the first and last ones where there are many."""
    numbers = [str(step) for step in steps]
    return ", ".join(numbers if len(numbers) <= 8 else [*numbers[:4], "…", *numbers[-3:]])
