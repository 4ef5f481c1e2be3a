"""LoRA runs as PEFT saves them, over tiny models of transformers, and what PEFT makes of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import oracle
from compare import checked_distance
from folders import Raw, read_model
from oracle import Float64

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these warn about on import is not ours
    import peft
    import transformers

STEPS = (10, 20, 30, 40, 50)

IGNORED = (
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*fan_in_fan_out:UserWarning",
    "ignore:.*save_embedding_layers:UserWarning", "ignore:.*tie_word_embeddings:UserWarning",
    "ignore:.*config.json:UserWarning", "ignore:.*tied:UserWarning",
)  # fmt: skip
"""PEFT's advice on what the tests do on purpose."""


def llama(dtype: torch.dtype = torch.bfloat16, tie: bool = False) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=211, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=tie,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(dtype)


def gpt2(dtype: torch.dtype = torch.bfloat16) -> Any:
    """Its linear modules store their weights as (in, out)."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=48, n_head=4, vocab_size=211, n_positions=64, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).to(dtype)


@dataclass
class LoraRun:
    """A base and its adapters on disk."""

    base: Path
    checkpoints: Path
    model: Any
    steps: tuple[int, ...]

    def folder(self, step: int) -> Path:
        return self.checkpoints / f"checkpoint-{step}"

    @cached_property
    def base_tensors(self) -> dict[str, Raw]:
        return read_model(self.base)

    def merged(self, step: int, dtype: torch.dtype = torch.float64) -> Any:
        """PEFT's merge of an adapter into the base."""
        wrapped = peft.PeftModel.from_pretrained(
            copy.deepcopy(self.model).to(dtype), self.folder(step)
        )
        return wrapped.to(dtype).merge_and_unload()

    @cached_property
    def deltas(self) -> dict[str, Float64]:
        """Tensor → PEFT's own s·BA at each step, in float64: (T, elements)."""
        found: dict[str, list[Float64]] = {}
        for step in self.steps:
            wrapped = peft.PeftModel.from_pretrained(
                copy.deepcopy(self.model).double(), self.folder(step)
            ).double()
            for name, module in wrapped.base_model.model.named_modules():
                if isinstance(module, peft.tuners.lora.LoraLayer):
                    delta = module.get_delta_weight("default").detach().numpy().ravel()
                    found.setdefault(f"{name}.weight", []).append(delta)
        return {name: np.stack(rows) for name, rows in found.items()}

    def distance(self, name: str, found: Raw, target: float, rank: int = 1) -> NDArray[np.int64]:
        """Units in the last place between a written tensor and the oracle's forecast of it."""
        base = self.base_tensors[name].values
        rows = list(base + self.deltas[name])
        answer = oracle.forecast(base, rows, self.steps, [target], rank)
        return checked_distance(found.words, found.dtype, base, rows, answer)


def make_lora_run(
    root: Path,
    model: Any,
    steps: Sequence[int] = STEPS,
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    **config: Any,
) -> LoraRun:
    """Adapters that drift from PEFT's own start, where B is zero, along one direction each, with
    noise. ``config``: of the LoraConfig."""
    model.save_pretrained(root / "base", max_shard_size=shard_size)
    wrapped = wrap(model, **config)
    generator = torch.Generator().manual_seed(1)
    factors = {n: p for n, p in wrapped.named_parameters() if "lora_" in n}
    starts = {name: p.detach().clone() for name, p in factors.items()}
    drifts = {name: torch.randn(p.shape, generator=generator) for name, p in factors.items()}
    for step in steps:
        with torch.no_grad():
            for name, parameter in factors.items():
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                pace = 3e-5 if "_B" in name else 1e-3
                parameter.copy_(starts[name] + pace * step * (drifts[name] + noise))
        save(wrapped, root / "run" / f"checkpoint-{step}", dtype)
    return LoraRun(root / "base", root / "run", model, tuple(steps))


def wrap(model: Any, **config: Any) -> Any:
    given: Mapping[str, Any] = {
        "r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }  # fmt: skip
    torch.manual_seed(2)
    return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**{**given, **config}))


def save(wrapped: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    copy.deepcopy(wrapped).to(dtype).save_pretrained(folder)
