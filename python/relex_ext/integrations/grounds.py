"""Training in phases: train, jump to the forecast, train on from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from relex_ext import strictjson
from relex_ext.checkpoints import open_checkpoint
from relex_ext.errors import InputError
from relex_ext.layout import replace_durably

FORMAT = "relex-phases/1"

OPTIMIZER = ("keep", "reset")


@dataclass(frozen=True)
class Reground:
    """Every ``every`` steps the model's weights are replaced by their forecast ``jump`` steps
    ahead; from there training goes on, and the next forecast is made from what follows.

    ``only_if_go``: where the verdict on that forecast is not ``go``, training goes on untouched;
    ``optimizer``: ``"keep"`` its state, or ``"reset"`` it: moments of gradients at other weights.
    """

    every: int
    jump: int
    only_if_go: bool = True
    optimizer: str = "keep"

    def __post_init__(self) -> None:
        if self.every < 1 or self.jump < 1:
            raise InputError(
                f"reground: expected every and jump of at least 1, found {self.every}, {self.jump}"
            )
        if self.optimizer not in OPTIMIZER:
            expected = " or ".join(OPTIMIZER)
            raise InputError(f"reground: optimizer: expected {expected}, found {self.optimizer}")


@dataclass(frozen=True)
class Phase:
    """Training from a base at step ``after`` on."""

    after: int
    base: str
    """Absolute, or from the folder that the phases are noted in."""
    reset: bool = False
    """The optimizer's state was left behind."""


def read_phases(path: Path) -> list[Phase]:
    """Those that an earlier part of the run has noted."""
    if not path.exists():
        return []
    try:
        found = strictjson.load(path.read_bytes(), floats=False)
        if found["format"] != FORMAT:
            raise ValueError(f"format: expected {FORMAT}, found {found['format']}")
        return [Phase(**phase) for phase in found["phases"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected the phases of a run, found {error!r}") from error


def note_phases(path: Path, phases: Sequence[Phase]) -> None:
    noted = {"format": FORMAT, "phases": [asdict(phase) for phase in phases]}
    replace_durably(path, (json.dumps(noted, indent=1) + "\n").encode())


def load_in_place(model: Any, folder: Path) -> None:
    """Put a folder's weights into a model's own tensors.

    Everything is checked before the first changes.

    Raises:
        InputError: the model lacks a tensor of the folder, has another shape there, or has a
            parameter that the folder has not.
    """
    checkpoint = open_checkpoint(folder)
    own = dict(model.state_dict())
    for name, entry in checkpoint.tensors.items():
        if name not in own:
            raise InputError(f"{folder}: tensor {name}: the model has none of this name")
        if tuple(own[name].shape) != entry.shape:
            raise InputError(
                f"{folder}: tensor {name}: expected shape {list(own[name].shape)}, found "
                f"{list(entry.shape)}"
            )
    given = {own[name].data_ptr() for name in checkpoint.tensors}  # tied ones are given once
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() not in given:
            raise InputError(f"{folder}: tensor {name}: missing")
    with torch.no_grad():
        for shard in checkpoint.shards:
            with safe_open(shard.path, "pt") as file:
                for name, entry in checkpoint.tensors.items():
                    if entry.shard == shard:
                        own[name].copy_(file.get_tensor(name))
