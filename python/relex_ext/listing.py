"""What a run folder holds, step by step, and why a step cannot be used. No weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from relex_ext.adapters.opening import adapter_folder, open_adapter
from relex_ext.checkpoints import Checkpoint, open_checkpoint
from relex_ext.errors import InputError, printable
from relex_ext.hub.names import (
    HubName,
    Revisions,
    any_on_hub,
    at_revisions,
    named,
    stands_for,
    told,
)
from relex_ext.steps import Checkpoints, check_finished, have_weights, resolve, step_folder
from relex_ext.trainers import trainer_of
from relex_ext.trajectory import align


@dataclass(frozen=True, slots=True)
class ListedStep:
    """A step of a run, as its headers describe it."""

    step: int
    folder: Path | HubName
    """Where its weights are, or its own where none can be read. On the Hub, its name."""

    trainer: str
    dtypes: tuple[str, ...] = ()
    """The one with the most bytes first."""

    nbytes: int = 0
    tensors: int = 0
    tied: bool | None = None
    """``tie_word_embeddings`` of its config.json; None where nothing is said."""

    adapter: bool = False
    """It is a LoRA adapter, not a model."""

    problem: str | None = None
    """Why it cannot be used, or None: it can."""

    hint: str | None = None
    """How its trainer comes to weights, where it has none."""


def list_checkpoints(
    run: Checkpoints, *, revisions: Revisions | None = None
) -> tuple[ListedStep, ...]:
    """Every step of a run, usable or not: what :func:`extrapolate` would find there.

    Args:
        run, revisions: what :func:`extrapolate` takes as ``checkpoints`` and ``revisions``. Of
            what is on the Hub, headers are fetched.

    Raises:
        InputError: it is no run; never because of one of its steps.
    """
    run = named(at_revisions(run, revisions))
    if not any_on_hub(run):
        found = resolve(run)
        return _listed(found, found, {})
    from relex_ext.hub.fetching import outlined

    with outlined(run) as steps:
        return _listed(*steps)


def _listed(
    found: Mapping[int, Path],
    opened: Mapping[int, Path | InputError],
    names: Mapping[Path, HubName],
) -> tuple[ListedStep, ...]:
    """``opened``: where a step's headers can be read, or why they cannot; ``names``: what folders
    stand for."""
    layout = trainer_of(map(step_folder, found.values()))
    steps: dict[int, ListedStep] = {}
    checkpoints: dict[int, Checkpoint] = {}
    for step, folder in found.items():
        steps[step] = ListedStep(step, stands_for(folder, names), layout.trainer)
        try:
            check_finished([folder])
            checkpoints[step] = _open(opened[step])
        except (InputError, OSError) as error:
            bare = isinstance(error, InputError) and not have_weights([step_folder(folder)])
            hint = layout.otherwise if bare and layout.otherwise else None
            problem = _problem(error, folder, names)
            steps[step] = replace(steps[step], problem=problem, hint=hint)
    for step, checkpoint in checkpoints.items():
        newest = checkpoints[max(checkpoints)]
        steps[step] = _described(steps[step], checkpoint, names)
        if _is_adapter(checkpoint) and _is_adapter(newest):
            continue  # their ranks may differ
        try:
            align(checkpoint, {step: newest})
        except InputError as error:
            problem = _problem(error, checkpoint.folder, names)
            steps[step] = replace(steps[step], problem=problem)
    return tuple(steps.values())


def usable(listed: Iterable[ListedStep]) -> tuple[int, ...]:
    """The steps without a problem."""
    return tuple(one.step for one in listed if one.problem is None)


def _open(folder: Path | InputError) -> Checkpoint:
    if isinstance(folder, InputError):
        raise folder
    if adapter_folder(folder) is None:
        return open_checkpoint(folder)
    return open_adapter(folder).checkpoint


def _is_adapter(checkpoint: Checkpoint) -> bool:
    return adapter_folder(checkpoint.folder) is not None


def _described(
    one: ListedStep, checkpoint: Checkpoint, names: Mapping[Path, HubName]
) -> ListedStep:
    sizes: dict[str, int] = {}
    for entry in checkpoint.tensors.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return replace(
        one,
        folder=stands_for(checkpoint.folder, names),
        dtypes=tuple(sorted(sizes, key=lambda dtype: -sizes[dtype])),
        nbytes=sum(sizes.values()),
        tensors=len(checkpoint.tensors),
        tied=checkpoint.tied,
        adapter=_is_adapter(checkpoint),
    )


def _problem(error: InputError | OSError, folder: Path, names: Mapping[Path, HubName]) -> str:
    if isinstance(error, OSError):
        return printable(f"cannot be read: {error.strerror}")
    place = stands_for(folder, names)
    return told(str(error).removeprefix(f"{folder}: "), names).removeprefix(f"{place}: ")
