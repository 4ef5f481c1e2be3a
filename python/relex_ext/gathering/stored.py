"""A checkpoint in pieces as the rest sees it: tensors that can be had whole, a few at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.plainfiles import opened

if TYPE_CHECKING:
    from torch import Tensor

TORCH_DTYPES: Mapping[str, str] = {
    "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2", "torch.float64": "F64",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8",
    "torch.uint64": "U64", "torch.uint32": "U32", "torch.uint16": "U16", "torch.uint8": "U8",
    "torch.bool": "BOOL",
}  # fmt: skip
"""torch's name of a dtype → safetensors'."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that a checkpoint holds. ``dtype``: as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


class Pieces(Protocol):
    """One step's checkpoint."""

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """The trainer's key of each tensor → what it is."""

    @property
    def files(self) -> Files:
        """All that it is read from."""

    def read(self, keys: Sequence[str]) -> Mapping[str, Tensor]:
        """Those tensors, whole, in the processor's memory."""


class Files:
    """Files of one folder, as they were when they were first seen."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Raises:
        InputError: one is missing, no regular file, or not of this folder.
        """
        self._found: dict[Path, os.stat_result] = {}
        for name in names:
            path = folder / name
            if Path(name).name != name:
                raise InputError(f"{folder}: expected a plain file name, found {name}")
            with opened(path, folder) as (_, info):
                self._found[path] = info

    def sizes(self) -> dict[str, int]:
        return {path.name: info.st_size for path, info in self._found.items()}

    def identity(self) -> dict[str, list[int]]:
        """What tells them from others: sizes and times."""
        return {path.name: [info.st_size, info.st_mtime_ns] for path, info in self._found.items()}

    def check_unchanged(self) -> None:
        """Raises:
        InputError: one of them is not what it was.
        """
        for path, before in self._found.items():
            try:
                now = path.stat()
            except OSError as error:
                raise InputError(f"{path}: gone while it was read: {error.strerror}") from error
            if _stamp(now) != _stamp(before):
                raise InputError(f"{path}: changed while it was read")


def reason(error: Exception) -> str:
    """What torch says, without how to be less careful, which it says below."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _stamp(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
