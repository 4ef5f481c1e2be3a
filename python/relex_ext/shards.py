"""The weight files of an output: the newest checkpoint's, with trained tensors in their dtype."""

from __future__ import annotations

import json
from collections.abc import Mapping

from relex_ext.checkpoints import INDEX, SINGLE
from relex_ext.dtypes import ITEM_SIZE
from relex_ext.layout import Layout, lay_out
from relex_ext.trajectory import Tensor, Trajectory


def written_dtype(tensor: Tensor, asked: str | None) -> str:
    """The dtype that a tensor is written in: the newest checkpoint's, unless it is trained and
    another is asked for."""
    return asked if asked is not None and tensor.trained else tensor.rows[-1].dtype


def layouts_of(trajectory: Trajectory, asked: str | None) -> dict[str, Layout]:
    """File name → its layout, as the newest checkpoint cuts and names them."""
    layouts = {}
    for shard in trajectory.model.shards:
        described = []
        for tensor in trajectory.tensors:
            if tensor.rows[-1].shard == shard:
                dtype = written_dtype(tensor, asked)
                nbytes = tensor.columns * ITEM_SIZE[dtype]
                described.append((tensor.name, dtype, tensor.shape, nbytes))
        layouts[shard.path.name] = lay_out(described, {"format": "pt"})
    return layouts


def index_of(layouts: Mapping[str, Layout]) -> dict[str, bytes]:
    """The index by its name, where files need one."""
    if list(layouts) == [SINGLE]:
        return {}
    weight_map = {tensor: name for name, layout in layouts.items() for tensor in layout.offsets}
    index = {
        "metadata": {"total_size": sum(made.size - len(made.header) for made in layouts.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return {INDEX: (json.dumps(index, indent=2) + "\n").encode()}
