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
    found = open_adapters(base, chosen)
    return trajectory.open_trajectory(base, chosen, least=least) if found is None else found


def open_adapters(base: PathLike, folders: Mapping[int, PathLike]) -> Trajectory | None:
    """None if not all of them are adapters: of a mixture, the adapters are refused as models."""
    if any(adapter_folder(Path(folder)) is None for folder in folders.values()):
        return None
    opened = {step: open_adapter(Path(folder)) for step, folder in folders.items()}
    return align(open_checkpoint(base), opened)
