"""The output folder: every target's checkpoint, built beside its final place, published at once.

OUT/step_<target>/   shards as the newest checkpoint has them, its config and tokenizer files
OUT/scan.safetensors the Gram matrices, for the next forecast
OUT/relex.json       what was made from what, and how well it fitted
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.checkpoints import INDEX, SINGLE, Checkpoint
from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError, OutputError
from relex_ext.layout import (
    Layout,
    SizedFile,
    lay_out,
    make_folder,
    remove_folders,
    sync_folder,
    write_durably,
)
from relex_ext.trajectory import Tensor, Trajectory

RECORD = "relex.json"
CARD = "README.md"
SCAN = "scan.safetensors"

COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer*", "*.tiktoken", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "chat_template*", "*preprocessor_config.json",
    "processor_config.json", "sentencepiece*", "spiece.model", "*.py",
)  # fmt: skip
"""The files beside the weights that make a folder loadable. Trainer state is none of them."""

_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


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
        if Path(name).name != name or name in ("", "..", RECORD, SCAN):
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
    """Use as a context manager: leaving it without :meth:`publish` removes every trace."""

    def __init__(
        self,
        out: Path,
        trajectory: Trajectory,
        names: Sequence[str],
        dtype: str | None,
        writers: int = 1,
    ) -> None:
        """``names``: of the targets' folders; ``writers``: threads that write, one for each device
        that computes."""
        self.out = out.absolute()
        self._trajectory = trajectory
        self._dtype = dtype
        _companion_data(trajectory, dtype)  # a config.json that cannot be adapted is found now
        self._created = make_folder(self.out.parent)
        self.partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=self.out.parent))
        self.partial.chmod(0o777 & ~_umask())
        self._writer = ThreadPoolExecutor(writers, thread_name_prefix="relex-write")
        self._folders = [self.partial / name for name in names]
        self._files: list[dict[str, SizedFile]] = []  # per target: tensor → its shard
        self._shards: list[dict[str, SizedFile]] = []  # per target: shard name → file
        try:
            for folder in self._folders:
                self._open_target(folder)
        except BaseException:
            self._remove()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def dtype_of(self, tensor: Tensor) -> str:
        """The dtype a trained tensor is written in: the newest checkpoint's unless overridden."""
        return self._dtype or tensor.rows[-1].dtype

    def write(
        self, tensor: Tensor, element: int, results: Callable[[], Sequence[NDArray[np.uint8]]]
    ) -> Future[None]:
        """Write one target's buffer each, from ``element`` of the tensor on, on another thread,
        which first waits for them: ``results`` gives them.

        Returns what is done when they are written; whoever publishes has waited for all of these.
        """
        at = element * ITEM_SIZE[self.dtype_of(tensor)]

        def work() -> None:
            for files, buffer in zip(self._files, results(), strict=True):
                file = files[tensor.name]
                file.write(file.layout.offsets[tensor.name] + at, buffer.data)

        return self._writer.submit(work)

    def publish(self, record: Mapping[str, Any], cards: Sequence[bytes]) -> None:
        """Copy what is not computed, make everything durable, and give it its name.

        ``cards``: each target's model card.
        """
        for files in self._files:
            self._carry_over(files)
        for shards, folder, text in zip(self._shards, self._folders, cards, strict=True):
            for file in shards.values():
                file.close()
            write_durably(folder / CARD, text)
            _copy_companions(self._trajectory, folder, self._dtype)
            self._write_index(shards, folder)  # last: a folder with it is complete
            sync_folder(folder)
        write_durably(
            self.partial / RECORD,
            (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        )
        sync_folder(self.partial)
        self._give_name()

    def _open_target(self, folder: Path) -> None:
        folder.mkdir()
        shards = {}
        by_tensor = {}
        for name, layout in self._layouts().items():
            shards[name] = SizedFile(folder / name, layout)
            for tensor in layout.offsets:
                by_tensor[tensor] = shards[name]
        self._shards.append(shards)
        self._files.append(by_tensor)

    def _layouts(self) -> dict[str, Layout]:
        layouts = {}
        for shard in self._trajectory.newest.shards:
            described = []
            for tensor in self._trajectory.tensors:
                entry = tensor.rows[-1]
                if entry.shard == shard:
                    dtype = self.dtype_of(tensor) if tensor.trained else entry.dtype
                    nbytes = tensor.columns * ITEM_SIZE[dtype]
                    described.append((tensor.name, dtype, tensor.shape, nbytes))
            layouts[shard.path.name] = lay_out(described, {"format": "pt"})
        return layouts

    def _carry_over(self, files: Mapping[str, SizedFile]) -> None:
        for tensor in self._trajectory.tensors:
            if not tensor.trained:
                with tensor.base.shard.path.open("rb") as source:
                    source.seek(tensor.base.offset)
                    data = source.read(tensor.base.nbytes)
                if len(data) != tensor.base.nbytes:
                    raise OutputError(
                        f"{tensor.base.shard.path}: truncated since its header was read"
                    )
                file = files[tensor.name]
                file.write(file.layout.offsets[tensor.name], data)

    def _write_index(self, shards: Mapping[str, SizedFile], folder: Path) -> None:
        if list(shards) == [SINGLE]:
            return
        weight_map = {t: name for name, file in shards.items() for t in file.layout.offsets}
        size = sum(f.layout.size - len(f.layout.header) for f in shards.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        write_durably(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())

    def _give_name(self) -> None:
        """One rename makes all targets visible; an overwritten output is moved aside first."""
        old = None
        if self.out.is_dir() and any(self.out.iterdir()):
            old = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.old-", dir=self.out.parent))
            self.out.rename(old)
        try:
            self.partial.rename(self.out)
        except OSError as error:
            if old is not None:
                old.rename(self.out)
            raise OutputError(f"{self.out}: cannot be published: {error.strerror}") from error
        sync_folder(self.out.parent)
        self._created = []
        if old is not None:
            shutil.rmtree(old)

    def _remove(self) -> None:
        self._writer.shutdown(wait=True, cancel_futures=True)
        for shards in self._shards:
            for file in shards.values():
                file.abandon()
        shutil.rmtree(self.partial, ignore_errors=True)
        remove_folders(self._created)  # parents that only this run made


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _copy_companions(trajectory: Trajectory, folder: Path, dtype: str | None) -> None:
    for name, data in _companion_data(trajectory, dtype).items():
        write_durably(folder / name, data)


def _companion_data(trajectory: Trajectory, dtype: str | None) -> dict[str, bytes]:
    found = {}
    for name, source in sorted(_companions(trajectory.newest, trajectory.base).items()):
        found[name] = source.read_bytes()
        if name == "config.json" and dtype is not None:
            found[name] = _with_dtype(source, dtype)
    return found


def _companions(newest: Checkpoint, base: Checkpoint) -> dict[str, Path]:
    """File name → source: the newest checkpoint's, and the base's where it lacks a name."""
    found: dict[str, Path] = {}
    for checkpoint in (base, newest):
        for pattern in COMPANIONS:
            found.update({p.name: p for p in checkpoint.folder.glob(pattern) if p.is_file()})
    return found


def _with_dtype(config: Path, dtype: str) -> bytes:
    """config.json naming the dtype that was asked for, under the key it uses."""
    try:
        described = json.loads(config.read_bytes())
    except ValueError as error:
        raise InputError(f"{config}: expected JSON, found {error}") from error
    for key in ("dtype", "torch_dtype"):
        if key in described:
            described[key] = _TORCH_NAMES[dtype]
    return (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode()
