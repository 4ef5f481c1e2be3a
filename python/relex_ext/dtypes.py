"""The three floating dtypes the kernels know, by their safetensors names.

bf16 travels as raw 16-bit words: numpy has no such type and torch need not be imported for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.errors import InputError

CODES: Mapping[str, int] = {"F32": 0, "F16": 1, "BF16": 2}
"""Safetensors dtype → the compiled core's code (csrc/dtype.hpp)."""

NAMES: Mapping[int, str] = {code: name for name, code in CODES.items()}

ITEM_SIZE: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per element of every safetensors dtype we read or carry over."""

CARRIED = frozenset({"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64"})
"""Dtypes of buffers that are not trained: taken from the base as they are."""

_ALIASES = {
    "float32": "F32", "fp32": "F32", "f32": "F32",
    "float16": "F16", "fp16": "F16", "f16": "F16", "half": "F16",
    "bfloat16": "BF16", "bf16": "BF16",
}  # fmt: skip


def parse(dtype: str) -> str:
    """A user's spelling (``bf16``, ``bfloat16``, ``torch.bfloat16``, ``BF16``) → ``"BF16"``."""
    name = _ALIASES.get(str(dtype).removeprefix("torch.").lower())
    if name is None:
        raise InputError(f"dtype: expected float32, float16 or bfloat16, found {dtype}")
    return name


def parse_delta(dtype: str) -> str:
    """What deltas are rounded to: ``"F32"`` or ``"F16"``."""
    name = _ALIASES.get(str(dtype).removeprefix("torch.").lower())
    if name not in ("F32", "F16"):
        raise InputError(f"delta_dtype: expected float32 or float16, found {dtype}")
    return name


def to_float32(words: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Raw little-endian values of dtype ``name`` as float32. Exact; copies unless F32."""
    if name == "F32":
        return words.view(np.float32)
    if name == "F16":
        return words.view(np.float16).astype(np.float32)
    return (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@np.errstate(over="ignore", invalid="ignore")  # Inf is the rounding of what is too large
def from_float64(values: NDArray[np.float64], name: str) -> NDArray[Any]:
    """Round float64 to dtype ``name`` once, to nearest even; bf16 as uint16 words."""
    if name == "F32":
        return values.astype(np.float32)
    if name == "F16":
        return values.astype(np.float16)
    # Through float32 rounded to odd, so that the second rounding is the only one that counts.
    narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32)
    error = values - narrow.astype(np.float64)
    outwards = (error > 0) == (narrow > 0)
    move = (error != 0) & ((bits & 1) == 0) & np.isfinite(narrow)
    bits = np.where(move, np.where(outwards, bits + 1, bits - 1), bits).astype(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(narrow), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def converted(data: bytes, found: str, to: str) -> bytes:
    """Values of one dtype in another; NaN and Inf stay what they are."""
    if found == to:
        return data
    words = np.frombuffer(data, f"<u{ITEM_SIZE[found]}")
    return from_float64(to_float32(words, found).astype(np.float64), to).tobytes()
