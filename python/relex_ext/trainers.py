"""How trainers lay out their runs: one row for each, and what is read off the rows.

A row is what a trainer's own source writes, as named in ``seen_in``. docs/trainers.md is this table
in words; its test compares them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """One trainer's. Paths are within a step's folder unless something else is said."""

    trainer: str
    example: str
    """A step's folder, of step 12 where the name says so."""

    pattern: re.Pattern[str]
    """Of such a folder's name; its group is the number of the step."""

    weights: tuple[str, ...] = ("",)
    """Where the step's safetensors are, the likeliest place first."""

    signs: tuple[str, ...] = ()
    """What only this trainer puts there, or (``../``) beside the steps. None: the name
    says enough."""

    done: str | None = None
    """What it writes last into a complete step."""

    tracker: str | None = None
    """Where it notes the newest complete step, beside the steps."""

    others: tuple[str, ...] = ()
    """Where else it keeps what is no model folder: rank shards, distributed checkpoints."""

    first: int = 1
    """The number that it gives to the first update. Steps count updates, so that the base is 0."""

    epochs: bool = False
    """Its numbers are epochs, which are steps of a run that has no others."""

    otherwise: str = ""
    """How to get weights where there are only ``others``."""

    seen_in: str = ""
    """The project and the file of it that this row was checked against."""


TRAINERS: tuple[Layout, ...] = (
    Layout(
        "TRL, Hugging Face Trainer, Unsloth", "checkpoint-12", re.compile(r"checkpoint-(\d+)"),
        signs=("trainer_state.json",),
        otherwise="relex gather RUN for FSDP, zero_to_fp32.py for DeepSpeed",
        seen_in="transformers: trainer.py (and a run of trl's GRPOTrainer)",
    ),
    Layout(
        "verl (FSDP)", "global_step_12", re.compile(r"global_step_(\d+)"),
        weights=("actor/huggingface", "huggingface"),  # RL's, and its SFT trainer's
        signs=("actor/fsdp_config.json", "fsdp_config.json"),
        tracker="latest_checkpointed_iteration.txt", others=("actor",),
        otherwise="relex gather RUN, or "
        "train with hf_model among actor_rollout_ref.actor.checkpoint.save_contents",
        seen_in="volcengine/verl: utils/checkpoint/fsdp_checkpoint_manager.py",
    ),
    Layout(
        "verl (Megatron)", "global_step_12", re.compile(r"global_step_(\d+)"),
        weights=("actor/model/huggingface", "actor/huggingface"),
        signs=("actor/ckpt_contents.json", "actor/dist_ckpt"), done="actor/ckpt_contents.json",
        tracker="latest_checkpointed_iteration.txt", others=("actor", "actor/model/dist_ckpt"),
        otherwise="python -m verl.model_merger merge --backend megatron --local_dir STEP/actor, or "
        "train with hf_model among actor_rollout_ref.actor.checkpoint.save_contents",
        seen_in="volcengine/verl: utils/checkpoint/megatron_checkpoint_manager.py",
    ),
    Layout(
        "OpenRLHF", "global_step12_hf", re.compile(r"global_step(\d+)_hf"),
        otherwise="train with --save_hf_ckpt: _actor holds DeepSpeed's shards",
        seen_in="OpenRLHF/OpenRLHF: trainer/ray/ppo_actor.py, trainer/ppo_trainer.py",
    ),
    Layout(
        "SkyRL", "global_step_12", re.compile(r"global_step_(\d+)"),
        weights=("policy", "policy/huggingface"), signs=("policy",),
        tracker="latest_ckpt_global_step.txt", others=("policy",),
        otherwise="relex gather RUN, or train with trainer.hf_save_interval; weights are in "
        "trainer.export_path",
        seen_in="NovaSky-AI/SkyRL: skyrl-train/skyrl_train/trainer.py",
    ),
    Layout(
        "NeMo RL", "step_12", re.compile(r"step_(\d+)"),
        weights=("policy/weights/model/consolidated",), signs=("training_info.json",),
        others=("policy/weights", "policy/weights/model"),
        otherwise="relex gather RUN, or train with policy.dtensor_cfg.save_consolidated",
        seen_in="NVIDIA-NeMo/RL: utils/checkpoint.py, utils/native_checkpoint.py",
    ),
    Layout(
        "prime-rl", "step_12", re.compile(r"step_(\d+)"),
        signs=("STABLE", "trainer"), done="STABLE", others=("trainer",),
        otherwise="weights are in weights/ (train with --ckpt.weights) and broadcasts/",
        seen_in="PrimeIntellect-ai/prime-rl: trainer/ckpt.py, trainer/rl/broadcast/filesystem.py",
    ),
    Layout(
        "AReaL", "epoch0epochstep11globalstep11",
        re.compile(r"epoch\d+epochstep\d+globalstep(\d+)"), first=0,
        otherwise="train with saver.freq_steps; recover_checkpoint is a distributed checkpoint",
        seen_in="inclusionAI/AReaL: utils/saver.py, utils/stats_logger.py",
    ),
    Layout(
        "slime", "rollout_12", re.compile(r"rollout_(\d+)"),
        otherwise="train with --save-hf RUN/hf/rollout_{rollout_id}, or "
        "tools/convert_torch_dist_to_hf.py",
        seen_in="THUDM/slime: backends/megatron_utils/hf_checkpoint_saver.py",
    ),
    Layout(
        "ROLL", "checkpoint-12", re.compile(r"checkpoint-(\d+)"),
        weights=("", "actor_train"), signs=("checkpoint", "pipeline", "actor_train"),
        otherwise="train with save_hf_model, or mcore_adapter/tools/convert.py",
        seen_in="alibaba/ROLL: pipeline/base_worker.py, utils/upload_utils.py",
    ),
    Layout(
        "torchtitan", "step-12", re.compile(r"step-(\d+)"), signs=("sharded", ".metadata"),
        otherwise="scripts/checkpoint_conversion/convert_to_hf.py for every step; last_save_in_hf "
        "does it for the last",
        seen_in="pytorch/torchtitan: components/checkpoint.py (and torch's writer of it)",
    ),
    Layout(
        "torchtune", "step_12", re.compile(r"step_(\d+)"), signs=("../recipe_state",),
        otherwise="train with safe_serialization",
        seen_in="pytorch/torchtune: training/checkpointing/_checkpointer.py",
    ),
    Layout(
        "torchtune (epochs)", "epoch_11", re.compile(r"epoch_(\d+)"), first=0, epochs=True,
        otherwise="train with safe_serialization",
        seen_in="pytorch/torchtune: training/checkpointing/_checkpointer.py",
    ),
    Layout(
        "Megatron", "iter_0000012", re.compile(r"iter_(\d+)"),
        tracker="latest_checkpointed_iteration.txt",
        otherwise="export each step with Megatron Bridge",
        seen_in="NVIDIA/Megatron-LM: training/checkpointing.py; slime's --save-hf as well",
    ),
    Layout(
        "by hand", "step_12", re.compile(r"(?:global_step_?|step[_-]?)(\d+)"),
        weights=("", "huggingface"),
    ),
)  # fmt: skip
"""The last is for what no other row's signs are found in."""

