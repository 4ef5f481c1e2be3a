"""A base and its checkpoints, aligned tensor by tensor.

The newest checkpoint decides which tensors there are; every other folder must have the same ones
with the same shapes. The one exception is an output head tied to the embedding, which a folder may
write or leave out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from relex_ext.checkpoints import Checkpoint
from relex_ext.dtypes import CARRIED, CODES
from relex_ext.errors import InputError
from relex_ext.headers import Shard, TensorEntry, check_unchanged

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the output: T rows over a base, ``columns`` elements each."""

    name: str
    shape: tuple[int, ...]
    columns: int
    base: TensorEntry
    rows: tuple[TensorEntry, ...]
    trained: bool
    """False for an integer buffer, which is carried over from the base."""

    @property
    def nbytes(self) -> int:
        """Bytes of the base and all rows together."""
        return self.base.nbytes + sum(row.nbytes for row in self.rows)


class Supply(Protocol):
    """Brings the bytes of tensors whose files are not whole here. From any thread."""

    limit: int
    """Bytes on disk, at most."""
    least: int
    total: int
    """What the limit has to be, and with which everything is fetched but once."""

    def keeps(self, shard: Shard) -> bool:
        """Whether a file changes as it is filled."""

    def fetch(self, entries: Sequence[TensorEntry], over: Callable[[], bool]) -> bool:
        """Wait for room and bring them; False if ``over()`` before."""

    def release(self, entries: Sequence[TensorEntry]) -> None:
        """As often as fetched: they have been read."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Checkpoints at increasing ``steps`` over a base; ``tensors`` in the newest one's order."""

    base: Checkpoint
    steps: tuple[int, ...]
    checkpoints: tuple[Checkpoint, ...]
    tensors: tuple[Tensor, ...]
    supply: Supply | None = None

    @property
    def newest(self) -> Checkpoint:
        return self.checkpoints[-1]

    @property
    def model(self) -> Checkpoint:
        """Whose tensors, shards and dtypes an output has."""
        return self.newest

    @property
    def trained(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.trained)

    def check_unchanged(self) -> None:
        """Refuse to believe what was read of files that are not any more what they were.

        Raises:
            InputError: the first of them.
        """
        for checkpoint in (self.base, *self.checkpoints):
            supply = self.supply
            check_unchanged(s for s in checkpoint.shards if supply is None or not supply.keeps(s))


def align(base: Checkpoint, checkpoints: Mapping[int, Checkpoint]) -> Trajectory:
    """Match the tensors of all folders by name. ``checkpoints`` is sorted by step."""
    newest = list(checkpoints.values())[-1]
    others = [base, *checkpoints.values()]
    for checkpoint in others:
        _check_names(checkpoint, newest)
    tensors = []
    for name, model in newest.tensors.items():
        entries = [_entry(checkpoint, name) for checkpoint in others]
        for checkpoint, entry in zip(others, entries, strict=True):
            _check_entry(checkpoint, name, entry, model)
        columns = math.prod(model.shape)
        trained = model.dtype in CODES
        tensors.append(Tensor(name, model.shape, columns, entries[0], tuple(entries[1:]), trained))
    if not any(tensor.trained for tensor in tensors):
        raise InputError(f"{newest.folder}: expected floating-point weights, found none")
    return Trajectory(base, tuple(checkpoints), tuple(checkpoints.values()), tuple(tensors))


def _tied_embedding(checkpoint: Checkpoint, name: str) -> TensorEntry | None:
    """The embedding that stands in for a head this folder leaves out because it is tied."""
    if not name.endswith(HEAD) or checkpoint.tied is False:
        return None
    matches = [e for n, e in checkpoint.tensors.items() if n.endswith(EMBEDDING)]
    return matches[0] if len(matches) == 1 else None


def _entry(checkpoint: Checkpoint, name: str) -> TensorEntry:
    entry = checkpoint.tensors.get(name) or _tied_embedding(checkpoint, name)
    if entry is None:
        raise InputError(f"{checkpoint.folder}: tensor {name}: missing")
    return entry


def _check_names(checkpoint: Checkpoint, newest: Checkpoint) -> None:
    for name in newest.tensors:
        _entry(checkpoint, name)
    for name in checkpoint.tensors:
        if name not in newest.tensors and _tied_embedding(newest, name) is None:
            raise InputError(
                f"{checkpoint.folder}: tensor {name}: extra, {newest.folder} does not have it"
            )


def _check_entry(checkpoint: Checkpoint, name: str, entry: TensorEntry, model: TensorEntry) -> None:
    def wrong(what: str, expected: object, found: object) -> InputError:
        return InputError(
            f"{checkpoint.folder}: tensor {name}: {what}: expected {expected}, found {found}"
        )

    if entry.shape != model.shape:
        raise wrong("shape", list(model.shape), list(entry.shape))
    if model.dtype in CARRIED:
        if entry.dtype != model.dtype:
            raise wrong("dtype", model.dtype, entry.dtype)
    elif entry.dtype not in CODES:
        raise wrong("dtype", "F32, F16 or BF16", entry.dtype)
