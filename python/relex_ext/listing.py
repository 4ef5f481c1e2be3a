"""What a run folder holds, step by step, and why a step cannot be used. No weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from relex_ext.adapters.opening import adapter_folder, open_adapter
from relex_ext.checkpoints import Checkpoint, open_checkpoint
from relex_ext.errors import InputError, printable
from relex_ext.steps import Checkpoints, check_finished, have_weights, resolve, step_folder
from relex_ext.trainers import Layout, trainer_of
from relex_ext.trajectory import align


@dataclass(frozen=True, slots=True)
class ListedStep:
    """A step of a run, as its headers describe it."""

    step: int
    folder: Path
    """Where its weights are, or its own where none can be read."""

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


def list_checkpoints(run: Checkpoints) -> tuple[ListedStep, ...]:
    """Every step of a run, usable or not: what :func:`extrapolate` would find there.

    Args:
        run: what :func:`extrapolate` takes as ``checkpoints``.

    Raises:
        InputError: it is no run; never because of one of its steps.
    """
    found = resolve(run)
    layout = trainer_of(map(step_folder, found.values()))
    listed: dict[int, ListedStep] = {}
    opened: dict[int, Checkpoint] = {}
    for step, folder in found.items():
        listed[step] = ListedStep(step, folder, layout.trainer)
        try:
            check_finished([folder])
            opened[step] = _open(folder)
        except (InputError, OSError) as error:
            listed[step] = _unusable(listed[step], error, layout)
    for step, checkpoint in opened.items():
        listed[step] = _described(listed[step], checkpoint)
        newest = max(opened)
        if listed[step].adapter and _is_adapter(opened[newest]):
            continue  # their ranks may differ
        try:
            align(checkpoint, {step: opened[newest]})
        except InputError as error:
            listed[step] = _unusable(listed[step], error, layout)
    return tuple(listed.values())


def usable(listed: Iterable[ListedStep]) -> tuple[int, ...]:
    """The steps without a problem."""
    return tuple(one.step for one in listed if one.problem is None)


def _open(folder: Path) -> Checkpoint:
    if adapter_folder(folder) is None:
        return open_checkpoint(folder)
    return open_adapter(folder).checkpoint


def _is_adapter(checkpoint: Checkpoint) -> bool:
    return adapter_folder(checkpoint.folder) is not None


def _described(one: ListedStep, checkpoint: Checkpoint) -> ListedStep:
    sizes: dict[str, int] = {}
    for entry in checkpoint.tensors.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return replace(
        one,
        folder=checkpoint.folder,
        dtypes=tuple(sorted(sizes, key=lambda dtype: -sizes[dtype])),
        nbytes=sum(sizes.values()),
        tensors=len(checkpoint.tensors),
        tied=checkpoint.tied,
        adapter=_is_adapter(checkpoint),
    )


def _unusable(one: ListedStep, error: InputError | OSError, layout: Layout) -> ListedStep:
    if isinstance(error, OSError):
        return replace(one, problem=printable(f"cannot be read: {error.strerror}"))
    bare = not have_weights([step_folder(one.folder)])
    return replace(
        one,
        problem=str(error).removeprefix(f"{one.folder}: "),
        hint=layout.otherwise if bare and layout.otherwise else None,
    )
