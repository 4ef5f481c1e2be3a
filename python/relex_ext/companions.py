"""The files beside the weights that make a model folder loadable. Trainer state is none of them."""

from __future__ import annotations

import json
from pathlib import Path

from relex_ext.checkpoints import CONFIG, companions_in
from relex_ext.errors import InputError
from relex_ext.trajectory import Trajectory

TOKENIZER = (
    "tokenizer*", "*.tiktoken", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "chat_template*", "*preprocessor_config.json", "processor_config.json",
    "sentencepiece*", "spiece.model",
)  # fmt: skip

COMPANIONS = ("config.json", "generation_config.json", *TOKENIZER, "*.py")

_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def companions_of(trajectory: Trajectory, dtype: str | None) -> dict[str, bytes]:
    """File name → contents: the newest checkpoint's, and the base's where it lacks a name. A newest
    checkpoint that is no model, but an adapter, has a tokenizer's to give.

    ``dtype``: what the config is to name, if not what it names.

    Raises:
        InputError: a link out of the folder, or a config that is no JSON.
    """
    found: dict[str, bytes] = {}
    for checkpoint in (trajectory.base, trajectory.newest):
        whole = checkpoint in (trajectory.base, trajectory.model)
        found |= companions_in(checkpoint.folder, COMPANIONS if whole else TOKENIZER)
        if whole and CONFIG in found and dtype is not None:
            found[CONFIG] = config_with_dtype(checkpoint.folder / CONFIG, found[CONFIG], dtype)
    return dict(sorted(found.items()))


def config_with_dtype(path: Path, config: bytes, dtype: str) -> bytes:
    """config.json naming the dtype that was asked for, under the key it uses."""
    try:
        described = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, found {error}") from error
    for key in ("dtype", "torch_dtype"):
        if key in described:
            described[key] = _TORCH_NAMES[dtype]
    return (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode()
