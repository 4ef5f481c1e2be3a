"""Which process of which world this is, by what is asked and what the environment says."""

from __future__ import annotations

import os
from typing import Any

import pytest

from relex_ext import InputError
from relex_ext.world.opening import open_world


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"rank": 2, "size": 2}, "world_rank: expected 0 to 1, found 2"),
        ({"rank": 0}, "world: expected --world-rank and --world-size together, found one"),
        ({"kind": "mpi"}, "world: expected one of auto, torchrun, slurm, alone, found mpi"),
        ({"kind": "slurm"}, "world: expected a number in SLURM_ARRAY_TASK_MIN, found none"),
        ({"kind": "torchrun"}, "world: torchrun sets RANK, which is not there"),
    ],
)
def test_worlds_that_are_none(given: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "RANK"))]:
        monkeypatch.delenv(name)
    with pytest.raises(InputError) as caught:
        open_world(**given)
    assert str(caught.value) == line


def test_a_slurm_array(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ID": 7, "MIN": 3, "MAX": 9, "STEP": 2, "COUNT": 4}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    world = open_world("slurm")
    assert (world.rank, world.size) == (2, 4)
    assert (open_world().rank, open_world().size) == (0, 1), "only when asked"
