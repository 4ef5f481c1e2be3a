"""GRPO by TRL with RelexCallback: is the run linear yet, and how far would a forecast reach?

    python examples/callback/train.py --out runs/callback

Starts from the base of the shipped run (examples/tiny_grpo), saves every second step as TRL saves
it, prints what the callback logs, and at the end writes the forecast of --target, which is scored
beside the base and the newest checkpoint. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from itertools import islice
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tiny_grpo"))

import task
from pack import unpack
from relex_ext.integrations.trl import RelexCallback
from score import score, standard_error


def exact_match(completions: list[str], answer: list[str], **_: object) -> list[float]:
    return [task.reward(c, a) for c, a in zip(completions, answer, strict=True)]


def shipped_base(folder: Path) -> Path:
    """The shipped run's base, without its 200 checkpoints."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(unpack(Path(place) / "run") / "base", folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="new folder for the run")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=2)
    parser.add_argument("--target", type=int, default=100, help="step to forecast at the end")
    parser.add_argument("--lr", type=float, default=1.5e-6)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--generations", type=int, default=16)
    parser.add_argument("--problems", type=int, default=2000, help="held-out ones to score on")
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"{args.out} exists; choose a new folder")
    base = shipped_base(args.out / "base")

    callback = RelexCallback(base, forecast_at_end=args.target)
    problems = islice(task.problems("train", seed=1), args.prompts * args.steps)
    trainer = GRPOTrainer(
        model=Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32),
        reward_funcs=exact_match,
        processing_class=PreTrainedTokenizerFast.from_pretrained(base),
        train_dataset=Dataset.from_list([problem._asdict() for problem in problems]),
        callbacks=[callback],
        args=GRPOConfig(
            output_dir=str(args.out / "run"),
            learning_rate=args.lr,
            lr_scheduler_type="constant",
            per_device_train_batch_size=args.prompts * args.generations,
            num_generations=args.generations,
            max_completion_length=task.MAX_ANSWER_TOKENS,
            max_steps=args.steps,
            save_steps=args.save_steps,
            save_only_model=True,
            logging_steps=10,
            beta=0.0,
            seed=0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
        ),
    )
    callback.trainer = trainer  # whose logger the callback writes to
    trainer.pop_callback(PrinterCallback)
    trainer.train()

    print("\nstep  reach  go  straightness  explained variance  R²")
    for line in trainer.state.log_history:
        if "relex/r2" in line and line["relex/step"] % 4 == 0:
            straight = line.get("relex/straightness", float("nan"))
            print(
                f"{line['relex/step']:4.0f}  {line['relex/reach']:5.0f}  "
                f"{line['relex/verdict_go']:2.0f}  {straight:12.2f}  {line['relex/ev']:18.3f}  "
                f"{line['relex/r2']:.3f}"
            )
    print(f"\n{callback.watch.standing(args.target)}\n")
    models = {
        "base": base,
        f"trained to step {args.steps}": args.out / "run" / f"checkpoint-{args.steps}",
        f"forecast of step {args.target}": (
            args.out / "run" / "relex" / "forecast" / f"step_{args.target}"
        ),
    }
    for name, folder in models.items():
        accuracy = score(folder, args.problems)
        print(f"{name:24}{accuracy:.3f} ± {standard_error(accuracy, args.problems):.3f}")


if __name__ == "__main__":
    main()
