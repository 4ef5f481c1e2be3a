"""Where in a step's folder a checkpoint in pieces lies, and of what kind it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from relex_ext.trainers import OTHER_FOLDERS

SUBFOLDERS = (
    "",  # torchtitan, torch.distributed.checkpoint.save
    *OTHER_FOLDERS,
    "pytorch_model_fsdp_0",  # accelerate and the Hugging Face Trainer, SHARDED_STATE_DICT
    "weights",  # NeMo RL, given its policy folder
    "model",  # slime's FSDP
    "actor/model",  # verl
    "actor/dist_ckpt",  # verl's Megatron
)
"""Of a step's folder; the first with a checkpoint counts."""

RANK_FILE = re.compile(r"model_world_size_([1-9]\d{0,5})_rank_(0|[1-9]\d{0,5})\.pt")

DCP = "dcp"
VERL = "verl"
MEGATRON = "megatron"
VERL_MEGATRON = "verl megatron"
UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class Place:
    """``kind``: DCP; VERL, rank files of its FSDP; MEGATRON or VERL_MEGATRON, a DCP whose tensors
    are laid out and named as Megatron has them; UNFINISHED, a DCP without its metadata, which is
    written last."""

    kind: str
    folder: Path


def place_in(step: Path) -> Place | None:
    """The checkpoint in pieces that a step's folder holds, if any."""
    for sub in SUBFOLDERS:
        folder = step / sub
        kind = _kind([entry.name for entry in folder.iterdir()]) if folder.is_dir() else None
        if kind is not None:
            verl = kind == MEGATRON and sub.startswith("actor")
            return Place(VERL_MEGATRON if verl else kind, folder)
    return None


def _kind(names: Sequence[str]) -> str | None:
    if ".metadata" in names:
        return MEGATRON if "common.pt" in names else DCP
    if any(map(RANK_FILE.fullmatch, names)):
        return VERL
    return UNFINISHED if any(name.endswith(".distcp") for name in names) else None
