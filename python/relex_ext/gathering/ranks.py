"""verl's FSDP checkpoints: what each rank holds of every tensor, a pickled file for each.

A rank's part of a tensor (torch's DTensor) comes with how it is placed on the mesh of ranks, and
with its own place there.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from relex_ext.errors import InputError
from relex_ext.gathering.allowing import only
from relex_ext.gathering.inert import Inert, is_a, stand_in
from relex_ext.gathering.stored import TORCH_DTYPES, Files, Stored, reason
from relex_ext.pieces import RANK_FILE

_TENSOR = "torch.distributed.tensor"
_SHARD = f"{_TENSOR}.placement_types.Shard"
_REPLICATE = f"{_TENSOR}.placement_types.Replicate"

ALLOWED = (
    f"{_TENSOR}._dtensor_spec.DTensorSpec",
    f"{_TENSOR}._dtensor_spec.TensorMeta",
    f"{_TENSOR}._dtensor_spec.ShardOrderEntry",
    _SHARD,
    _REPLICATE,
    f"{_TENSOR}.placement_types.Partial",
    f"{_TENSOR}.placement_types._StridedShard",
    "torch.distributed.device_mesh.DeviceMesh",
    "torch.distributed._mesh_layout._MeshLayout",
    "torch.distributed._mesh_layout._FlatLayout",
)
"""What a rank's file may name beside plain tensors; each is an :class:`Inert`."""

DTENSOR = f"{_TENSOR}.DTensor"
"""It may name that, too; it is a :class:`Part`."""

UNLIMITED = (
    "python -m verl.model_merger merge --backend fsdp --local_dir {folder} --target_dir {folder}-hf"
)

Coordinate = tuple[int, ...]


def _not_whole(func: object, *_: object, **__: object) -> Any:
    raise RuntimeError(f"expected to join the parts of a tensor first, found {func}")


class Part(Tensor):
    """In a DTensor's place: its shape and dtype are the whole tensor's, ``state`` its parts."""

    state: Any = None

    __torch_dispatch__: Callable[..., Any] = staticmethod(_not_whole)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def said(self, name: str) -> Any:
        """Of its state: a dict, or, of a class with slots, two of them."""
        for said in self.state if isinstance(self.state, tuple) else (self.state,):
            if isinstance(said, dict) and name in said:
                return said[name]
        raise ValueError(f"expected a DTensor, found one without {name}")


@dataclass(frozen=True)
class Joint(Stored):
    """A tensor in parts: ``placements`` on each axis of the mesh, an axis of the tensor or None for
    copies; ``parts`` by their coordinates on the mesh."""

    placements: tuple[int | None, ...]
    parts: Mapping[Coordinate, Tensor]


class Ranks:
    """A :class:`~relex_ext.gathering.stored.Pieces`. The files are mapped, not read."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        InputError: a rank's file is missing or no such file, or they do not fit together.
        """
        names = _names(folder)
        self.files = Files(folder, names)
        states = [_load(folder / name) for name in names]
        for name, state in zip(names, states, strict=True):
            missing = sorted(states[0].keys() ^ state.keys())
            if missing:
                raise InputError(
                    f"{folder / name}: expected the tensors of {names[0]}, found a difference in "
                    f"{missing[0]}"
                )
        self.tensors = {
            key: _joint(f"{folder}: tensor {key}", [state[key] for state in states])
            for key in states[0]
        }

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        return {key: _join(self.tensors[key]) for key in keys}


def _names(folder: Path) -> list[str]:
    """All ranks' files, in the ranks' order."""
    found: dict[int, set[int]] = {}
    for entry in folder.iterdir():
        if match := RANK_FILE.fullmatch(entry.name):
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    if len(found) != 1:
        raise InputError(
            f"{folder}: expected files of one world size, found {' and '.join(map(str, found))}"
        )
    ((world, ranks),) = found.items()
    if ranks != set(range(world)):
        wrong = min(ranks ^ set(range(world)))
        raise InputError(
            f"{folder}: expected files of ranks 0 to {world - 1}, found "
            f"{'none' if wrong < world else 'one'} of rank {wrong}"
        )
    return [f"model_world_size_{world}_rank_{rank}.pt" for rank in range(world)]


