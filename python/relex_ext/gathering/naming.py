"""The names that a trainer gives its weights → those that the model's own folder gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from relex_ext.checkpoints import Checkpoint
from relex_ext.dtypes import CARRIED, CODES
from relex_ext.errors import InputError
from relex_ext.gathering.stored import Stored
from relex_ext.trajectory import EMBEDDING, HEAD

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch.compile, FSDP and activation checkpointing put between the parts of a name."""

PREFIXES = ("", "model.", "module.", "model.module.", "app.model.", "state_dict.")
"""What may stand before all weights: the names under which trainers save their model."""

OTHER_STATE = frozenset({
    "optimizer", "optimizers", "optim", "optimizer_states", "lr_scheduler", "lr_schedulers",
    "scheduler", "sched", "train_state", "progress", "dataloader", "data_loader", "rng",
    "rng_state", "random_state", "ema",
})  # fmt: skip
"""Where trainers keep what is not weights: the first part of a name, or the second after "app"."""

_FOREIGN: Mapping[str, str] = {
    "tok_embeddings.weight": (
        "torchtitan's own names and order of rows; run its scripts/checkpoint_conversion/"
        "convert_to_hf.py {place} OUT --hf_assets_path BASE --model_name NAME --model_flavor SIZE"
    ),
    ".lora_A": "a LoRA adapter beside frozen weights; merge it and save the whole model",
}
"""A part of a key → what its checkpoint is, and what to do."""


def names_of(place: Path, tensors: Mapping[str, Stored], base: Checkpoint | None) -> dict[str, str]:
    """The model's name of each weight → the trainer's key, in the order of the names.

    ``base``: whose names they have to be, and shapes; without one, those of a Hugging Face causal
    language model.

    Raises:
        InputError: they are no such names, or a tensor is none that a model folder may hold.
    """
    weights: dict[str, str] = {}
    for key in tensors:
        if not _is_other(key):
            _add(place, weights, key)
    for part, found in _FOREIGN.items():
        if any(part in name for name in weights):
            raise InputError(
                f"{place}: expected a model's weights, found {found.format(place=place)}"
            )
    prefix = _own(place, weights) if base is None else _prefix(place, weights, base)
    names = {name.removeprefix(prefix): weights[name] for name in sorted(weights)}
    for name, key in names.items():
        stored = tensors[key]
        if stored.dtype not in CODES and stored.dtype not in CARRIED:
            raise InputError(
                f"{place}: tensor {name}: dtype: expected F32, F16, BF16 or whole numbers, found "
                f"{stored.dtype}"
            )
        entry = None if base is None else base.tensors.get(name)
        if entry is not None and entry.shape != stored.shape:
            raise InputError(
                f"{place}: tensor {name}: shape: expected {list(entry.shape)}, as in "
                f"{entry.shard.path}, found {list(stored.shape)}"
            )
    return names


def _is_other(key: str) -> bool:
    first, _, rest = key.partition(".")
    second = rest.partition(".")[0] if first == "app" else first
    return second in OTHER_STATE or key.endswith("_extra_state")


def _add(place: Path, weights: dict[str, str], key: str) -> None:
    name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    if not name.isprintable():
        raise InputError(f"{place}: tensor {name}: expected a printable name")
    if name in weights:
        raise InputError(f"{place}: tensor {name}: twice, as {weights[name]} and as {key}")
    weights[name] = key


def _own(place: Path, weights: Iterable[str]) -> str:
    """The longest prefix behind which the names are those of a causal language model."""
    fitting = [prefix for prefix in PREFIXES if _is_model(weights, prefix)]
    if not fitting:
        raise InputError(
            f"{place}: expected names like model.{EMBEDDING}, found {_example(weights)}; give the "
            "base, whose names decide"
        )
    return max(fitting, key=len)


def _is_model(weights: Iterable[str], prefix: str) -> bool:
    bare = [name.removeprefix(prefix) for name in weights if name.startswith(prefix)]
    return (
        len(bare) == len([*weights])
        and any(name.endswith(EMBEDDING) for name in bare)
        and all(name.startswith(("model.", "lm_head.")) for name in bare)
    )


def _prefix(place: Path, weights: Iterable[str], base: Checkpoint) -> str:
    """The prefix behind which the names are the base's, but for a tied output head."""
    expected = _but_head(base.tensors)
    differences = {}
    for prefix in PREFIXES:
        bare = {name.removeprefix(prefix) for name in weights if name.startswith(prefix)}
        if len(bare) == len([*weights]):
            differences[prefix] = expected ^ _but_head(bare)
    prefix = min(differences, key=lambda prefix: len(differences[prefix]))
    if differences[prefix]:
        name = min(differences[prefix])
        found = "missing" if name in expected else f"extra, {base.folder} does not have it"
        raise InputError(f"{place}: tensor {name}: {found}")
    return prefix


def _but_head(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.endswith(HEAD)}


def _example(weights: Iterable[str]) -> str:
    return min(weights, default="no tensor")
