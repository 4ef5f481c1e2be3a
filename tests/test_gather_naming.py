"""Whose names weights have, and how ranks' parts are placed: small checkpoints made here."""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.distributed.tensor.placement_types import Placement

from folders import Raw, raw, read_model, write_model
from oracle import round_to
from relex_ext import gather
from relex_ext.errors import InputError
from relex_ext.gathering.ranks import Ranks

NAMES = ("model.embed_tokens.weight", "model.layers.0.proj.weight", "model.norm.weight")
HEAD = "lm_head.weight"


def state(names: Sequence[str] = (*NAMES, HEAD)) -> dict[str, Tensor]:
    return {name: torch.full((3, 2), float(i)) for i, name in enumerate(names)}


def save(folder: Path, tensors: dict[str, Any]) -> Path:
    """A torch distributed checkpoint of this process alone; returns its run."""
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(tensors, checkpoint_id=folder / "step_1", no_dist=True)
    return folder


def base(folder: Path, names: Sequence[str], shape: tuple[int, ...] = (3, 2)) -> Path:
    words = round_to(torch.zeros(shape).double().numpy(), "BF16")
    return write_model(folder, {name: raw(words, "BF16") for name in names})


def gathered(run: Path, out: Path, **options: Any) -> dict[str, Raw]:
    (folder,) = gather(run, out, progress=False, **options).folders.values()
    return read_model(folder)


@pytest.mark.parametrize(
    "wrapped",
    [
        "{}",
        "model.{}",
        "app.model.{}",
        "module.{}",
        "model.module.{}",
        "_orig_mod.{}",
        "model._orig_mod.{}",
        "_fsdp_wrapped_module.{}",
        "model._fsdp_wrapped_module._checkpoint_wrapped_module.{}",
    ],
)
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("names", [NAMES, (*NAMES, HEAD)])
def test_names(tmp_path: Path, wrapped: str, with_base: bool, names: Sequence[str]) -> None:
    """What trainers put around a model's own names, with and without a tied head."""
    run = save(tmp_path / "run", {wrapped.format(name): t for name, t in state(names).items()})
    model = base(tmp_path / "base", NAMES) if with_base else None
    found = gathered(run, tmp_path / "out", base=model)
    assert {name: value.values.tolist() for name, value in found.items()} == {
        name: value.double().flatten().tolist() for name, value in state(names).items()
    }


def test_other_state_is_left_out(tmp_path: Path) -> None:
    weights = state()
    run = save(
        tmp_path / "run",
        {
            "app": {"model": weights, "optimizers": {"state": weights}, "progress": {"step": 3}},
            "optimizer": {"state": weights, "lr": 1e-6},
            "lr_scheduler": {"last_epoch": torch.tensor(3)},
            "train_state": {"step": torch.tensor(3)},
            "rng": torch.arange(9),
        },
    )
    assert set(gathered(run, tmp_path / "out")) == set(weights)


def test_names_of_another_model(tmp_path: Path) -> None:
    """They decide nothing by themselves; the base's do."""
    names = ("transformer.wte.weight", "transformer.h.0.mlp.weight")
    run = save(tmp_path / "run", {"model": state(names)})
    message = (
        "step_1: expected names like model.embed_tokens.weight, found "
        "model.transformer.h.0.mlp.weight; give the base, whose names decide"
    )
    with pytest.raises(InputError, match=message):
        gather(run, tmp_path / "out", progress=False)
    assert set(gathered(run, tmp_path / "out", base=base(tmp_path / "base", names))) == set(names)


@pytest.mark.parametrize(
    ("names", "shape", "message"),
    [
        ((*NAMES, "model.bias"), (3, 2), "step_1: tensor model.bias: missing"),
        (NAMES[:2], (3, 2), "step_1: tensor model.norm.weight: extra, .*base does not have it"),
        (
            NAMES,
            (3, 4),
            r"model.embed_tokens.weight: shape: expected \[3, 4\], as in .*/base/model",
        ),
    ],
)
def test_names_and_shapes_that_are_not_the_base_s(
    tmp_path: Path, names: Sequence[str], shape: tuple[int, ...], message: str
) -> None:
    run = save(tmp_path / "run", state())
    with pytest.raises(InputError, match=message):
        gather(run, tmp_path / "out", base=base(tmp_path / "base", names, shape), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tok_embeddings.weight", "torchtitan's own names .*convert_to_hf.py .*/run/step_1 OUT "),
        ("model.layers.0.proj.lora_A.default.weight", "a LoRA adapter beside frozen weights"),
    ],
)
def test_other_kinds_of_weights(tmp_path: Path, name: str, message: str) -> None:
    run = save(tmp_path / "run", {**state(), name: torch.ones(2)})
    with pytest.raises(InputError, match=f"step_1: expected a model's weights, found {message}"):
        gather(run, tmp_path / "out", progress=False)


def test_dtypes(tmp_path: Path) -> None:
    """As they are; whole numbers are no weights to be rounded."""
    tensors = {**state(), "model.half": torch.ones(3).half(), "model.ids": torch.arange(70000)}
    run = save(tmp_path / "run", tensors)
    found = gathered(run, tmp_path / "out")
    assert (found["model.half"].dtype, found["model.ids"].dtype) == ("F16", "I64")
    found = gathered(run, tmp_path / "bf16", dtype="bf16")
    assert (found["model.half"].dtype, found[HEAD].dtype) == ("BF16", "BF16")
    assert found["model.ids"].data == torch.arange(70000).numpy().tobytes()
    run = save(tmp_path / "wide", {**state(), "model.wide": torch.ones(3).double()})
    with pytest.raises(InputError, match="expected F32, F16, BF16 or whole numbers, found F64"):
        gather(run, tmp_path / "out", progress=False)


