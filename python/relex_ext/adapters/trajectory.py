"""A base and the adapters that a run saved over it: rows that are products, not tensors."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from relex_ext.adapters.opening import Adapter, Pair
from relex_ext.checkpoints import Checkpoint
from relex_ext.dtypes import CARRIED, CODES
from relex_ext.errors import InputError
from relex_ext.headers import TensorEntry
from relex_ext.trajectory import EMBEDDING, HEAD, Tensor, Trajectory

LOG = logging.getLogger("relex_ext")


@dataclass(frozen=True, slots=True)
class LowRank(Tensor):
    """A tensor of the base, moved by s·BA at each step; ``rows`` are the base's own entry, whose
    dtype and place the output has."""

    pairs: tuple[Pair, ...]
    """One for each step; none where no adapter touches the tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes of the base and all factors together."""
        return self.base.nbytes + sum(p.a.nbytes + p.b.nbytes for p in self.pairs)


@dataclass(frozen=True, slots=True)
class AdapterTrajectory(Trajectory):
    """``checkpoints`` are the adapters' folders, files and tensors."""

    @property
    def model(self) -> Checkpoint:
        return self.base


def align(base: Checkpoint, adapters: Mapping[int, Adapter]) -> AdapterTrajectory:
    """Match the adapters' modules with the base's tensors. ``adapters`` is sorted by step.

    Raises:
        InputError: an adapter does not fit the base, or has other modules than the newest.
    """
    newest = list(adapters.values())[-1]
    for adapter in adapters.values():
        _check_modules(adapter, newest)
        if adapter.settings.base != newest.settings.base:
            LOG.info(
                "%s: names another base than the newest adapter does: %s, not %s",
                adapter.folder, adapter.settings.base, newest.settings.base,
            )  # fmt: skip
    for name, pair in newest.pairs.items():
        _check_tied(base, newest, name, pair)
        if name not in base.tensors:
            raise InputError(
                f"{newest.folder}: module {name.removesuffix('.weight')}: expected one of "
                f"{base.folder}, which has no tensor {name}"
            )
    tensors = [_tensor(name, entry, base, adapters) for name, entry in base.tensors.items()]
    checkpoints = tuple(adapter.checkpoint for adapter in adapters.values())
    return AdapterTrajectory(base, tuple(adapters), checkpoints, tuple(tensors))


def _tensor(
    name: str, entry: TensorEntry, base: Checkpoint, adapters: Mapping[int, Adapter]
) -> LowRank:
    if entry.dtype not in CODES and entry.dtype not in CARRIED:
        raise InputError(
            f"{base.folder}: tensor {name}: dtype: expected F32, F16 or BF16, found {entry.dtype}"
        )
    pairs = tuple(a.pairs[name] for a in adapters.values() if name in a.pairs)
    for adapter, pair in zip(adapters.values(), pairs, strict=False):  # both or none
        if pair.shape != entry.shape or pair.transposed != pairs[0].transposed:
            raise InputError(
                f"{adapter.folder}: module {name.removesuffix('.weight')}: expected an update of "
                f"{list(entry.shape)}, found {list(pair.shape)}"
            )
    columns, rows = math.prod(entry.shape), (entry,) * len(adapters)
    return LowRank(name, entry.shape, columns, entry, rows, entry.dtype in CODES, pairs)


def _check_modules(adapter: Adapter, newest: Adapter) -> None:
    other = min(adapter.pairs.keys() ^ newest.pairs.keys(), default=None)
    if other is not None:
        has, lacks = (adapter, newest) if other in adapter.pairs else (newest, adapter)
        raise InputError(
            f"{lacks.folder}: module {other.removesuffix('.weight')}: missing, {has.folder} has it"
        )


def _check_tied(base: Checkpoint, adapter: Adapter, name: str, pair: Pair) -> None:
    """A head that is the embedding cannot move apart from it, and an adapter moves one of them."""
    tied = base.tied or (base.tied is None and not any(n.endswith(HEAD) for n in base.tensors))
    if tied and (pair.embedding or name.endswith((HEAD, EMBEDDING))):
        raise InputError(
            f"{adapter.folder}: module {name.removesuffix('.weight')}: expected a model whose head "
            f"is its own, found {base.folder} with head and embedding tied; untie them first"
        )
