"""Who does the arithmetic. One visible table; an explicit choice never falls back."""

from __future__ import annotations

from relex_ext.backends.contract import Backend, Strips
from relex_ext.backends.cpu import CpuBackend
from relex_ext.backends.reference import ReferenceBackend
from relex_ext.errors import InputError

NAMES = ("auto", "cpu", "reference")

__all__ = ["NAMES", "Backend", "Strips", "open_backend"]


def open_backend(name: str, threads: int | None = None) -> Backend:
    """The backend of that name; ``auto`` is the CPU's best kernels."""
    if name in ("auto", "cpu"):
        return CpuBackend(threads)
    if name == "reference":
        return ReferenceBackend()
    raise InputError(f"backend: expected one of {', '.join(NAMES)}, found {name}")
