"""A child process that trains: ``python grpo_run.py OUT``, some steps of TRL's GRPO.

Writes OUT/base, OUT/run with a checkpoint for every other step, and beside them OUT/seen-STEP.npz:
the weights as they were in memory when it was saved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

import tiny

STEPS, EVERY = 6, 2
WORDS = ("<pad>", "<eos>", *"0123456789", "+", "=")


class Remember(TrainerCallback):
    """What the model is when a checkpoint of it is written."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        weights = {name: p.detach().numpy().copy() for name, p in given["model"].named_parameters()}
        np.savez(self.out / f"seen-{state.global_step}.npz", **weights)


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def reward(completions: list[str], **_: Any) -> list[float]:
    """Of anything that a random model says now and then."""
    return [float(completion.count("1")) for completion in completions]


def train(out: Path) -> None:
    model = tiny.qwen2(
        len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model.save_pretrained(out / "base")
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(10)]),
        callbacks=[Remember(out)],
        args=GRPOConfig(
            output_dir=str(out / "run"), learning_rate=1e-5, lr_scheduler_type="constant",
            per_device_train_batch_size=8, num_generations=4, max_completion_length=4,
            max_steps=STEPS, save_steps=EVERY, save_strategy="steps", use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to="none", disable_tqdm=True,
        ),
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    train(Path(sys.argv[1]))
