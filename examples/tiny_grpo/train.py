"""Train the tiny run: a short supervised warm-up, then GRPO with TRL, keeping every step.

    python examples/tiny_grpo/train.py --out runs/tiny

writes ``base/`` (the warmed-up model), ``checkpoint-1/`` ... ``checkpoint-<steps>/`` and
``record.json``. Weights are stored in bfloat16, as real runs store them; training is float32.
The defaults are the regime of the run shipped in this folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

# Reports to online services are off and no model is looked up: the run needs no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
# One bar for each saved checkpoint would drown the run's own lines.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

import task

RECORDED_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "safetensors")
IGNORED_LABEL = -100  # the label that the loss of transformers leaves out


@dataclass(frozen=True)
class Regime:
    """Everything that decides the run, besides the versions of the packages."""

    lr: float
    prompts: int
    generations: int
    steps: int
    seed: int
    warmup_steps: int
    warmup_batch: int
    warmup_lr: float


def build_model() -> Qwen2ForCausalLM:
    """Create the untrained model (about 335,000 parameters)."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(task.VOCABULARY),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=32,
            tie_word_embeddings=True,
            pad_token_id=task.VOCABULARY.index(task.PAD),
            eos_token_id=task.VOCABULARY.index(task.EOS),
            bos_token_id=None,
        )
    )


def encode(
    tokenizer: PreTrainedTokenizerFast, batch: list[task.Problem]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and labels; only the answer and its end token are labelled."""
    encoded = tokenizer(
        [problem.prompt + problem.answer + task.EOS for problem in batch],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    ids: torch.Tensor = encoded["input_ids"]
    labels = ids.masked_fill(encoded["attention_mask"] == 0, IGNORED_LABEL)
    labels[:, : len(batch[0].prompt)] = IGNORED_LABEL
    return ids, labels


def warm_up(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, regime: Regime) -> None:
    """Teach the model to add as carelessly as the writer of its lessons."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=regime.warmup_lr, betas=(0.9, 0.98))
    rise, fall = 100, regime.warmup_steps // 4
    # Falling to zero makes the base a settled model rather than a snapshot of a noisy one.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / rise, (regime.warmup_steps - step) / fall),
    )
    rng = random.Random(regime.seed)
    stream = (
        problem._replace(answer=task.careless_answer(problem.prompt, rng))
        for problem in task.problems("train", seed=regime.seed)
    )
    model.train()
    for step in range(1, regime.warmup_steps + 1):
        ids, labels = encode(tokenizer, list(islice(stream, regime.warmup_batch)))
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == regime.warmup_steps:
            print(f"warm-up step {step:4d}  loss {loss.item():.4f}", flush=True)


def save_bf16(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a bfloat16 copy of ``model`` with its tokenizer; ``model`` itself stays float32.

    Training leaves traces in the settings of both (no cache, the padding of the last batch); they
    are undone here, so that the folders of a run differ in their weights and in nothing else.
    """
    stored = copy.deepcopy(model).bfloat16()
    stored.config.use_cache = True
    stored.save_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


class KeepEveryStep(TrainerCallback):
    """Save a bfloat16 checkpoint after every optimizer step and collect the rewards."""

    def __init__(self, out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.out = out
        self.tokenizer = tokenizer
        self.rewards: list[float] = []
        self._started = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the weights as they are after step ``state.global_step``."""
        save_bf16(kwargs["model"], self.tokenizer, self.out / f"checkpoint-{state.global_step}")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the mean reward of the step's samples and print it now and then."""
        logs: dict[str, float] = kwargs["logs"]
        if "reward" not in logs:
            return
        self.rewards.append(round(logs["reward"], 6))
        if state.global_step % 5 == 0 or state.global_step == 1:
            elapsed = time.monotonic() - self._started
            print(
                f"step {state.global_step:4d}  reward {logs['reward']:.4f}  {elapsed:.0f} s",
                flush=True,
            )


def exact_match(completions: list[str], answer: list[str], **_: Any) -> list[float | None]:
    """Score a batch in the form in which GRPOTrainer calls a reward function."""
    return [task.reward(c, a) for c, a in zip(completions, answer, strict=True)]


def grpo(base: Path, tokenizer: PreTrainedTokenizerFast, out: Path, regime: Regime) -> list[float]:
    """Run GRPO from the saved base and return the mean reward of every step."""
    # Starting from the saved file makes the stored base exactly the run's step 0.
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    stream = task.problems("train", seed=regime.seed + 1)
    dataset = Dataset.from_list(
        [problem._asdict() for problem in islice(stream, regime.prompts * regime.steps)]
    )
    keeper = KeepEveryStep(out, tokenizer)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=exact_match,
        processing_class=tokenizer,
        train_dataset=dataset,
        callbacks=[keeper],
        args=GRPOConfig(
            output_dir=str(out),
            learning_rate=regime.lr,
            lr_scheduler_type="constant",
            per_device_train_batch_size=regime.prompts * regime.generations,
            num_generations=regime.generations,
            max_completion_length=task.MAX_ANSWER_TOKENS,
            max_steps=regime.steps,
            temperature=1.0,
            beta=0.0,
            seed=regime.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    # The default printer would write every log as a dictionary; KeepEveryStep prints instead.
    trainer.callback_handler.callbacks = [
        callback
        for callback in trainer.callback_handler.callbacks
        if type(callback).__name__ != "PrinterCallback"
    ]
    trainer.train()
    return keeper.rewards


def parse_arguments(argv: list[str] | None) -> tuple[Path, Path | None, Regime]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="new folder for the run")
    parser.add_argument("--base", type=Path, help="start from this base instead of a warm-up")
    parser.add_argument("--lr", type=float, default=1.5e-6, help="GRPO learning rate")
    parser.add_argument("--prompts", type=int, default=64, help="prompts per step")
    parser.add_argument("--generations", type=int, default=16, help="samples per prompt")
    parser.add_argument("--steps", type=int, default=200, help="GRPO steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warmup-steps", type=int, default=600)
    parser.add_argument("--warmup-batch", type=int, default=256)
    parser.add_argument("--warmup-lr", type=float, default=2e-3)
    options = vars(parser.parse_args(argv))
    out, base = options.pop("out"), options.pop("base")
    return out, base, Regime(**options)


def main(argv: list[str] | None = None) -> None:
    """Train the run that the command line describes."""
    out, given_base, regime = parse_arguments(argv)
    if out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty; choose a new folder")
    set_seed(regime.seed)
    base = out / "base"
    if given_base is None:
        tokenizer = task.build_tokenizer()
        model = build_model()
        warm_up(model, tokenizer, regime)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(given_base)
        model = Qwen2ForCausalLM.from_pretrained(given_base)
    save_bf16(model, tokenizer, base)
    started = time.monotonic()
    rewards = grpo(base, tokenizer, out, regime)
    settings = asdict(regime)
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    record = {
        "command": f"python examples/tiny_grpo/train.py --out RUN {flags}",
        "regime": settings,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in RECORDED_PACKAGES},
        "grpo_seconds": round(time.monotonic() - started),
        "rewards": rewards,
    }
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
