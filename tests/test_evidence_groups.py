"""Tensor names → module type and layer."""

from __future__ import annotations

import pytest

from relex_ext.evidence.groups import place_of

TABLE = [
    # Llama, Qwen, Mistral
    ("model.embed_tokens.weight", "embed_tokens", "", None),
    ("model.layers.12.self_attn.q_proj.weight", "q_proj", "model.layers", 12),
    ("model.layers.12.self_attn.q_proj.bias", "q_proj.bias", "model.layers", 12),
    ("model.layers.0.self_attn.q_norm.weight", "q_norm", "model.layers", 0),
    ("model.layers.3.mlp.down_proj.weight", "down_proj", "model.layers", 3),
    ("model.layers.3.input_layernorm.weight", "input_layernorm", "model.layers", 3),
    ("model.norm.weight", "norm", "", None),
    ("lm_head.weight", "lm_head", "", None),
    # experts
    ("model.layers.5.mlp.experts.17.down_proj.weight", "experts.down_proj", "model.layers", 5),
    ("model.layers.5.mlp.gate.weight", "gate", "model.layers", 5),
    ("model.layers.5.mlp.shared_expert.up_proj.weight", "shared_expert.up_proj", "model.layers", 5),
    ("model.layers.1.block_sparse_moe.experts.3.w1.weight", "experts.w1", "model.layers", 1),
    ("model.layers.2.mlp.experts.gate_up_proj", "experts.gate_up_proj", "model.layers", 2),
    ("model.layers.2.self_attn.sinks", "sinks", "model.layers", 2),
    # GPT-2
    ("transformer.wte.weight", "wte", "", None),
    ("transformer.h.3.attn.c_attn.weight", "c_attn", "transformer.h", 3),
    ("transformer.h.3.attn.c_proj.weight", "attn.c_proj", "transformer.h", 3),
    ("transformer.h.3.mlp.c_proj.weight", "mlp.c_proj", "transformer.h", 3),
    ("transformer.h.3.ln_1.bias", "ln_1.bias", "transformer.h", 3),
    ("transformer.ln_f.weight", "ln_f", "", None),
    # BERT, GPT-NeoX, a vision tower
    ("encoder.layer.7.attention.output.dense.weight", "attention.output.dense", "encoder.layer", 7),
    ("encoder.layer.7.output.dense.weight", "output.dense", "encoder.layer", 7),
    ("gpt_neox.layers.0.attention.dense.weight", "attention.dense", "gpt_neox.layers", 0),
    ("visual.blocks.31.mlp.fc1.weight", "mlp.fc1", "visual.blocks", 31),
    ("visual.patch_embed.proj.weight", "patch_embed.proj", "", None),
    # adapters, and names that follow no custom
    ("model.layers.4.self_attn.q_proj.lora_A.weight", "q_proj.lora_A", "model.layers", 4),
    ("w", "w", "", None),
    ("weight", "weight", "", None),
    ("bias", "bias", "", None),
    ("layers.7", "layers", "", None),
    ("layers.7.8", "8", "layers", 7),
    ("", "", "", None),
]


@pytest.mark.parametrize(("name", "module", "stack", "layer"), TABLE)
def test_place(name: str, module: str, stack: str, layer: int | None) -> None:
    found = place_of(name)
    assert (found.module, found.stack, found.layer) == (module, stack, layer)
