"""Whether a run's steps are adapters or whole models, and the trajectory they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from relex_ext import trajectory
from relex_ext.adapters.opening import adapter_folder, open_adapter
from relex_ext.adapters.trajectory import align
from relex_ext.checkpoints import open_checkpoint
from relex_ext.steps import Checkpoints, PathLike, resolve, select
from relex_ext.trajectory import Trajectory


def open_trajectory(
    base: PathLike,
    checkpoints: Checkpoints,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    least: int = 2,
) -> Trajectory:
    """Find, open and align everything from headers alone: models, or adapters over the base.

    Raises:
        InputError: the first thing found that does not fit, with folder and tensor.
    """
    chosen = select(resolve(checkpoints), until, steps, least)
    if are_adapters(chosen):
        return open_adapters(base, chosen)
    return trajectory.open_trajectory(base, chosen, least=least)


def are_adapters(folders: Mapping[int, Path]) -> bool:
    """Whether all of them are. Of a mixture, the adapters are no models."""
    return all(adapter_folder(folder) is not None for folder in folders.values())


def open_adapters(base: PathLike, folders: Mapping[int, Path]) -> Trajectory:
    opened = {step: open_adapter(folder) for step, folder in folders.items()}
    return align(open_checkpoint(base), opened)
