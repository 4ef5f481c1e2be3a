"""Run folders as trainers write them: every file, those that hold no weights empty.

Each is a row of :data:`RUNS`, with what its trainer leaves when it is stopped amid a step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from folders import COMPANIONS, INDEX, Tensors, write_model

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
MODEL = {"config.json": COMPANIONS["config.json"]} | dict.fromkeys(TOKENIZER, b"{}")


@dataclass(frozen=True)
class TrainerRun:
    """Paths in it are within the run; ``{n}`` is the step as its trainer counts, ``{last}`` the
    newest complete one."""

    trainer: str
    folder: str
    """A step's."""

    weights: str = ""
    """Where in it the model is."""

    given: str = "."
    """What of the run is given to relex."""

    first: int = 1
    """The number of the first update."""

    sharded: bool = False
    files: Sequence[str] = ()
    """Of a step, beside the model."""

    marker: str | None = None
    """Written last into a step."""

    beside: Mapping[str, str] = field(default_factory=dict)
    """Of the run: path → text."""

    unfinished: str = "no index"
    """What the step it is stopped in has of the model: all but the index (``"no index"``), and its
    shards not yet named by how many there are (``"unnumbered"``); no weights (``"none"``); or
    ``"whole"``, and marker, tracker or the folder's name tell that it is not done."""

    stopped: str | None = None
    """The folder of that step, where it has another name until it is done."""

    says: str | None = "shards without the index"
    """What is said of that step; None: it is no step yet."""


_HF = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json")
_FSDP = tuple(
    f"actor/{kind}_world_size_2_rank_{rank}.pt"
    for kind in ("model", "optim", "extra_state")
    for rank in (0, 1)
)
_DCP = (".metadata", "__0_0.distcp", "__1_0.distcp")
_MODEL_PARTS = "policy/weights/model/shard-0000{}-model-00001-of-00001.safetensors"


def _empty(folder: str, *names: str) -> dict[str, str]:
    """Files without contents, for ``beside``."""
    return {f"{folder}/{name}": "" for name in names}