def _load(path: Path) -> dict[str, Tensor]:
    try:
        with only({DTENSOR: Part, **{name: stand_in(name) for name in ALLOWED}}):
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # of a file that is no such pickle, any
        merge = UNLIMITED.format(folder=shlex.quote(str(path.parent)))
        raise InputError(
            f"{path}: expected tensors that torch.load(weights_only=True) reads, found: "
            f"{reason(error)}; if you trust it, {merge}, which unpickles it without limits, may "
            "read it"
        ) from error
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: expected a table of tensors, found {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{path}: expected tensors by name, found {key!s:.80}")
    return cast("dict[str, Tensor]", state)


def _joint(where: str, values: Sequence[Tensor]) -> Joint:
    """One tensor, as all ranks have it."""
    first = values[0]
    if len({(type(value), value.dtype, value.shape) for value in values}) != 1:
        raise InputError(f"{where}: expected one dtype and shape on all ranks, found several")
    dtype = TORCH_DTYPES.get(str(first.dtype))
    if dtype is None:
        raise InputError(f"{where}: expected a dtype of weights, found {first.dtype}")
    if not isinstance(first, Part):
        return _copies(where, dtype, values)
    try:
        described = [_described(cast("Part", value)) for value in values]
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: {error}") from error
    if len({placements for placements, _, _ in described}) != 1:
        raise InputError(f"{where}: expected one placement on all ranks, found several")
    parts = {coordinate: part for _, coordinate, part in described}
    extents = [1 + max(numbers) for numbers in zip(*parts, strict=True)]
    if not len(parts) == len(values) == math.prod(extents):
        raise InputError(f"{where}: expected ranks that fill a mesh, found {sorted(parts)}")
    joint = Joint(dtype, tuple(first.shape), described[0][0], parts)
    _check(where, joint)
    return joint


def _copies(where: str, dtype: str, values: Sequence[Tensor]) -> Joint:
    """A tensor that is not in parts: every rank has the whole of it."""
    if not all(map(_is_plain, values)):
        raise InputError(f"{where}: expected plain tensors or DTensors, found another kind")
    words = values[0].contiguous().reshape(-1).view(torch.uint8)
    for value in values[1:]:
        if not torch.equal(value.contiguous().reshape(-1).view(torch.uint8), words):
            raise InputError(
                f"{where}: expected DTensors, or the same on all ranks, found plain tensors that "
                "differ"
            )
    return Joint(dtype, tuple(values[0].shape), (None,), {(0,): values[0]})


def _described(part: Part) -> tuple[tuple[int | None, ...], Coordinate, Tensor]:
    local, spec = part.said("_local_tensor"), part.said("_spec")
    if not _is_plain(local) or not is_a(spec, ALLOWED[0]):
        raise ValueError("expected a DTensor, found another kind of tensor")
    if local.dtype != part.dtype:
        raise ValueError(f"expected parts of {part.dtype}, found {local.dtype}")
    coordinate = tuple(spec.said("mesh").said("_coordinate_on_dim"))
    placements = tuple(_axis(placement, part.dim()) for placement in spec.said("placements"))
    if not coordinate or len(coordinate) != len(placements):
        raise ValueError(f"expected a place on the mesh, found {coordinate}")
    if any(type(number) is not int or number < 0 for number in coordinate):
        raise ValueError(f"expected a place on the mesh, found {coordinate}")
    return placements, coordinate, local


def _is_plain(tensor: object) -> bool:
    """Whether all its elements are in its file: none stands for many, or for nothing."""
    return (
        type(tensor) in (Tensor, Parameter)
        and isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )


def _axis(placement: Inert, dimensions: int) -> int | None:
    if is_a(placement, _REPLICATE):
        return None
    axis = placement.said("dim") if is_a(placement, _SHARD) else None
    if type(axis) is not int or not 0 <= axis < dimensions:
        raise ValueError(f"expected parts along an axis, or copies, found {placement.path}")
    return axis


def _check(where: str, joint: Joint) -> None:
    """That the parts, joined, have the tensor's shape: from their shapes alone."""
    shapes = {
        coordinate: torch.empty(part.shape, dtype=part.dtype, device="meta")
        for coordinate, part in joint.parts.items()
    }
    try:
        joined = tuple(_join(Joint(joint.dtype, joint.shape, joint.placements, shapes)).shape)
    except RuntimeError as error:
        raise InputError(f"{where}: {error}") from error
    if joined != joint.shape:
        raise InputError(
            f"{where}: expected parts of {list(joint.shape)}, found {list(joined)} together"
        )


def _join(joint: Joint) -> Tensor:
    """The mesh's last axis first: what an earlier one splits, a later one splits again."""
    parts = dict(joint.parts)
    for axis in reversed(joint.placements):
        groups: dict[Coordinate, list[Tensor]] = {}
        for coordinate in sorted(parts):
            groups.setdefault(coordinate[:-1], []).append(parts[coordinate])
        parts = {
            rest: group[0] if axis is None else _row(group, axis) for rest, group in groups.items()
        }
    joined = parts[()]
    return joined if joined.numel() else joined.reshape(joint.shape)


def _row(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Parts side by side. An empty one may have lost its other axes."""
    filled = [part for part in parts if part.numel()]
    return torch.cat(filled, axis) if filled else parts[0]
