"""From folders to tensor entries: step discovery, shard indexes, safetensors headers.

Nothing here reads a byte of tensor data. Header validity is judged by the safetensors library; the
offsets, which it does not expose, are then read from the header it has accepted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open

from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError

PathLike: TypeAlias = "str | os.PathLike[str]"
Checkpoints: TypeAlias = (
    "PathLike | Mapping[int, PathLike] | Sequence[tuple[int, PathLike]] | Sequence[PathLike]"
)

LOG = logging.getLogger("relex_ext")

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

STEP_FOLDERS: Mapping[str, re.Pattern[str]] = {
    "global_step_12": re.compile(r"global_step_?(\d+)"),  # verl
    "checkpoint-12": re.compile(r"checkpoint-(\d+)"),  # Hugging Face Trainer, TRL
    "step_12": re.compile(r"step[_-]?(\d+)"),  # NeMo-RL, torchtune and hand-made folders
    "iter_0000012": re.compile(r"iter_(\d+)"),  # Megatron exports
}
"""An example of each name a step's folder may have → its pattern."""

WEIGHT_FOLDERS = ("", "actor/huggingface", "huggingface")
"""Where a step's folder may keep its weights, the first that has them counts."""

TRAINER_STATE = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state.*)\.\w+")
"""Pickles that lie beside the weights in a Trainer's checkpoint and are none."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file as it was when its header was read."""

    path: Path
    size: int
    mtime_ns: int
    header_sha256: str


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: ``nbytes`` bytes from ``offset`` of the file ``shard``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: Shard
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder whose headers have been read: tensors in the order of shards and offsets."""

    folder: Path
    shards: tuple[Shard, ...]
    tensors: Mapping[str, TensorEntry]
    tied: bool | None
    """``tie_word_embeddings`` of its config.json; None where nothing is said."""


def discover(run: PathLike) -> dict[int, Path]:
    """The step folders of a run folder, sorted by step: ``{12: run/checkpoint-12, …}``.

    Raises:
        InputError: the folder does not exist, holds no step folder, or one step twice.
    """
    root = Path(run)
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of checkpoints, found no folder")
    found: dict[int, Path] = {}
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        step = step_of(folder.name)
        if step is not None:
            _add_step(found, step, folder)
    if not found:
        names = ", ".join(STEP_FOLDERS)
        raise InputError(f"{root}: expected step folders named like {names}; found none")
    return dict(sorted(found.items()))


def step_of(name: str) -> int | None:
    """The step that a folder's name states, or None."""
    for pattern in STEP_FOLDERS.values():
        match = pattern.fullmatch(name)
        if match:
            return int(match[1])
    return None


def resolve(checkpoints: Checkpoints) -> dict[int, Path]:
    """A run folder, a mapping, pairs, step-named folders or the run folders of several phases →
    ``{step: folder}`` sorted by step.

    Raises:
        InputError: one step twice, no step at all, or a mixture of these.
    """
    if isinstance(checkpoints, (str, os.PathLike)):
        return discover(checkpoints)
    given: list[Any] = [*(checkpoints.items() if isinstance(checkpoints, Mapping) else checkpoints)]
    folders = [Path(one) for one in given if isinstance(one, (str, os.PathLike))]
    steps = [step_of(folder.name) for folder in folders]
    runs = [folder for folder, step in zip(folders, steps, strict=True) if step is None]
    if len(folders) not in (0, len(given)) or len(runs) not in (0, len(folders)):
        raise InputError(
            "checkpoints: expected step=folder pairs, folders named after their steps, or run "
            f"folders, found a mixture: {runs[0] if runs else folders[0]} is another kind"
        )
    if runs:
        return _join_phases(runs)
    pairs: Iterable[Any] = zip(steps, folders, strict=True) if folders else given
    found: dict[int, Path] = {}
    for step, folder in pairs:
        _add_step(found, int(step), Path(folder))
    return dict(sorted(found.items()))


def _join_phases(runs: Sequence[Path]) -> dict[int, Path]:
    """The phases of one training, in their order. A phase that does not begin beyond the steps
    before it has counted from the start again: its steps are added to the last of those."""
    found = discover(runs[0])
    for run in runs[1:]:
        last = max(found)
        phase = discover(run)
        again = min(phase) <= last
        count = last if again else 0
        LOG.info(
            "%s: steps %s to %s count as %s to %s: it %s", run, min(phase), max(phase),
            min(phase) + count, max(phase) + count,
            f"began again after step {last}" if again else f"goes on after step {last}",
        )  # fmt: skip
        for step, folder in phase.items():
            _add_step(found, step + count, folder)
    return found


