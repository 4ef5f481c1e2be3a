"""What the tests are parametrised over."""

from __future__ import annotations

from relex_ext import _core
from relex_ext.backends import Backend, ReferenceBackend
from relex_ext.backends.cpu import CpuBackend

ISAS: tuple[str, ...] = tuple(_core.isas())
BACKENDS: tuple[str, ...] = (*ISAS, "reference")
DTYPES: tuple[str, ...] = ("F32", "F16", "BF16")

SIZES: tuple[int, ...] = (1, 15, 16, 17, 97, 1000, 65535, 65536, 65537, 200001)
"""Around the widths of vectors, blocks (1024, 2048) and the segment (65536)."""

ROWS: tuple[int, ...] = (1, 2, 3, 5, 16, 17, 75)

SHAPES: tuple[tuple[int, int], ...] = (
    *((t, n) for t in (2, 5) for n in SIZES),
    *((t, n) for t in ROWS for n in (97, 2049)),
    (17, 65537),
    (75, 70001),
)
"""(T, columns): every size with few rows, every T with few columns, and both large once."""

MIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("F32", ("F32",)),
    ("F16", ("F16",)),
    ("BF16", ("BF16",)),
    ("F32", ("BF16",)),
    ("BF16", ("F32", "F16", "BF16")),
)
"""(dtype of the base, dtypes of the rows in turn)."""


def backend(name: str, threads: int = 2) -> Backend:
    """The backend that computes with that ISA, or the reference."""
    return ReferenceBackend() if name == "reference" else CpuBackend(threads, isa=name)