RUNS = (
    TrainerRun(
        "TRL, Hugging Face Trainer, Unsloth", "checkpoint-{n}", sharded=True, files=_HF,
        beside=_empty(".", "README.md", "runs/events.out.tfevents.1"),
    ),
    TrainerRun(
        "verl (FSDP)", "global_step_{n}", "actor/huggingface",
        files=("data.pt", "actor/fsdp_config.json", *_FSDP),
        beside={"latest_checkpointed_iteration.txt": "{last}"},
        unfinished="whole", says="verl and Megatron noted {last} as the newest",
    ),
    TrainerRun(
        "verl (FSDP)", "global_step_{n}", "huggingface",
        files=("data_0.pt", "fsdp_config.json", *(name.removeprefix("actor/") for name in _FSDP)),
        beside={"latest_checkpointed_iteration.txt": "{last}"},
        unfinished="whole", says="verl and Megatron noted {last} as the newest",
    ),
    TrainerRun(
        "verl (Megatron)", "global_step_{n}", "actor/model/huggingface", sharded=True,
        files=(
            "data.pt", "actor/transformer_config.json",
            *(f"actor/{part}/dist_ckpt/{name}" for part in ("model", "optimizer", "extra")
              for name in (*_DCP, "common.pt", "metadata.json")),
        ),
        marker="actor/ckpt_contents.json",
        beside={"latest_checkpointed_iteration.txt": "{n}"},
        unfinished="whole", says="verl puts actor/ckpt_contents.json into the finished ones",
    ),
    TrainerRun(
        "OpenRLHF", "global_step{n}_hf", sharded=True,
        beside={
            "_actor/latest": "global_step{last}",
            **_empty("_actor", "zero_to_fp32.py"),
            **_empty(
                "_actor/global_step{last}", "mp_rank_00_model_states.pt",
                "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
            ),
        },
    ),
    TrainerRun(
        "SkyRL", "exports/global_step_{n}", "policy", sharded=True,
        beside={
            "checkpoints/latest_ckpt_global_step.txt": "{last}",
            **_empty(
                "checkpoints/global_step_{last}", "data.pt", "trainer_state.pt",
                "policy/model_world_size_1_rank_0.pt",
            ),
            "checkpoints/global_step_{last}/policy/huggingface/config.json": "{{}}",
        },
    ),
    TrainerRun(
        "NeMo RL", "step_{n}", "policy/weights/model/consolidated", sharded=True,
        files=(
            "training_info.json", "config.yaml", "train_dataloader.pt",
            _MODEL_PARTS.format(1), _MODEL_PARTS.format(2),
            "policy/weights/model/.hf_metadata/config.json", "policy/tokenizer/tokenizer.json",
            *(f"policy/optimizer/optim/{name}" for name in _DCP),
        ),
        stopped="tmp_step_{n}", unfinished="whole", says=None,
    ),
    TrainerRun(
        "prime-rl", "weights/step_{n}", marker="STABLE",
        beside={
            **_empty("checkpoints/step_{last}/trainer", *_DCP[:2]),
            **_empty(".", "rollouts/step_{n}/train_rollouts.jsonl", "logs/trainer.log"),
        },
        unfinished="whole", says="prime-rl puts STABLE into the finished ones",
    ),
    TrainerRun(
        "prime-rl", "broadcasts/step_{n}", given="broadcasts", marker="STABLE", sharded=True,
        beside=_empty("weights/step_{last}", "model.safetensors", "STABLE"),
        unfinished="whole", says="prime-rl puts STABLE into the finished ones",
    ),
    TrainerRun(
        "AReaL", "default/epoch0epochstep{n}globalstep{n}", first=0, sharded=True,
        beside=_empty("recover_checkpoint", *_DCP[:2]),
    ),
    TrainerRun(
        "slime", "hf/rollout_{n}", sharded=True,
        beside={
            "latest_checkpointed_iteration.txt": "{last}",
            **_empty("iter_{last:07}", *_DCP[:2], "common.pt"),
        },
        unfinished="unnumbered",
    ),
    TrainerRun(
        "ROLL", "checkpoint-{n}",
        files=(
            "checkpoint/latest", "checkpoint/checkpoint/mp_rank_00_model_states.pt",
            "pipeline/worker_state_pipeline.json", "rng_state_0.pth", "scheduler.pt",
        ),
        unfinished="none", says="expected model.safetensors or model.safetensors.index.json",
    ),
    TrainerRun(
        "torchtune", "step_{n}", sharded=True, files=("torchtune_config.yaml",),
        beside=_empty(".", "recipe_state/recipe_state.pt", "logs/log_1.txt"),
    ),
    TrainerRun(
        "torchtune (epochs)", "epoch_{n}", first=0, sharded=True,
        beside=_empty(".", "recipe_state/recipe_state.pt", "logs/log_1.txt"),
    ),
    TrainerRun(
        "Megatron", "iter_{n:07}", sharded=True,
        beside={"latest_checkpointed_iteration.txt": "{last}"},
        unfinished="whole", says="verl and Megatron noted {last} as the newest",
    ),
    TrainerRun("by hand", "global_step{n}", "huggingface"),
)  # fmt: skip


def write_run(
    root: Path, run: TrainerRun, steps: Mapping[int, Tensors], stopped: int | None = None
) -> Path:
    """The folder to give to relex. ``steps``: by number of updates; ``stopped``: which of them its
    trainer was killed in."""
    names = {step: step - 1 + run.first for step in steps}
    last = max(number for step, number in names.items() if step != stopped)
    for step, tensors in steps.items():
        at_work = step == stopped
        name = run.stopped if at_work and run.stopped else run.folder
        place = root / name.format(n=names[step])
        _write_step(place, run, tensors, run.unfinished if at_work else None)
    for name, text in run.beside.items():
        path = root / name.format(n=max(names.values()), last=last)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(n=max(names.values()), last=last))
    return root / run.given


def _write_step(place: Path, run: TrainerRun, tensors: Tensors, unfinished: str | None) -> None:
    names = tuple(tensors)
    sharded = run.sharded or unfinished in ("no index", "unnumbered")
    model = write_model(
        place / run.weights, tensors, [names[:1], names[1:]] if sharded else None, companions=MODEL
    )
    if unfinished in ("no index", "unnumbered"):
        (model / INDEX).unlink()
    if unfinished == "unnumbered":
        for shard in sorted(model.glob("*.safetensors")):
            shard.rename(model / f"{shard.name.partition('-of-')[0]}.safetensors")
    if unfinished == "none":
        (model / "model.safetensors").unlink()
    for name in run.files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    if run.marker is not None and unfinished is None:
        (place / run.marker).write_text(json.dumps({"schema_version": 2}))