def select(
    found: Mapping[int, Path],
    until: int | None = None,
    steps: Sequence[int] | None = None,
    least: int = 2,
) -> dict[int, Path]:
    """The checkpoints to use: those of ``steps`` (all must exist), up to ``until`` inclusive.

    Raises:
        InputError: a step asked for is not there, or fewer than ``least`` are left.
    """
    chosen = dict(found)
    if steps is not None:
        wanted = sorted({int(step) for step in steps})
        if len(wanted) != len(steps):
            raise InputError(f"steps: expected each step once, found {few_of(sorted(steps))}")
        missing = [step for step in wanted if step not in found]
        if missing:
            raise InputError(
                f"steps: no checkpoint of step {few_of(missing)}; found {few_of(found)}"
            )
        chosen = {step: found[step] for step in wanted}
    if until is not None:
        chosen = {step: folder for step, folder in chosen.items() if step <= until}
    if len(chosen) < least:
        detail = f" of {few_of(found)}" if found else ""
        raise InputError(f"checkpoints: expected at least {least}, found {len(chosen)}{detail}")
    return chosen


def open_checkpoint(folder: PathLike) -> Checkpoint:
    """Read and check the headers of a model folder.

    Raises:
        InputError: no weights, an unreadable or inconsistent index, or a header that safetensors
            rejects.
    """
    root = weights_folder(Path(folder))
    index = root / INDEX
    if index.is_file():
        weight_map = _read_index(index)
        names = sorted(set(weight_map.values()))
    else:
        weight_map = None
        names = [SINGLE]
    shards: list[Shard] = []
    tensors: dict[str, TensorEntry] = {}
    for name in names:
        shard, entries = read_header(root / name)
        shards.append(shard)
        for entry in entries:
            if weight_map is not None and weight_map.get(entry.name) != name:
                place = weight_map.get(entry.name, "no shard")
                raise InputError(
                    f"{index}: tensor {entry.name}: expected {name}, which holds it, found {place}"
                )
            tensors[entry.name] = entry
    for tensor, name in (weight_map or {}).items():
        if tensor not in tensors:
            raise InputError(f"{root / name}: tensor {tensor}: named by {INDEX}, not in the file")
    return Checkpoint(root, tuple(shards), tensors, _tied(root))


def weights_folder(folder: Path) -> Path:
    """The folder itself or its known subfolder that holds safetensors weights."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a model folder, found no folder")
    for sub in WEIGHT_FOLDERS:
        place = folder / sub if sub else folder
        if (place / INDEX).is_file() or (place / SINGLE).is_file():
            return place
    if (folder / "adapter_model.safetensors").exists():
        raise InputError(f"{folder}: expected full weights, found a LoRA adapter; merge it first")
    pickles = (p for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if any(not TRAINER_STATE.fullmatch(path.name) for path in pickles):
        raise InputError(
            f"{folder}: expected {SINGLE}, found pickled weights; load them and "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"{folder}: expected {SINGLE} or {INDEX}, found neither")


def read_header(path: Path) -> tuple[Shard, list[TensorEntry]]:
    """One safetensors file's identity and its tensors in the order of their offsets."""
    try:
        with safe_open(str(path), framework="numpy"):
            pass  # opening validates the whole header
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(length)
            info = os.fstat(file.fileno())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from error
    digest = hashlib.sha256(header).hexdigest()
    shard = Shard(path, info.st_size, info.st_mtime_ns, digest)
    described = json.loads(header)
    entries = []
    for name, value in described.items():
        if name == "__metadata__":
            continue
        start, end = value["data_offsets"]
        entry = TensorEntry(
            name, value["dtype"], tuple(value["shape"]), shard, 8 + length + start, end - start
        )
        if entry.dtype not in ITEM_SIZE:
            raise InputError(f"{path}: tensor {name}: dtype {entry.dtype} is not supported")
        entries.append(entry)
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes, entry.name))
    return shard, entries


def _add_step(found: dict[int, Path], step: int, folder: Path) -> None:
    if step in found:
        raise InputError(f"checkpoints: step {step} twice: {found[step]} and {folder}")
    found[step] = folder


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected JSON with a weight_map, found {error!r}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: weight_map: expected tensor → shard names, found none")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise InputError(f"{path}: tensor {tensor}: expected a plain file name, found {name!r}")
    return weight_map


def _tied(folder: Path) -> bool | None:
    try:
        value = json.loads((folder / "config.json").read_bytes()).get("tie_word_embeddings")
    except (OSError, ValueError, AttributeError):
        return None  # a folder without a usable config says nothing about tying
    return value if isinstance(value, bool) else None


def few_of(steps: Iterable[int]) -> str:
    """Steps for a message, in one line: the first and last ones where there are many."""
    numbers = [str(step) for step in steps]
    return ", ".join(numbers if len(numbers) <= 8 else [*numbers[:4], "…", *numbers[-3:]])
