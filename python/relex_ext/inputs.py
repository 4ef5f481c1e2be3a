"""The inputs of a run, wherever they are: folders here, and models on the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from relex_ext.adapters import trajectory as adapted
from relex_ext.adapters.opening import adapter_folder, open_adapter
from relex_ext.checkpoints import open_checkpoint
from relex_ext.errors import InputError
from relex_ext.hub.names import Revisions, any_on_hub, at_revisions, named
from relex_ext.sizes import parse_bytes
from relex_ext.steps import Checkpoints, PathLike, resolve, select
from relex_ext.trajectory import Trajectory, align


def open_inputs(
    base: PathLike,
    checkpoints: Checkpoints,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    least: int = 2,
    *,
    revisions: Revisions | None = None,
    max_local: str | int | None = None,
    progress: bool = False,
) -> Trajectory:
    """Find, open and align everything from headers alone. What is on the Hub is fetched before,
    showing its ``progress``, or, with ``max_local``, as it is read.

    Raises:
        InputError: the first thing found that does not fit, with folder and tensor, or cannot be
            had.
    """
    checkpoints = named(at_revisions(checkpoints, revisions))
    if not any_on_hub(base, checkpoints):
        if max_local is not None:
            raise InputError("max_local: expected inputs on the Hub, found folders only")
        return _open_folders(base, select(resolve(checkpoints), until, steps, least))
    from relex_ext.hub.fetching import fetch
    from relex_ext.hub.mirror import Mirror

    mirror = None if max_local is None else Mirror(parse_bytes(max_local, "max_local"))
    trajectory = _open_folders(
        *fetch(base, checkpoints, until, steps, least, mirror, progress=progress)
    )
    if mirror is None:
        return trajectory
    if trajectory.model is not trajectory.newest:
        raise InputError("max_local: expected models, found LoRA adapters, which are small")
    mirror.complete(trajectory)
    return replace(trajectory, supply=mirror)


def _open_folders(base: PathLike, folders: Mapping[int, Path]) -> Trajectory:
    """Adapters if all of them are: of a mixture, the adapters are refused as models."""
    if all(adapter_folder(folder) is not None for folder in folders.values()):
        adapters = {step: open_adapter(folder) for step, folder in folders.items()}
        return adapted.align(open_checkpoint(base), adapters)
    models = {step: open_checkpoint(folder) for step, folder in folders.items()}
    return align(open_checkpoint(base), models)
