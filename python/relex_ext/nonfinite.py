"""NaN and Inf: which checkpoint has them, and how many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.files import contents
from relex_ext.headers import TensorEntry
from relex_ext.trajectory import Tensor

EXPONENT = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""All bits of the exponent: set in NaN and Inf, and in nothing else."""

HINT = "nonfinite carry copies such tensors from the newest checkpoint"


class NonFinite(InputError):
    """A tensor holds NaN or Inf."""


def count_nonfinite(entry: TensorEntry) -> int:
    """How many of a tensor's elements are NaN or Inf. Reads it."""
    mask = EXPONENT[entry.dtype]
    word = np.dtype(f"<u{ITEM_SIZE[entry.dtype]}")
    words = (np.frombuffer(data, word) for data in contents(entry))
    return sum(int(np.count_nonzero((some & mask) == mask)) for some in words)


def describe(tensor: Tensor, steps: Sequence[int], row: int) -> NonFinite:
    """The error for a tensor whose delta at ``row`` is not finite, through the base or the row."""
    where, entry = "the base", tensor.base
    count = count_nonfinite(entry)
    if count == 0:
        where, entry = f"step {steps[row]}", tensor.rows[row]
        count = count_nonfinite(entry)
    # None in the files: too large for the float16 that deltas were to be rounded to.
    found = f"{count} NaN or Inf" if count else "numbers beyond the deltas' dtype"
    return NonFinite(f"{entry.shard.path}: tensor {tensor.name}: {found} in {where}; {HINT}")
