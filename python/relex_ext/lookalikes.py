"""What lies where a model's weights are expected and is something else: said by name, never opened.

By the names of a folder's files, by what its index and headers note, and by the names of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from relex_ext import strictjson
from relex_ext.dtypes import CARRIED
from relex_ext.errors import InputError
from relex_ext.headers import Header, TensorEntry

Table = Mapping[tuple[str, ...], str]
"""Patterns of file names → what a folder with one of them is, and what to do."""

_ADAPTER = "a PEFT (LoRA) adapter; merge it first (merge_and_unload) and save the whole model"
_DELTA = "what changed since another step, sent to update weights; apply it and save all weights"
_DCP = "a torch distributed checkpoint; gather it (dcp_to_torch_save) and save_pretrained"
_PARTS = "parts of tensors, one file for each rank; consolidate them (HuggingFaceStorageWriter)"
_QUANTISED = "quantised weights; save them as float32, float16 or bfloat16"

BESIDE: Table = {
    ("adapter_config.json", "adapter_model.*"): _ADAPTER,
    ("sparse_update_manifest.json", "sparse_update_patch.*"): _DELTA,  # prime-rl
    ("delta_sparse.*", "delta_metadata.json"): _DELTA,  # grail
}
"""Whatever else is there, the weights beside these are not the whole of the step."""

INSTEAD: Table = {
    ("*.incomplete", "*.tmp", "*.part", "*.partial", "*.crdownload", "*.aria2"): (
        "files still being written, or given up; wait for them or fetch them again"
    ),
    ("delta*.safetensors*", "*.patch.safetensors", "sparse_manifest.json", "*.wdelta"): _DELTA,
    ("shard-*.safetensors", "sharded"): _PARTS,  # torch's HuggingFaceStorageWriter
    ("*.distcp", ".metadata", "pytorch_model_fsdp_*"): _DCP,
    ("model_world_size_*_rank_*.pt",): (
        "the rank shards of verl's FSDP; merge them first (python -m verl.model_merger)"
    ),
    ("mp_rank_*", "*_model_states.pt", "zero_pp_rank_*", "zero_to_fp32.py"): (
        "the rank shards of Megatron or DeepSpeed; convert them first (Megatron Bridge, "
        "zero_to_fp32.py)"
    ),
    ("consolidated*",): "weights in their maker's own format; convert them with transformers",
    ("*.gguf",): "GGUF, usually quantised; take the model that it was made from",
    ("model-*-of-*.safetensors", "model-[0-9]*.safetensors"): (
        "shards without the index that is written last; finish the saving or the download"
    ),
}
"""Only where there are no weights, since most of these may well lie beside some."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

TRAINER_STATE = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state.*|data|trainer_state)\.\w+"
)
"""Pickles that lie beside the weights in a Trainer's checkpoint and are none."""

_DELTA_KEYS = ("delta_encoding", "base_version", "base_step")
_SPARSE_PARTS = ((".indices", ".values"), (".idx", ".val"))
_PACKED = ("weight", "_packed", "_blocks")


def check_beside(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder whose weights, if it has any, are not the whole of it."""
    _refuse(folder, "all weights of a model", BESIDE, names)


def check_instead(folder: Path, names: Sequence[str], expected: str) -> None:
    """Say what a folder without weights has in their place, if that is known."""
    _refuse(folder, expected, INSTEAD, names)
    for name in names:
        if _matches(name, PICKLES) and not TRAINER_STATE.fullmatch(name):
            raise InputError(
                f"{folder}: expected {expected}, found pickled weights ({name}); load them where "
                "you trust them and save_pretrained(..., safe_serialization=True)"
            )


def check_noted(place: Path, noted: Mapping[str, object]) -> None:
    """Refuse an index or header that notes beside its tensors that they are changes only."""
    key = next((key for key in _DELTA_KEYS if key in noted), None)
    if noted.get("sparse") in (True, "True", "true"):  # TRL; not so in its full checkpoints
        key = "sparse"
    if key is not None:
        raise InputError(f"{place}: expected weights, found by its {key} {_DELTA}")


def check_header(header: Header) -> None:
    """Refuse a file whose tensors are not a model's weights."""
    check_noted(header.shard.path, header.metadata)
    _check_offsets(header)
    by_name = {entry.name: entry for entry in header.entries}
    for name, entry in by_name.items():
        for place, value in _SPARSE_PARTS:
            values = by_name.get(name.removesuffix(place) + value) if name.endswith(place) else None
            if values is not None and len(entry.shape) == 1:
                raise _wrong(entry, _DELTA)
        if entry.dtype in CARRIED and name.endswith(_PACKED):  # as integers, carried over untrained
            raise _wrong(entry, _QUANTISED)


def _check_offsets(header: Header) -> None:
    """A rank's part of a tensor begins somewhere in it. torch notes where, and so for whole ones
    that a single rank has saved: those begin at 0, as the first rank's part does, whose file name
    tells them apart."""
    noted = header.metadata.get("DCP_SHARDING_INFO")
    if noted is None:
        return
    path = header.shard.path
    try:
        info = strictjson.load(noted.encode(), floats=False)
        begins = [begin for described in info.values() for begin in described["saved_offsets"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: DCP_SHARDING_INFO: expected offsets, found {error!r}") from error
    if any(begins) or path.name.startswith("shard-"):
        raise InputError(f"{path}: expected whole tensors, found {_PARTS}")


def _refuse(folder: Path, expected: str, table: Table, names: Sequence[str]) -> None:
    for patterns, found in table.items():
        for name in names:
            if _matches(name, patterns):
                raise InputError(f"{folder}: expected {expected}, found {name}: {found}")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _wrong(entry: TensorEntry, found: str) -> InputError:
    return InputError(f"{entry.shard.path}: tensor {entry.name}: expected weights, found {found}")