WEIGHT_FOLDERS = tuple(dict.fromkeys(place for row in TRAINERS for place in row.weights))
"""Where a step's folder may keep its weights, the first that has them counts."""

DEEPEST = max(len(Path(place).parts) for place in WEIGHT_FOLDERS)
"""Folders between a step's and its weights, at most."""

OTHER_FOLDERS = tuple(dict.fromkeys(place for row in TRAINERS for place in row.others))
"""Where a step's folder may have something else in their place."""


def _writers(files: Iterable[tuple[str | None, str]]) -> dict[str, str]:
    """(File, trainer) pairs → ``{"STABLE": "prime-rl"}``; a trainer's variants are one."""
    found: dict[str, dict[str, None]] = {}
    for name, trainer in files:
        if name is not None:
            found.setdefault(name, {})[trainer.partition(" (")[0]] = None
    return {name: " and ".join(trainers) for name, trainers in found.items()}


DONE_FILES = _writers((row.done, row.trainer) for row in TRAINERS)
"""What a trainer puts into a step's folder when it is complete → the trainer."""

TRACKERS = _writers((row.tracker, row.trainer) for row in TRAINERS)
"""Where a trainer notes, beside the steps' folders, the newest complete step → the trainer."""


def step_of(name: str, *, epochs: bool = False) -> int | None:
    """The step that a folder's name states, or None. ``epochs``: the names of epochs instead."""
    for row in TRAINERS:
        match = row.pattern.fullmatch(name) if row.epochs is epochs else None
        if match:
            return int(match[1]) + (1 - row.first)
    return None


def trainer_of(steps: Iterable[Path]) -> Layout:
    """Whose run it is: the row whose names these folders have and whose signs the most show."""
    folders = list(steps)
    *rows, unsigned = TRAINERS
    counts = [sum(_is_signed(row, folder) for folder in folders) for row in rows]
    return rows[counts.index(max(counts))] if any(counts) else unsigned


def _is_signed(row: Layout, step: Path) -> bool:
    if row.pattern.fullmatch(step.name) is None:
        return False
    return not row.signs or any((step / sign).exists() for sign in row.signs)
