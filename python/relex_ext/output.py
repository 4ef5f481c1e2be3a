"""The output folder: every target's checkpoint, made in a workspace, published at once.

OUT/step_<target>/      shards as the newest checkpoint has them, its config and tokenizer files
OUT/scan.safetensors    the Gram matrices, for the next forecast
OUT/weights.safetensors the weights that were applied
OUT/relex.json          what was made from what, how well it fitted, and everything's digests
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.companions import companions_of
from relex_ext.dtypes import ITEM_SIZE, converted
from relex_ext.errors import InputError, OutputError
from relex_ext.files import contents
from relex_ext.headers import TensorEntry
from relex_ext.journal import Journal
from relex_ext.layout import SizedFile, file_sha256, put_durably, sync_folder
from relex_ext.seals import sealed
from relex_ext.shards import index_of, layouts_of, written_dtype
from relex_ext.trajectory import Tensor, Trajectory

RECORD = "relex.json"
CARD = "README.md"
SCAN = "scan.safetensors"
WEIGHTS = "weights.safetensors"

WRITTEN = "written"
"""The journal's word for a tensor that all targets have."""


def target_name(target: float) -> str:
    """``500.0`` → ``step_500``, ``62.5`` → ``step_62.5``."""
    return f"step_{int(target)}" if target == int(target) else f"step_{target!r}"


def check_names(targets: Sequence[float], names: Sequence[str] | None) -> Sequence[str] | None:
    """Names for the targets' folders: one each, all different, none that leads elsewhere."""
    if names is None:
        return None
    if len(names) != len(targets) or len(set(names)) != len(names):
        raise InputError(f"names: expected {len(targets)} different ones, found {list(names)}")
    for name in names:
        if Path(name).name != name or name in ("", "..", RECORD, SCAN, WEIGHTS):
            raise InputError(f"names: expected a plain folder name, found {name!r}")
    return names


