"""A tiny model of transformers, random and always the same."""

from __future__ import annotations

from typing import Any

import torch


def qwen2(vocabulary: int, **changed: Any) -> Any:
    """``changed``: of its configuration."""
    from transformers import Qwen2Config, Qwen2ForCausalLM  # for who has it, and warns on import

    torch.manual_seed(0)
    small = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 16,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **{**small, **changed}))
