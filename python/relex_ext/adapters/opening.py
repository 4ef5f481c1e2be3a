"""From an adapter's folder to its factors, A and B of each module. No byte of them is read."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from relex_ext.adapters.settings import CONFIG, Settings, read_settings
from relex_ext.checkpoints import INDEX, SINGLE, Checkpoint
from relex_ext.dtypes import CODES
from relex_ext.errors import InputError
from relex_ext.headers import Header, TensorEntry, header_of
from relex_ext.plainfiles import target_of
from relex_ext.steps import check_name

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

PLACES = ("", "actor/lora_adapter", "lora_adapter")
"""Where a step's folder may keep its adapter: PEFT, verl."""

PREFIX = "base_model.model."

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(\.weight)?")
_BASE_COPY = ".base_layer.weight"

_FULL = "a whole tensor that was trained or saved beside the adapter; merge it (merge_and_unload)"
OTHERS = {
    "lora_magnitude_vector": "DoRA's, whose update is not s·BA",
    "lora_B.bias": "a bias of B, which is no update of the weights",
    "trainable_tokens": "rows of the embedding trained by themselves; merge it (merge_and_unload)",
}
"""Part of a tensor's name that is no factor → what it is."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One module's factors at one step: A (r, in), B (out, r) and s."""

    a: TensorEntry
    b: TensorEntry
    scale: float
    embedding: bool
    transposed: bool
    """The weight is stored as (in, out): it moves by s·(BA)ᵀ."""

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that s·BA moves, as it is stored."""
        out, into = self.b.shape[0], self.a.shape[1]
        return (into, out) if self.transposed else (out, into)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder whose header and config have been read. ``pairs``: tensor of the base →
    its factors."""

    folder: Path
    settings: Settings
    checkpoint: Checkpoint
    pairs: Mapping[str, Pair]


def adapter_folder(folder: Path) -> Path | None:
    """The folder itself or its known subfolder that holds an adapter and no model, or None."""
    for sub in PLACES:
        place = folder / sub
        if os.path.lexists(place / CONFIG):
            both = any(os.path.lexists(place / name) for name in (SINGLE, INDEX))
            return None if both else place
    return None


def open_adapter(folder: Path) -> Adapter:
    """Read and check an adapter's config and header.

    Raises:
        InputError: it holds something else than updates s·BA of modules.
    """
    check_name(folder)
    place = adapter_folder(folder)
    if place is None:
        raise InputError(f"{folder}: expected a PEFT adapter, found no {CONFIG}")
    if place != folder:
        target_of(place, folder)
    settings = read_settings(place)
    check_weights(place)
    header = header_of(place / WEIGHTS, place)
    tensors = {entry.name: entry for entry in header.entries}
    checkpoint = Checkpoint(place, (header.shard, settings.shard), tensors, None)
    return Adapter(place, settings, checkpoint, _pairs(header, settings))


def check_weights(place: Path) -> None:
    """Refuse an adapter's folder without safetensors."""
    if not os.path.lexists(place / WEIGHTS):
        hint = ""
        if os.path.lexists(place / PICKLE):
            hint = f"; load {PICKLE} where you trust it and save_pretrained again"
        raise InputError(f"{place}: expected {WEIGHTS}, found none{hint}")


def _pairs(header: Header, settings: Settings) -> dict[str, Pair]:
    found: dict[tuple[str, bool], dict[str, TensorEntry]] = {}
    for entry in header.entries:
        match = _FACTOR.fullmatch(entry.name)
        if match is None:
            _refuse(entry, {e.name for e in header.entries})
            continue
        _check_factor(entry)
        key = match["module"], match["embedding"] is not None
        if match["which"] in found.setdefault(key, {}):
            raise _wrong(entry, "each factor once", "it twice")
        found[key][match["which"]] = entry
    if not found:
        raise InputError(f"{header.shard.path}: expected factors lora_A and lora_B, found none")
    pairs: dict[str, Pair] = {}
    for (module, embedding), factors in found.items():
        if factors.keys() != {"A", "B"}:
            raise _wrong(next(iter(factors.values())), "A and B of a module", "one of them only")
        a, b = factors["A"], factors["B"]
        if a.shape[0] != b.shape[1] or a.shape[0] == 0:
            raise _wrong(b, f"the rank of A, {list(a.shape)}", list(b.shape))
        name = module.removeprefix(PREFIX)
        if f"{name}.weight" in pairs:
            raise _wrong(a, "one adapter of a module", "two")
        scale = settings.scale(name, a.shape[0])
        # An embedding is a table (in, out), whatever the linear modules are.
        pairs[f"{name}.weight"] = Pair(a, b, scale, embedding, embedding or settings.transposed)
    return pairs


def _check_factor(entry: TensorEntry) -> None:
    if entry.dtype not in CODES:
        raise _wrong(entry, "F32, F16 or BF16", entry.dtype)
    if len(entry.shape) != 2:
        raise _wrong(entry, "a matrix, as linear modules and embeddings have it", list(entry.shape))


def _refuse(entry: TensorEntry, names: set[str]) -> None:
    """What is no factor changes the model in other ways, but for PEFT's copies of the embedding and
    the head under their factors: those are the base's."""
    module = entry.name.removesuffix(_BASE_COPY)
    under = {f"{module}.lora_embedding_A", f"{module}.lora_A.weight"}
    if entry.name.endswith(_BASE_COPY) and under & names:
        return
    raise _wrong(
        entry, "a factor lora_A or lora_B",
        next((what for part, what in OTHERS.items() if part in entry.name), _FULL),
    )  # fmt: skip


def _wrong(entry: TensorEntry, expected: str, found: object) -> InputError:
    return InputError(
        f"{entry.shard.path}: tensor {entry.name}: expected {expected}, found {found}"
    )