def check_output(out: Path, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Refuse an output that exists, or that would swallow its own inputs.

    Raises:
        OutputError: ``out`` is a file, or a folder that is neither empty nor, with ``overwrite``,
            one that relex wrote.
    """
    real = Path(os.path.realpath(out))
    for folder in inputs:
        source = Path(os.path.realpath(folder))
        if source == real or real in source.parents:
            raise OutputError(
                f"{out}: expected a folder apart from the inputs, found {folder} in it"
            )
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise OutputError(f"{out}: expected a folder to make, found a file")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{out}: exists already; choose another folder or pass overwrite")
    if not (out / RECORD).is_file():
        raise OutputError(
            f"{out}: overwrite replaces only what relex wrote; found no {RECORD} in it"
        )


def check_space(out: Path, needed: int, free: int) -> None:
    if needed > free:
        raise OutputError(f"{out}: expected {needed} bytes of free space, found {free}")


class Output:
    """The folder while it is made: a new one, or one that an earlier run has begun.

    A context manager: it closes its files.
    """

    def __init__(
        self,
        folder: Path,
        trajectory: Trajectory,
        names: Sequence[str],
        dtype: str | None,
        journal: Journal,
        made: bool = False,
    ) -> None:
        """``folder``: where it is made; ``names``: of the targets' folders; ``journal``: where a
        tensor is entered when all targets have it; ``made``: another process has made the files
        and writes some of the tensors."""
        self.folder = folder
        self._trajectory = trajectory
        self._dtype = dtype
        self._names = names
        self._journal = journal
        self._made = made
        self._companions = companions_of(trajectory, dtype)  # one that is no good is found now
        self._layouts = layouts_of(trajectory, dtype)
        self._hashes: dict[str, list[Any]] = {}
        self._digests: dict[str, list[str]] = {}
        """Of each tensor that is done, one for each target."""
        self._files: list[dict[str, SizedFile]] = []
        """Per target: tensor → its shard."""
        self._shards: list[dict[str, SizedFile]] = []
        """Per target: shard name → file."""
        folder.mkdir(exist_ok=True)
        try:
            for name in names:
                self._open_target(folder / name)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def dtype_of(self, tensor: Tensor) -> str:
        """The dtype that a tensor is written in."""
        return written_dtype(tensor, self._dtype)

    def finished(self, tensors: Iterable[Tensor]) -> set[str]:
        """Those that an earlier run has written: whose bytes still are what it noted."""
        for tensor in tensors:
            noted = self._journal.done.get((WRITTEN, tensor.name))
            if noted is not None and self._digests_of(tensor) == noted:
                self._digests[tensor.name] = noted
                self._journal.confirm(WRITTEN, tensor.name)
        return set(self._digests)

    def _digests_of(self, tensor: Tensor) -> list[str]:
        """What has been written of it for each target, read again."""
        size = tensor.columns * ITEM_SIZE[self.dtype_of(tensor)]
        files = [by_tensor[tensor.name] for by_tensor in self._files]
        return [file.sha256(file.layout.offsets[tensor.name], size) for file in files]

    def write(
        self,
        tensor: Tensor,
        begin: int,
        end: int,
        buffers: Sequence[NDArray[np.uint8]],
        whole: bool = True,
    ) -> None:
        """Write columns [begin, end) of a tensor, one buffer for each target. From any thread.

        Columns come in order; with the last ones the tensor is done. Unless this process does not
        write the ``whole`` tensor: then :meth:`note` is for whoever answers for it.
        """
        at = begin * ITEM_SIZE[self.dtype_of(tensor)]
        for files, buffer in zip(self._files, buffers, strict=True):
            file = files[tensor.name]
            file.write(file.layout.offsets[tensor.name] + at, buffer.data)
        if not whole:
            return
        if begin == 0:
            self._hashes[tensor.name] = [hashlib.sha256() for _ in self._files]
        hashes = self._hashes[tensor.name]
        for digest, buffer in zip(hashes, buffers, strict=True):
            digest.update(buffer.data)
        if end == tensor.columns:
            del self._hashes[tensor.name]
            self._enter(tensor, [digest.hexdigest() for digest in hashes])

    def note(self, tensor: Tensor) -> None:
        """Enter a tensor that several processes have written, and made durable."""
        if tensor.name not in self._digests:
            self._enter(tensor, self._digests_of(tensor))

    def _enter(self, tensor: Tensor, digests: list[str]) -> None:
        self._digests[tensor.name] = digests
        self._journal.add(WRITTEN, tensor.name, digests)

    def flush(self) -> None:
        """Make durable what this process has written."""
        for shards in self._shards:
            for file in shards.values():
                file.flush()

    def _take_over(self) -> None:
        """Know the digests of what other processes have written and noted."""
        for tensor in self._trajectory.trained:
            noted = self._journal.done.get((WRITTEN, tensor.name))
            if noted is not None:
                self._digests.setdefault(tensor.name, noted)

    def carry(self, tensor: Tensor) -> None:
        """Copy a trained tensor from the newest checkpoint."""
        dtype = self.dtype_of(tensor)
        self._copy(
            tensor, tensor.rows[-1], partial(converted, found=tensor.rows[-1].dtype, to=dtype)
        )
        self._journal.add(WRITTEN, tensor.name, self._digests[tensor.name])

    def complete(
        self, record: Mapping[str, Any], cards: Sequence[bytes], weights: bytes
    ) -> dict[str, Any]:
        """Add what is not computed, and make everything durable.

        ``record``: the contents of relex.json, without the digests; ``cards``: each target's model
        card; ``weights``: weights.safetensors. Returns the record with the digests.
        """
        self._take_over()
        for tensor in self._trajectory.tensors:
            if not tensor.trained:
                self._copy(tensor, tensor.base)
            elif tensor.columns == 0:
                self._digests[tensor.name] = [hashlib.sha256().hexdigest()] * len(self._files)
        others = {}
        beside = {**self._companions, **index_of(self._layouts)}  # the index last
        for shards, name, text in zip(self._shards, self._names, cards, strict=True):
            folder = self.folder / name
            for file in shards.values():
                file.close()
            put_durably(folder / CARD, text)
            for path, data in beside.items():
                put_durably(folder / path, data)
                others[f"{name}/{path}"] = hashlib.sha256(data).hexdigest()
            for path, file in shards.items():
                others[f"{name}/{path}"] = hashlib.sha256(file.layout.header).hexdigest()
            sync_folder(folder)
        put_durably(self.folder / WEIGHTS, weights)
        others[WEIGHTS] = hashlib.sha256(weights).hexdigest()
        if (self.folder / SCAN).exists():
            others[SCAN] = file_sha256(self.folder / SCAN)
        tensors = {
            name: {
                tensor.name: self._digests[tensor.name][i] for tensor in self._trajectory.tensors
            }
            for i, name in enumerate(self._names)
        }
        whole = {**record, "sha256": {"tensors": tensors, "files": others}}
        put_durably(self.folder / RECORD, sealed(whole))
        sync_folder(self.folder)
        return whole

    def _open_target(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        shards: dict[str, SizedFile] = {}
        self._shards.append(shards)
        by_tensor = {}
        for name, layout in self._layouts.items():
            shards[name] = SizedFile(folder / name, layout, self._made)
            for tensor in layout.offsets:
                by_tensor[tensor] = shards[name]
        self._files.append(by_tensor)

    def _copy(
        self, tensor: Tensor, entry: TensorEntry, convert: Callable[[bytes], bytes] = bytes
    ) -> None:
        """Write a tensor as one of the inputs has it."""
        digest = hashlib.sha256()
        done = 0
        for data in map(convert, contents(entry)):
            for file in (files[tensor.name] for files in self._files):
                file.write(file.layout.offsets[tensor.name] + done, data)
            digest.update(data)
            done += len(data)
        self._digests[tensor.name] = [digest.hexdigest()] * len(self._files)

    def _close(self) -> None:
        with ExitStack() as stack:  # all of them, whichever fails
            for shards in self._shards:
                for file in shards.values():
                    stack.callback(file.abandon)
