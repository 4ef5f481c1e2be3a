"""Score a model folder on held-out additions; needs only torch and transformers.

    python examples/tiny_grpo/score.py runs/tiny/base runs/tiny/checkpoint-200

Whatever the stored type of the weights (bfloat16 here), they are evaluated in float32.

Greedy accuracy takes no generation: greedy decoding finds an answer exactly if every token of it is
the likeliest after the ones before it, and one pass over prompt and answer shows that.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

# Loading a folder of half a megabyte needs no progress bar.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import task

HELD_OUT_SEED = 20_000  # fixed, so that every model meets the same problems
BATCH = 1000


class Scorer:
    """Greedy accuracy of many models of one architecture on the same held-out problems."""

    def __init__(self, model_dir: str | Path, problems: int) -> None:
        """``model_dir``: any of the models."""
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        # Any: the annotations of transformers reject load_state_dict's strictness.
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=torch.float32, local_files_only=True
        )
        stream = islice(task.problems("held_out", seed=HELD_OUT_SEED), problems)
        pairs = [(problem.prompt, problem.prompt + problem.answer + task.EOS) for problem in stream]
        encoded = tokenizer(
            [text for _, text in pairs], padding=True, padding_side="right", return_tensors="pt"
        )
        self._ids: torch.Tensor = encoded["input_ids"]
        self._padding: torch.Tensor = encoded["attention_mask"] == 0
        self._start = len(pairs[0][0])

    @torch.inference_mode()
    def score(self, weights: Mapping[str, torch.Tensor]) -> float:
        """Of the model with these ``weights``, by name; tied ones may be left out."""
        self._model.load_state_dict(weights, strict=False)
        solved = 0
        for ids, padding in zip(
            self._ids.split(BATCH), self._padding[:, self._start :].split(BATCH), strict=True
        ):
            likeliest = self._model(input_ids=ids).logits[:, self._start - 1 : -1].argmax(-1)
            solved += int(((likeliest == ids[:, self._start :]) | padding).all(1).sum())
        return solved / len(self._ids)


@torch.inference_mode()
def score(model_dir: str | Path, problems: int = 1000, samples: int = 0, seed: int = 0) -> float:
    """Return the share of held-out problems that the model in ``model_dir`` solves.

    With ``samples`` at 0 the decoding is greedy, hence deterministic. Otherwise every problem is
    answered ``samples`` times at temperature 1, drawn from ``seed``, and the result is the mean
    over all answers, which is what the training reward measures.
    """
    if samples == 0:
        return Scorer(model_dir, problems).score({})
    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    # Any: the annotations of transformers reject its own generate().
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, local_files_only=True
    )
    stream = task.problems("held_out", seed=HELD_OUT_SEED)
    remaining = list(islice(stream, problems))
    solved = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while remaining:
            batch, remaining = remaining[:BATCH], remaining[BATCH:]
            prompts = tokenizer([problem.prompt for problem in batch], return_tensors="pt")
            output = model.generate(
                **prompts, max_new_tokens=task.MAX_ANSWER_TOKENS, do_sample=True,
                temperature=1.0, top_k=0, num_return_sequences=samples,
            )  # fmt: skip
            answers = tokenizer.batch_decode(
                output[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
            )
            solved += sum(
                task.reward(answer, batch[i // samples].answer) for i, answer in enumerate(answers)
            )
    return solved / (problems * samples)


def standard_error(accuracy: float, problems: int) -> float:
    """Return the binomial standard error over ``problems`` independent problems.

    For sampled accuracy this is an upper bound: averaging several answers per problem can only
    lower the spread. Two models scored on the same problems differ with less noise than this.
    """
    return math.sqrt(accuracy * (1 - accuracy) / problems)


def main(argv: list[str] | None = None) -> None:
    """Print the accuracy of each given model folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model_dir", type=Path, nargs="+")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=0, help="0 for greedy decoding")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--json", type=Path, help="also write the result here, for pack.py")
    options = parser.parse_args(argv)
    accuracies: dict[str, float] = {}
    for model_dir in options.model_dir:
        accuracy = score(model_dir, options.problems, options.samples, options.seed)
        accuracies[model_dir.name] = accuracy
        error = standard_error(accuracy, options.problems)
        print(f"{model_dir}: {accuracy:.4f} ± {error:.4f}", flush=True)
    if options.json is not None:
        result = {
            "problems": options.problems,
            "samples": options.samples,
            "seed": options.seed,
            "accuracy": accuracies,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
