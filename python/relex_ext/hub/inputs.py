"""The inputs of a run, wherever they are: folders here, and models on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from relex_ext.adapters.discovery import open_trajectory
from relex_ext.errors import InputError
from relex_ext.hub.names import Revisions, any_on_hub, at_revisions, named
from relex_ext.sizes import parse_bytes
from relex_ext.steps import Checkpoints, PathLike
from relex_ext.trajectory import Trajectory


def open_inputs(
    base: PathLike,
    checkpoints: Checkpoints,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    least: int = 2,
    *,
    revisions: Revisions | None = None,
    max_local: str | int | None = None,
) -> Trajectory:
    """:func:`open_trajectory` of what was given, after what is on the Hub has been fetched, or is
    to be as it is read.

    Raises:
        InputError: the first thing found that does not fit, or cannot be had.
    """
    checkpoints = named(at_revisions(checkpoints, revisions))
    if not any_on_hub(base, checkpoints):
        if max_local is not None:
            raise InputError("max_local: expected inputs on the Hub, found folders only")
        return open_trajectory(base, checkpoints, until, steps, least)
    from relex_ext.hub.fetching import fetch
    from relex_ext.hub.mirror import Mirror

    mirror = None if max_local is None else Mirror(parse_bytes(max_local, "max_local"))
    base, checkpoints = fetch(base, checkpoints, until, steps, least, mirror)
    trajectory = open_trajectory(base, checkpoints, until, steps, least)
    if mirror is None:
        return trajectory
    if trajectory.model is not trajectory.newest:
        raise InputError("max_local: expected models, found LoRA adapters, which are small")
    mirror.complete(trajectory)
    return replace(trajectory, supply=mirror)
