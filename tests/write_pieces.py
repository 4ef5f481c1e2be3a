"""Checkpoints in pieces, written by torch itself as trainers have it do: by 1, 2 and 4 processes.

``python -m write_pieces ROOT`` writes, for each step, the same weights as

ROOT/plain/checkpoint-S           a model folder
ROOT/dcp-W/checkpoint-S           accelerate: torch.distributed.checkpoint, of FSDP2
ROOT/dcp-mesh/step-S              the same of a mesh of 2 × 2, with an optimizer's state beside
ROOT/fsdp1-W, fsdp2-W/global_step_S   verl: a file for each rank; with 4 of a mesh of 2 × 2, copied
ROOT/base                         what the run began with
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.api import ShardedStateDictConfig, StateDictType
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes

STEPS = (10, 20, 30)
WORLDS = (1, 2, 4)
CONFIG = '{"model_type": "toy", "dtype": "bfloat16"}\n'


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(11, 5, bias=False)  # 5 rows on 4 ranks: the last has none
        self.norm = nn.LayerNorm(3)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 11)
        self.layers = nn.ModuleList([Layer(), Layer()])


class Model(nn.Module):
    """Names and nesting of a causal language model; rows that 2 and 4 do not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Body()
        self.lm_head = nn.Linear(11, 7, bias=False)


def weights(step: int) -> dict[str, Tensor]:
    """Drifting from step 0, the base."""
    random = torch.Generator().manual_seed(1)
    found = {}
    for name, value in Model().state_dict().items():
        base, drift = torch.randn(2, *value.shape, generator=random) * 0.02
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(step))
        found[name] = base + 0.01 * step * drift + (1e-4 * noise if step else 0)
    return found


def trained(step: int) -> Model:
    model = Model()
    model.load_state_dict(weights(step))
    return model


def fsdp2(model: Model, mesh: DeviceMesh) -> Model:
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _fsdp1_state(model: Model, mesh: DeviceMesh) -> dict[str, Tensor]:
    hybrid = mesh.ndim == 2
    strategy = ShardingStrategy.HYBRID_SHARD if hybrid else ShardingStrategy.FULL_SHARD
    wrapped = FullyShardedDataParallel(
        model, device_mesh=mesh, sharding_strategy=strategy, device_id=torch.device("cpu")
    )
    with FullyShardedDataParallel.state_dict_type(
        wrapped, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=True)
    ):
        return dict(wrapped.state_dict())


def _write(rank: int, world: int, port: int, root: Path) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world)
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    line = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ddp", "fsdp")) if world == 4 else line
    for step in STEPS:
        file = f"model_world_size_{world}_rank_{rank}.pt"
        state = fsdp2(trained(step), line).state_dict()
        place = root / f"dcp-{world}" / f"checkpoint-{step}"
        dcp.save({"model": state}, checkpoint_id=place / "pytorch_model_fsdp_0")
        actor = root / f"fsdp2-{world}" / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True, exist_ok=True)
        torch.save(fsdp2(trained(step), square).state_dict(), actor / file)
        actor = root / f"fsdp1-{world}" / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True, exist_ok=True)
        torch.save(_fsdp1_state(trained(step), square), actor / file)
        if world == 4:
            on_mesh = {
                name: distribute_tensor(value, square, [Shard(0), Shard(value.dim() - 1)])
                for name, value in weights(step).items()
            }
            everything = {"model": on_mesh, "optimizer": {"state": state, "lr": 1e-6}}
            dcp.save(everything, checkpoint_id=root / "dcp-mesh" / f"step-{step}")
    dist.destroy_process_group()


def _free_port() -> int:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    return int(store.port)


def main(place: str) -> None:
    """``place``: ROOT, a folder."""
    root = Path(place)
    for step in (0, *STEPS):
        folder = root / "base" if step == 0 else root / "plain" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file(weights(step), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(CONFIG)
    for world in WORLDS:
        start_processes(_write, (world, _free_port(), root), world, start_method="fork")


if __name__ == "__main__":
    main(sys.argv[1])