# ---- parts on a mesh -----------------------------------------------------------------------------


class Made:
    """Pickled, it is an object of a class with a state: as another version of torch has it."""

    def __init__(self, made: type, state: object) -> None:
        self._made = made
        self._state = state

    @property
    def __class__(self) -> type:
        return self._made

    def __reduce_ex__(self, protocol: object) -> Any:
        return copyreg.__newobj__, (self._made,), self._state


class Rebuilt:
    """Pickled, it is a DTensor, its state in slots."""

    def __init__(self, shape: tuple[int, ...], local: Tensor, spec: object) -> None:
        strides, device = (1,) * len(shape), torch.device("cpu")
        size = (DTensor, local.dtype, shape, strides, 0, torch.strided, device, False)
        slots = (None, {"_local_tensor": local, "_spec": spec})
        rebuild = torch._utils._rebuild_wrapper_subclass
        self._call = torch._tensor._rebuild_from_type_v2, (rebuild, DTensor, size, slots)

    def __reduce__(self) -> Any:
        return self._call


def part(
    shape: tuple[int, ...], local: Tensor, placements: Sequence[Placement], place: Sequence[int]
) -> object:
    """As torch 2.6 pickles it: its DeviceMesh keeps the mesh's ranks, and groups by number."""
    mesh = {
        "device_type": "cuda",
        "_flatten_mesh_list": (0, 1, 2, 3),
        "mesh": torch.arange(4).reshape([2] * len(place)) if len(place) > 1 else torch.arange(4),
        "mesh_dim_names": ("ddp", "fsdp")[-len(place) :],
        "_dim_group_infos": [("", [0, 1], "1")],
        "_coordinate_on_dim": list(place),
        "_thread_id": 139812,
    }
    meta = TensorMeta(torch.Size(shape), (1,) * len(shape), local.dtype)
    spec = {"mesh": Made(DeviceMesh, mesh), "placements": tuple(placements), "tensor_meta": meta}
    return Rebuilt(shape, local, Made(DTensorSpec, {**spec, "_hash": None}))


def rank_files(run: Path, parts: Sequence[object], name: str = NAMES[0]) -> Path:
    folder = run / "global_step_1" / "actor"
    folder.mkdir(parents=True)
    for rank, value in enumerate(parts):
        torch.save({name: value}, folder / f"model_world_size_{len(parts)}_rank_{rank}.pt")
    return folder


def test_parts_of_torch_2_6(tmp_path: Path) -> None:
    whole = torch.arange(15.0).reshape(5, 3)
    cuts = whole.split([2, 2, 1, 0])
    parts = [part((5, 3), cut.clone(), [Shard(0)], [rank]) for rank, cut in enumerate(cuts)]
    assert torch.equal(Ranks(rank_files(tmp_path, parts)).read([NAMES[0]])[NAMES[0]], whole)


@pytest.mark.parametrize(
    ("placements", "cut"),
    [
        ([Replicate(), Shard(1)], lambda t, i, j: t.tensor_split(2, 1)[j]),
        ([Shard(1), Replicate()], lambda t, i, j: t.tensor_split(2, 1)[i]),
        ([Shard(0), Shard(1)], lambda t, i, j: t.tensor_split(2, 0)[i].tensor_split(2, 1)[j]),
        ([Shard(0), Shard(0)], lambda t, i, j: t.tensor_split(2, 0)[i].tensor_split(2, 0)[j]),
        ([Replicate(), Replicate()], lambda t, i, j: t),
    ],
)
def test_meshes(tmp_path: Path, placements: Sequence[Placement], cut: Any) -> None:
    whole = torch.arange(15.0).reshape(5, 3)
    places = [(i, j) for i in range(2) for j in range(2)]
    parts = [part((5, 3), cut(whole, i, j).clone(), placements, (i, j)) for i, j in places]
    assert torch.equal(Ranks(rank_files(tmp_path, parts)).read([NAMES[0]])[NAMES[0]], whole)


ROWS = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [part((4, 3), ROWS, [Partial()], [i]) for i in (0, 1)],
            "along an axis, or copies, found .*Partial",
        ),
        ([part((4, 3), ROWS, [Shard(0)], [0])] * 2, r"ranks that fill a mesh, found \[\(0,\)\]"),
        ([part((4, 3), ROWS, [Shard(0)], [i]) for i in (0, 2)], "ranks that fill a mesh, found"),
        ([part((5, 3), ROWS, [Shard(0)], [i]) for i in (0, 1)], r"parts of \[5, 3\], found \[4, 3"),
        ([part((3, 3), ROWS, [Shard(0)], [i]) for i in (0, 1)], r"parts of \[3, 3\], found \[4, 3"),
        ([part((4, 3), ROWS, [Shard(2)], [i]) for i in (0, 1)], "along an axis, or copies, found"),
        ([part((4, 3), ROWS, [Shard(i)], [i]) for i in (0, 1)], "one placement on all ranks"),
        ([part((4, 3), ROWS, [Shard(0)], [0, i]) for i in (0, 1)], "a place on the mesh, found"),
        ([part((4, 3), ROWS, [Shard(0)], [-i]) for i in (0, 1)], "a place on the mesh, found"),
        ([part((4 + i, 3), ROWS, [Shard(0)], [i]) for i in (0, 1)], "one dtype and shape on all"),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, parts: Sequence[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ranks(rank_files(tmp_path, parts))
