"""One step's folder as transformers has it, made from pieces: written, noted, published.

OUT/step_12/model.safetensors   or shards of up to 5 GB with their index
OUT/step_12/config.json …       the step's own, and the base's where it lacks a name
OUT/step_12/gathered.json       from what, how, and the digest of each tensor
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.checkpoints import INDEX, SINGLE, Checkpoint, companions_in
from relex_ext.companions import COMPANIONS, config_with_dtype
from relex_ext.dtypes import CODES, ITEM_SIZE
from relex_ext.engine import Tick
from relex_ext.errors import OutputError
from relex_ext.gathering.stored import TORCH_DTYPES, Pieces
from relex_ext.journal import Journal
from relex_ext.layout import Layout, SizedFile, lay_out, put_durably, sync_folder
from relex_ext.output import WRITTEN
from relex_ext.pieces import Place
from relex_ext.plainfiles import target_of
from relex_ext.seals import sealed
from relex_ext.workspace import Workspace, workspace_of

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "gathered.json"
FORMAT = "relex-gathered/1"

SHARD = 5_000_000_000
"""Bytes of a shard, at most, unless one tensor has more."""

BATCH = 256 << 20
"""Bytes read at a time, at least a tensor's: so a file with many small ones is not opened for
each."""

_MADE = "made"


@dataclass(frozen=True)
class Whole:
    """A step to be written. ``names``: the model's → the trainer's; ``dtype``: of its floating
    tensors, None as they are."""

    pieces: Pieces
    names: Mapping[str, str]
    dtype: str | None
    companions: Mapping[str, bytes]
    job: Mapping[str, Any]

    def dtype_of(self, name: str) -> str:
        found = self.pieces.tensors[self.names[name]].dtype
        return self.dtype if self.dtype is not None and found in CODES else found

    def nbytes(self, name: str) -> int:
        """As it will be."""
        shape = self.pieces.tensors[self.names[name]].shape
        return math.prod(shape) * ITEM_SIZE[self.dtype_of(name)]

    @property
    def size(self) -> int:
        return sum(map(self.nbytes, self.names))


def companions_for(
    step: Path, place: Place, base: Checkpoint | None, dtype: str | None
) -> dict[str, bytes]:
    """What makes the folder loadable, the nearest to the weights first.

    ``dtype``: of all floating tensors, for the config to name.
    """
    folders = [place.folder, place.folder / "huggingface", place.folder.parent / "tokenizer", step]
    found = {} if base is None else companions_in(base.folder, COMPANIONS)
    for folder in reversed([folder for folder in folders if folder.is_dir()]):
        if folder != step:
            target_of(folder, step)
        found |= companions_in(folder, COMPANIONS)
    if "config.json" in found and dtype is not None:
        found["config.json"] = config_with_dtype(step / "config.json", found["config.json"], dtype)
    return dict(sorted(found.items()))


def is_there(out: Path, whole: Whole) -> bool:
    """Whether this very step was gathered there before.

    Raises:
        OutputError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        job = json.loads((out / RECORD).read_bytes())["job"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(f"{out}: exists already, and relex gather did not make it") from None
    if job != json.loads(json.dumps(whole.job)):
        raise OutputError(
            f"{out}: gathered from other files, or otherwise; remove it or choose another folder"
        )
    return True


def clear_away(out: Path, whole: Whole) -> None:
    """Remove what a call that was killed as it ended has left beside its finished folder."""
    if workspace_of(out).exists():
        with Workspace(out, whole.job, check=lambda: None):
            pass


def write(out: Path, whole: Whole, tick: Tick) -> None:
    """Make the folder. A run that was interrupted or killed goes on with the tensors it has.

    Raises:
        RelexError: a piece cannot be read, has changed, or the folder cannot be written.
    """

    def check() -> None:
        if is_there(out, whole):
            raise OutputError(f"{out}: another relex has just written it")

    with Workspace(out, whole.job, check) as work:
        folder = work.path / _MADE
        folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            files: dict[str, SizedFile] = {}
            for name, layout in _shards(whole).items():
                files[name] = SizedFile(folder / name, layout)
                stack.callback(files[name].abandon)
            by_tensor = {name: file for file in files.values() for name in file.layout.offsets}
            digests = _finished(whole, by_tensor, work.journal)
            tick(sum(map(whole.nbytes, digests)))
            for batch in _batches(whole, [name for name in whole.names if name not in digests]):
                digests |= _copied(whole, batch, by_tensor, work.journal)
                tick(sum(map(whole.nbytes, batch)))
            for file in files.values():
                file.close()
        for name, data in _beside(whole, files, digests).items():
            put_durably(folder / name, data)
        sync_folder(folder)
        whole.pieces.files.check_unchanged()
        work.publish(_MADE)


def _shards(whole: Whole) -> dict[str, Layout]:
    """File name → its layout, as save_pretrained would cut and name them."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in whole.names:
        if groups[-1] and size + whole.nbytes(name) > SHARD:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += whole.nbytes(name)
    layouts = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else SINGLE
        layouts[file] = lay_out(
            (
                (name, whole.dtype_of(name), whole.pieces.tensors[whole.names[name]].shape,
                 whole.nbytes(name))
                for name in group
            ),
            {"format": "pt"},
        )  # fmt: skip
    return layouts


def _finished(whole: Whole, files: Mapping[str, SizedFile], journal: Journal) -> dict[str, str]:
    """The tensors that an earlier run has written, whose bytes still are what it noted."""
    found = {}
    for name in whole.names:
        noted = journal.done.get((WRITTEN, name))
        file = files[name]
        if noted == [file.sha256(file.layout.offsets[name], whole.nbytes(name))]:
            (found[name],) = noted
    return found


def _batches(whole: Whole, names: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for name in names:
        nbytes = whole.pieces.tensors[whole.names[name]].nbytes
        if batch and size + nbytes > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += nbytes
    if batch:
        yield batch


def _copied(
    whole: Whole, names: Sequence[str], files: Mapping[str, SizedFile], journal: Journal
) -> dict[str, str]:
    """Name → digest of the tensors that are in the files then."""
    digests = {}
    values = dict(whole.pieces.read([whole.names[name] for name in names]))
    for name in names:
        words = _words(values.pop(whole.names[name]), whole.dtype_of(name))
        files[name].write(files[name].layout.offsets[name], words.data)
        digests[name] = hashlib.sha256(words.data).hexdigest()
        journal.add(WRITTEN, name, [digests[name]])
    return digests


def _words(tensor: Tensor, dtype: str) -> NDArray[np.uint8]:
    """A tensor's bytes in a file."""
    import torch

    wanted = next(path for path, name in TORCH_DTYPES.items() if name == dtype)
    whole = tensor.detach().to(getattr(torch, wanted.partition(".")[2])).contiguous()
    words: NDArray[np.uint8] = whole.reshape(-1).view(torch.uint8).numpy()
    return words


def _beside(
    whole: Whole, files: Mapping[str, SizedFile], digests: Mapping[str, str]
) -> dict[str, bytes]:
    """What lies beside the shards, the index last."""
    ordered = {name: digests[name] for name in whole.names}
    found = dict(whole.companions)
    found[RECORD] = sealed({"format": FORMAT, "job": whole.job, "sha256": {"tensors": ordered}})
    if len(files) > 1:
        weight_map = {t: file for file, made in files.items() for t in made.layout.offsets}
        index = {"metadata": {"total_size": whole.size}, "weight_map": weight_map}
        found[INDEX] = (json.dumps(index, indent=2) + "\n").encode()
    return found
