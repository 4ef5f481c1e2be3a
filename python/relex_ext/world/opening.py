"""Which processes there are, from arguments and the environment."""

from __future__ import annotations

import os

from relex_ext.errors import InputError
from relex_ext.room import SPAN
from relex_ext.world import World

WORLDS = ("auto", "torchrun", "slurm", "alone")


def open_world(
    kind: str = "auto", rank: int | None = None, size: int | None = None, span: int = SPAN
) -> World:
    """The world of that kind, or of process ``rank`` of ``size`` that are started apart. Use it as
    a context manager.

    Args:
        kind: ``"torchrun"``; ``"slurm"``, the tasks of an array, each by itself; ``"alone"``; or
            ``"auto"``: torchrun's where it has started this process among others.
        span: see :class:`World`.

    Raises:
        InputError: what that world needs is not there.
    """
    if kind not in WORLDS:
        raise InputError(f"world: expected one of {', '.join(WORLDS)}, found {kind}")
    if (rank is None) != (size is None):
        raise InputError("world: expected --world-rank and --world-size together, found one")
    if rank is not None and size is not None:
        return _apart(rank, size, span)
    if kind == "slurm":
        first, step = _number("SLURM_ARRAY_TASK_MIN"), _number("SLURM_ARRAY_TASK_STEP")
        place = (_number("SLURM_ARRAY_TASK_ID") - first) // max(1, step)
        return _apart(place, _number("SLURM_ARRAY_TASK_COUNT"), span)
    launched = "TORCHELASTIC_RUN_ID" in os.environ and _number("WORLD_SIZE") > 1
    if kind == "torchrun" or (kind == "auto" and launched):
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise InputError(f"world: torchrun sets {name}, which is not there")
        # Of a process that is gone torch prints a page; ours is a line.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from relex_ext.world.torchrun import TorchWorld

        return TorchWorld(span)
    return World(span)


def _apart(rank: int, size: int, span: int) -> World:
    from relex_ext.world.tasks import Tasks

    return Tasks(rank, size, span)


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        found = os.environ.get(name, "none")
        raise InputError(f"world: expected a number in {name}, found {found}") from None
