"""Tensors of a torch distributed checkpoint, read by torch's own reader and planner.

They get metadata that was made anew from what was checked: tensors only, since what is not one
torch unpickles without limits, and files of this folder only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load

from relex_ext.errors import InputError
from relex_ext.gathering.allowing import only
from relex_ext.gathering.metadata import METADATA, Chunked, files_of, read_metadata
from relex_ext.gathering.stored import TORCH_DTYPES, Files, reason

_DTYPES = {name: getattr(torch, path.partition(".")[2]) for path, name in TORCH_DTYPES.items()}


class Distributed:
    """A :class:`~relex_ext.gathering.stored.Pieces`."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        InputError: what it says does not hold together, or not with its files.
        """
        self._folder = folder
        self.tensors = read_metadata(folder)
        spans = files_of(self.tensors)
        self.files = Files(folder, [METADATA, *spans])
        sizes = self.files.sizes()
        for name, (end, total) in spans.items():
            if max(end, total) > sizes[name]:
                raise InputError(
                    f"{folder / name}: expected {max(end, total)} bytes, found {sizes[name]}"
                )

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        wanted = {key: self.tensors[key] for key in keys}
        state: dict[str, Any] = {
            key: torch.empty(tensor.shape, dtype=_DTYPES[tensor.dtype])
            for key, tensor in wanted.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process only
            try:
                with only({}):
                    load(state, storage_reader=_Reader(self._folder, wanted), no_dist=True)
            except CheckpointException as failed:
                raise self._wrong(next(iter(failed.failures.values()))[0]) from failed
            except Exception as error:  # of a file that is no torch file, any
                raise self._wrong(error) from error
        return state

    def _wrong(self, error: BaseException) -> BaseException:
        if not isinstance(error, Exception):
            return error  # Ctrl-C, which torch takes for a failure of the reading
        return InputError(f"{self._folder}: cannot be read: {reason(error)}")


class _Reader(FileSystemReader):
    """It loads the tensors with ``torch.load(weights_only=True)``."""

    def __init__(self, folder: Path, tensors: dict[str, Chunked]) -> None:
        super().__init__(folder)
        self._metadata = _made_anew(tensors)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


def _made_anew(tensors: dict[str, Chunked]) -> Metadata:
    described: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for key, tensor in tensors.items():
        boxes = []
        for chunk in tensor.chunks:
            offsets = torch.Size(chunk.offsets)
            boxes.append(ChunkStorageMetadata(offsets, torch.Size(chunk.sizes)))
            places[MetadataIndex(key, offsets)] = _StorageInfo(
                chunk.file, chunk.begin, chunk.length
            )
        properties = TensorProperties(dtype=_DTYPES[tensor.dtype])
        described[key] = TensorStorageMetadata(properties, torch.Size(tensor.shape), boxes)
    return Metadata(described, storage_data=places)
