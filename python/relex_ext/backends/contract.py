"""What a backend is asked to do, on raw memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Strips:
    """The same columns of one tensor in T checkpoints and in the base, somewhere in memory.

    ``rows``: T addresses (uint64), ``dtypes``: T codes (uint8, :data:`relex_ext.dtypes.CODES`),
    ``base``: its address, 0 for zeros, ``base_dtype``: its code, ``columns``: elements per strip.
    Strips start a multiple of ``_core.SEGMENT`` columns into their tensor.
    """

    rows: NDArray[np.uint64]
    dtypes: NDArray[np.uint8]
    base: int
    base_dtype: int
    columns: int


class Backend(Protocol):
    """Three operations. Every sum goes over fixed segments in a fixed order."""

    @property
    def name(self) -> str: ...

    def gram(self, strips: Strips, gram: NDArray[np.float64]) -> None:
        """Add ΔΔᵀ's lower triangle to ``gram`` (T, T)."""

    def power_step(
        self,
        strips: Strips,
        u: NDArray[np.float32],
        y: NDArray[np.float64],
        energy: NDArray[np.float64] | None,
    ) -> None:
        """Add Δ(Δᵀu) to ``y`` (T, k) for ``u`` (T, k), and ‖Δ_t‖² to ``energy`` (T)."""

    def combine(
        self,
        strips: Strips,
        weights: NDArray[np.float64],
        out: Sequence[NDArray[np.uint8]],
        out_dtype: int,
    ) -> None:
        """Write base + Σ_t w_t Δ_t, rounded once, for each row of ``weights`` (targets, T)."""
