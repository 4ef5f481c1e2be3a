"""The inputs of a run, wherever they are: folders here, and models on the Hub."""

from __future__ import annotations

from collections.abc import Sequence

from relex_ext.hub.names import Revisions, any_on_hub, at_revisions, hub_name, named
from relex_ext.steps import Checkpoints, PathLike
from relex_ext.trajectory import Trajectory, open_trajectory


def open_inputs(
    base: PathLike,
    checkpoints: Checkpoints,
    until: int | None = None,
    steps: Sequence[int] | None = None,
    least: int = 2,
    *,
    revisions: Revisions | None = None,
) -> Trajectory:
    """:func:`open_trajectory` of what was given, after what is on the Hub has been fetched.

    Raises:
        InputError: the first thing found that does not fit, or cannot be had.
    """
    checkpoints = named(at_revisions(checkpoints, revisions))
    if any_on_hub(base, checkpoints):
        from relex_ext.hub.fetching import fetch

        base, checkpoints = fetch(base, checkpoints, until, steps, least)
    return open_trajectory(base, checkpoints, until, steps, least)


def model_folder(given: PathLike) -> PathLike:
    """A model's folder here, fetched if it is on the Hub."""
    if hub_name(given) is None:
        return given
    from relex_ext.hub.fetching import fetch_model

    return fetch_model(given)
