"""Models by the arithmetic of their public configurations: every tensor's shape, and its shard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from relex_ext.checkpoints import Checkpoint
from relex_ext.headers import Shard, TensorEntry
from relex_ext.trajectory import Tensor, Trajectory

Shape = tuple[int, ...]

SHARD_BYTES = 5_000_000_000
"""What transformers puts into a shard at most, unless told otherwise."""

ITEM = 2
"""Bytes of a bf16 weight."""


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    tensors: Mapping[str, Shape]

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.tensors.values()))

    @property
    def nbytes(self) -> int:
        """Of one checkpoint."""
        return ITEM * self.parameters

    @property
    def shards(self) -> int:
        """Files of one checkpoint: tensors in order, a new file where the next would not fit."""
        files, filled = 1, 0
        for shape in self.tensors.values():
            size = ITEM * math.prod(shape)
            if filled and filled + size > SHARD_BYTES:
                files, filled = files + 1, 0
            filled += size
        return files


def llama(
    name: str, *, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int
) -> Model:
    """Dense, grouped queries, an output head of its own."""
    kv = hidden // heads * kv_heads
    tensors: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        p = f"model.layers.{i}."
        tensors |= {
            p + "input_layernorm.weight": (hidden,),
            **_mlp(p + "mlp.", hidden, inner),
            p + "post_attention_layernorm.weight": (hidden,),
            p + "self_attn.k_proj.weight": (kv, hidden),
            p + "self_attn.o_proj.weight": (hidden, hidden),
            p + "self_attn.q_proj.weight": (hidden, hidden),
            p + "self_attn.v_proj.weight": (kv, hidden),
        }
    return Model(name, tensors | _ends(hidden, vocabulary))


def deepseek_v3(
    name: str, *, hidden: int, inner: int, expert: int, layers: int, dense_layers: int,
    experts: int, shared: int, heads: int, q_rank: int, kv_rank: int, head: int, rope: int,
    vocabulary: int,
) -> Model:  # fmt: skip
    """Latent attention and a mixture of experts, without the module that predicts further tokens;
    ``head``: of queries, keys and values without the rotated part ``rope``."""
    tensors: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        p = f"model.layers.{i}."
        tensors |= {
            p + "input_layernorm.weight": (hidden,),
            p + "self_attn.q_a_proj.weight": (q_rank, hidden),
            p + "self_attn.q_a_layernorm.weight": (q_rank,),
            p + "self_attn.q_b_proj.weight": (heads * (head + rope), q_rank),
            p + "self_attn.kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
            p + "self_attn.kv_a_layernorm.weight": (kv_rank,),
            p + "self_attn.kv_b_proj.weight": (heads * 2 * head, kv_rank),
            p + "self_attn.o_proj.weight": (hidden, heads * head),
            p + "post_attention_layernorm.weight": (hidden,),
        }
        if i < dense_layers:
            tensors |= _mlp(p + "mlp.", hidden, inner)
            continue
        tensors |= {
            p + "mlp.gate.weight": (experts, hidden),
            p + "mlp.gate.e_score_correction_bias": (experts,),
            **_mlp(p + "mlp.shared_experts.", hidden, shared * expert),
        }
        for j in range(experts):
            tensors |= _mlp(f"{p}mlp.experts.{j}.", hidden, expert)
    return Model(name, tensors | _ends(hidden, vocabulary))


def _mlp(prefix: str, hidden: int, inner: int) -> dict[str, Shape]:
    return {
        prefix + "down_proj.weight": (hidden, inner),
        prefix + "gate_proj.weight": (inner, hidden),
        prefix + "up_proj.weight": (inner, hidden),
    }


def _ends(hidden: int, vocabulary: int) -> dict[str, Shape]:
    return {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def models() -> dict[str, Model]:
    """The three of docs/scaling.md, with the shapes of Llama 3 8B and 70B and of DeepSeek-V3."""
    made = (
        llama("8B", hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, vocabulary=128256),
        llama("70B", hidden=8192, inner=28672, layers=80, heads=64, kv_heads=8, vocabulary=128256),
        deepseek_v3(
            "700B", hidden=7168, inner=18432, expert=2048, layers=61, dense_layers=3, experts=256,
            shared=1, heads=128, q_rank=1536, kv_rank=512, head=128, rope=64, vocabulary=129280,
        ),
    )  # fmt: skip
    return {model.name: model for model in made}


def trajectory(sizes: Mapping[str, int], rows: int) -> Trajectory:
    """What the product would find of tensors of so many columns in ``rows`` bf16 checkpoints. Of
    files that nobody has: good for plans only."""
    shard = Shard(Path(), 0, 0, "", ())
    tensors = []
    for name, columns in sizes.items():
        entry = TensorEntry(name, "BF16", (columns,), shard, 0, ITEM * columns)
        tensors.append(Tensor(name, (columns,), columns, entry, (entry,) * rows, trained=True))
    checkpoint = Checkpoint(Path(), (shard,), {t.name: t.base for t in tensors}, None)
    return Trajectory(checkpoint, tuple(range(1, rows + 1)), (checkpoint,) * rows, tuple(tensors))
