"""The compiled kernels of this processor."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext import _core
from relex_ext.backends.contract import Strips
from relex_ext.errors import InputError


def available_threads() -> int:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CpuBackend:
    """SIMD kernels in threads. ``RELEX_ISA`` forces one of ``_core.isas()``, for tests."""

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        self.threads = available_threads() if threads is None else threads
        if not 1 <= self.threads <= 1024:
            raise InputError(f"threads: expected 1 to 1024, found {self.threads}")
        self.isa = isa or os.environ.get("RELEX_ISA", "auto")
        known = _core.isas()
        if self.isa == "auto":
            self.isa = known[0]
        if self.isa not in known:
            raise InputError(
                f"RELEX_ISA: expected one of auto, {', '.join(known)}, found {self.isa}"
            )
        self.name = f"cpu ({self.isa}, {self.threads} threads)"

    def zeros(self, *shape: int) -> NDArray[np.float64]:
        return np.zeros(shape)

    def fetch(self, sums: Any) -> NDArray[np.float64]:
        return np.asarray(sums, np.float64)

    def gram(self, strips: Strips, gram: Any) -> None:
        s = strips
        _core.gram(s.rows, s.dtypes, s.base, s.base_dtype, s.columns, gram, self.threads, self.isa)

    def power_step(
        self,
        strips: Strips,
        u: NDArray[np.float32],
        y: Any,
        energy: Any | None,
    ) -> None:
        s = strips
        _core.power_step(
            s.rows, s.dtypes, s.base, s.base_dtype, s.columns, u, y, energy, self.threads, self.isa
        )

    def combine(
        self,
        strips: Strips,
        weights: NDArray[np.float64],
        out: NDArray[np.uint64],
        out_dtype: int,
    ) -> None:
        s = strips
        _core.combine(
            s.rows, s.dtypes, s.base, s.base_dtype, s.columns,
            weights, out, out_dtype, self.threads, self.isa,
        )  # fmt: skip
