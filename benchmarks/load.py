"""The standard load: a generated bf16 trajectory, 130M parameters × 40 checkpoints, 10.7 GB.

    python benchmarks/load.py DIR [--checkpoints 40] [--scale 1.0]

Each checkpoint is the base plus a straight drift and the noise of an optimizer that steps at about
the resolution of bf16, so that deltas, their sparsity and their rounding look like an RLVR run's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relex_ext.layout import lay_out

DRIFT = 4e-5
"""Distance a weight drifts over the whole run; bf16 steps by 6e-5 to 1.2e-4 at a weight of 0.02."""

NOISE = 2e-5


def shapes(scale: float) -> dict[str, tuple[int, ...]]:
    """A Qwen2-like model of 130M parameters times ``scale`` (in depth), embeddings tied."""
    hidden, inner, vocabulary, kv = 768, 2560, 40000, 256
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(max(1, round(13 * scale))):
        p = f"model.layers.{i}."
        tensors |= {
            p + "input_layernorm.weight": (hidden,),
            p + "mlp.down_proj.weight": (hidden, inner),
            p + "mlp.gate_proj.weight": (inner, hidden),
            p + "mlp.up_proj.weight": (inner, hidden),
            p + "post_attention_layernorm.weight": (hidden,),
            p + "self_attn.k_proj.bias": (kv,),
            p + "self_attn.k_proj.weight": (kv, hidden),
            p + "self_attn.o_proj.weight": (hidden, hidden),
            p + "self_attn.q_proj.bias": (hidden,),
            p + "self_attn.q_proj.weight": (hidden, hidden),
            p + "self_attn.v_proj.bias": (kv,),
            p + "self_attn.v_proj.weight": (kv, hidden),
        }
    return tensors | {"model.norm.weight": (hidden,)}


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write(folder: Path, tensors: dict[str, tuple[NDArray[np.uint16], tuple[int, ...]]]) -> None:
    folder.mkdir(parents=True)
    described = [(name, "BF16", shape, words.nbytes) for name, (words, shape) in tensors.items()]
    with (folder / "model.safetensors").open("wb") as file:
        file.write(lay_out(described, {"format": "pt"}).header)
        for words, _ in tensors.values():
            file.write(words.data.cast("B"))
    config = {"model_type": "qwen2", "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))


def generate(root: Path, checkpoints: int = 40, scale: float = 1.0, seed: int = 0) -> None:
    """Write ``root/base`` and ``root/run/checkpoint-1 …``."""
    rng = np.random.default_rng(seed)
    model = shapes(scale)
    sizes = {name: int(np.prod(shape)) for name, shape in model.items()}
    base = {
        n: rng.standard_normal(d, dtype=np.float32) * np.float32(0.02) for n, d in sizes.items()
    }
    drift = {
        n: rng.standard_normal(d, dtype=np.float32) * np.float32(DRIFT) for n, d in sizes.items()
    }
    noise = rng.standard_normal(max(sizes.values()) + 7919 * (checkpoints + 1), dtype=np.float32)
    noise *= np.float32(NOISE)
    write(root / "base", {n: (to_bf16(base[n]), model[n]) for n in model})
    for t in range(1, checkpoints + 1):
        share = np.float32(t / checkpoints)
        words = {
            n: (to_bf16(base[n] + share * drift[n] + noise[7919 * t : 7919 * t + d]), model[n])
            for n, d in sizes.items()
        }
        write(root / "run" / f"checkpoint-{t}", words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--checkpoints", type=int, default=40)
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    generate(args.root, args.checkpoints, args.scale)


if __name__ == "__main__":
    main()
