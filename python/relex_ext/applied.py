"""weights.safetensors: the weights that an output was made with, so that anybody can check it."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as safetensors

from relex_ext.forecasts import Weights

FORMAT = "relex-weights/1"


def weights_file(weights: Weights) -> bytes:
    """A safetensors file with a float64 (targets, T) for every tensor; its metadata, under
    ``relex``, names steps and targets as JSON. One key, for the library writes several in any
    order."""
    described = {"format": FORMAT, "steps": weights.steps, "targets": weights.targets}
    tensors = {name: np.ascontiguousarray(w, "<f8") for name, w in weights.tensors.items()}
    return safetensors.save(tensors, {"relex": json.dumps(described)})


def read_weights(data: bytes) -> Mapping[str, NDArray[np.float64]]:
    """Tensor → (targets, T)."""
    return safetensors.load(data)
