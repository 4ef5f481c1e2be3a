"""weights.safetensors: the weights that an output was made with, so that anybody can check it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors

from relex_ext import strictjson
from relex_ext.errors import InputError
from relex_ext.forecasts import Weights
from relex_ext.headers import header_of
from relex_ext.plainfiles import opened, read_at

FORMAT = "relex-weights/1"


def weights_file(weights: Weights) -> bytes:
    """A safetensors file with a float64 (targets, T) for every tensor; its metadata, under
    ``relex``, names steps and targets as JSON. One key, for the library writes several in any
    order."""
    described = {"format": FORMAT, "steps": weights.steps, "targets": weights.targets}
    tensors = {name: np.ascontiguousarray(w, "<f8") for name, w in weights.tensors.items()}
    return safetensors.save(tensors, {"relex": json.dumps(described)})


def read_weights(path: Path) -> Weights:
    """The weights that :func:`weights_file` wrote.

    Raises:
        InputError: there are none, or it is another file.
    """
    header = header_of(path, path.parent)
    try:
        described = strictjson.load(header.metadata["relex"].encode(), floats=True)
        if described["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, found {described['format']}")
        steps, targets = tuple(described["steps"]), tuple(described["targets"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected relex's weights, found {error!r}") from error
    tensors = {}
    with opened(path, path.parent) as (descriptor, _):
        for entry in header.entries:
            if (entry.dtype, entry.shape) != ("F64", (len(targets), len(steps))):
                raise InputError(
                    f"{path}: tensor {entry.name}: expected F64 [{len(targets)}, {len(steps)}], "
                    f"found {entry.dtype} {list(entry.shape)}"
                )
            data = read_at(path, descriptor, entry.offset, entry.nbytes)
            tensors[entry.name] = np.frombuffer(data, "<f8").reshape(entry.shape)
    return Weights(steps, targets, tensors, {})
