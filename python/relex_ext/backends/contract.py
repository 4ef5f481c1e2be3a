"""What a backend is asked to do, on raw memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from relex_ext.errors import RelexError, Resumable


class BackendError(RelexError, Resumable):
    """Who computes failed, or its memory ran out: one line."""


@dataclass(frozen=True, slots=True)
class Strips:
    """The same columns of one tensor in T checkpoints and in the base, in the backend's memory.

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
    """Three operations. Every sum goes over fixed segments in a fixed order.

    Sums live where the backend computes: :meth:`zeros` makes them, :meth:`fetch` brings them home.
    A GPU's operations return before they are done; ``fetch`` waits.
    """

    @property
    def name(self) -> str: ...

    def zeros(self, *shape: int) -> Any:
        """Sums to add to: float64 zeros in the backend's memory."""

    def fetch(self, sums: Any) -> NDArray[np.float64]:
        """The sums as an array of this process."""

    def gram(self, strips: Strips, gram: Any) -> None:
        """Add ΔΔᵀ's lower triangle to ``gram``, sums of shape (T, T)."""

    def power_step(
        self, strips: Strips, u: NDArray[np.float32], y: Any, energy: Any | None
    ) -> None:
        """Add Δ(Δᵀu) to ``y``, sums (T, k), for ``u`` (T, k), and ‖Δ_t‖² to ``energy`` (T)."""

    def combine(
        self,
        strips: Strips,
        weights: NDArray[np.float64],
        out: NDArray[np.uint64],
        out_dtype: int,
    ) -> None:
        """Write base + Σ_t w_t Δ_t, rounded once, for each row of ``weights`` (targets, T), to the
        addresses ``out`` in the backend's memory."""
