"""weights.safetensors read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from relex_ext import strictjson
from relex_ext.applied import FORMAT
from relex_ext.errors import InputError
from relex_ext.forecasts import Weights
from relex_ext.headers import header_of
from relex_ext.plainfiles import opened, read_at


def read_weights(path: Path) -> Weights:
    """The weights that :func:`relex_ext.applied.weights_file` wrote.

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
