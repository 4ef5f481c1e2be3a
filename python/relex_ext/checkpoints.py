"""From folders to tensor entries: a model's folder, its index, its shards, its companions.

Nothing here reads a byte of tensor data, and nothing that a folder holds is believed unchecked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from relex_ext import strictjson
from relex_ext.errors import InputError
from relex_ext.headers import Shard, TensorEntry, header_of
from relex_ext.lookalikes import check_beside, check_header, check_instead, check_noted
from relex_ext.plainfiles import read_small, target_of
from relex_ext.steps import PathLike, check_name
from relex_ext.trainers import OTHER_FOLDERS, WEIGHT_FOLDERS

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

CONFIG_MOST = 16 << 20
COMPANIONS_MOST = 256 << 20
"""Bytes of a folder's companions together: tokenizers of tens of megabytes are the largest."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder whose headers have been read: tensors in the order of shards and offsets."""

    folder: Path
    shards: tuple[Shard, ...]
    tensors: Mapping[str, TensorEntry]
    tied: bool | None
    """``tie_word_embeddings`` of its config.json; None where nothing is said."""


def open_checkpoint(folder: PathLike) -> Checkpoint:
    """Read and check the headers of a model folder.

    Raises:
        InputError: no weights or something like them only, an unreadable or inconsistent index, a
            link out of the folder, or a header that is not sound.
    """
    root = weights_folder(Path(folder))
    index = root / INDEX
    weight_map = _read_index(index) if os.path.lexists(index) else None
    names = [SINGLE] if weight_map is None else sorted(set(weight_map.values()))
    shards: list[Shard] = []
    tensors: dict[str, TensorEntry] = {}
    for name in names:
        header = header_of(root / name, root)
        check_header(header)
        shards.append(header.shard)
        for entry in header.entries:
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
    check_name(folder)
    check_beside(folder, _names(folder))
    for sub in WEIGHT_FOLDERS:
        place = folder / sub
        if os.path.lexists(place / INDEX) or os.path.lexists(place / SINGLE):
            if sub:
                target_of(place, folder)
            check_beside(place, _names(place))
            return place
    expected = f"{SINGLE} or {INDEX}"
    found: list[str] = []
    for sub in (*WEIGHT_FOLDERS, *OTHER_FOLDERS):
        check_beside(folder / sub, names := _names(folder / sub))
        found += names
    check_instead(folder, found, expected)
    raise InputError(f"{folder}: expected {expected}, found neither")


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def companions_in(folder: Path, patterns: Iterable[str]) -> dict[str, bytes]:
    """The contents of a folder's own files under names like ``patterns``, sorted by name.

    They are copied into outputs that may be published, so a link out of the folder is refused as
    one of a shard is.

    Raises:
        InputError: such a link, what is neither file nor folder, or too many bytes.
    """
    wanted = tuple(patterns)
    found: dict[str, bytes] = {}
    left = COMPANIONS_MOST
    for path in sorted(folder.iterdir()):
        if any(fnmatchcase(path.name, pattern) for pattern in wanted) and not path.is_dir():
            found[path.name] = read_small(path, left, folder)
            left -= len(found[path.name])
    return found


def parse_index(data: bytes) -> tuple[dict[str, str], dict[str, object]]:
    """An index's weight map, tensor → shard in the same folder, and what it notes beside that.

    Raises:
        ValueError: it is not one, or a shard's name is not plain.
    """
    described = strictjson.load(data, floats=True)
    weight_map = described.get("weight_map") if isinstance(described, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("weight_map: expected tensor → shard names, found none")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain(name):
            found = repr(name) if isinstance(name, str) else "no text"
            raise ValueError(f"tensor {tensor}: expected a plain file name, found {found}")
    noted = described.get("metadata")
    return weight_map, noted if isinstance(noted, dict) else {}


def _read_index(path: Path) -> dict[str, str]:
    data = read_small(path, strictjson.LONGEST, path.parent)
    try:
        weight_map, noted = parse_index(data)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    check_noted(path, noted)
    return weight_map


def _is_plain(name: str) -> bool:
    """Whether a name leads nowhere but into its folder."""
    return name not in ("", ".", "..") and "/" not in name and name.isprintable()


def _tied(folder: Path) -> bool | None:
    path = folder / CONFIG
    if not os.path.lexists(path):
        return None
    data = read_small(path, CONFIG_MOST, folder)
    try:
        value = json.loads(data).get("tie_word_embeddings")
    except (ValueError, AttributeError, RecursionError):
        return None  # a folder without a usable config says nothing about tying
    return value if isinstance(value, bool) else None
