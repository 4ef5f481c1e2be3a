"""The CUDA kernels (csrc/cuda/kernels.hpp). Addresses are device addresses; streams are integers.

Nothing here waits for the device. Wrong arguments raise ValueError, CUDA's own errors RuntimeError.
"""

import numpy as np
from numpy.typing import NDArray

PART: int
"""Columns per partial sum; divides ``_core.SEGMENT``."""
MAX_ROWS: int
MAX_VECTORS: int
ARCHITECTURES: str
"""What the kernels were compiled for: ``"sm_80, sm_90, sm_100, compute_100 (PTX)"``."""
EMULATED: bool
"""The same sources compiled for the processor: addresses are the host's. For tests."""

def unavailable(device: int) -> str | None:
    """Why the kernels cannot run on that device, or None."""

def gram_needs(rows: int, columns: int) -> tuple[int, int]:
    """Bytes of workspace: the least that works, and the most that helps."""

def gram(
    rows: NDArray[np.uint64],
    dtypes: NDArray[np.uint8],
    base: int,
    base_dtype: int,
    columns: int,
    gram: int,
    workspace: int,
    workspace_size: int,
    stream: int,
) -> None:
    """Add ΔΔᵀ's lower triangle to the T × T float64 at ``gram``. ``rows``, ``dtypes``: host arrays
    of T device addresses and dtype codes; ``base``: 0 for zeros."""

def power_step_needs(rows: int, columns: int, k: int) -> tuple[int, int]: ...
def power_step(
    rows: NDArray[np.uint64],
    dtypes: NDArray[np.uint8],
    base: int,
    base_dtype: int,
    columns: int,
    u: int,
    k: int,
    y: int,
    energy: int,
    workspace: int,
    workspace_size: int,
    stream: int,
) -> None:
    """Add Δ(Δᵀu) to ``y`` (T × k float64) for ``u`` (T × k float32) and, unless ``energy`` is 0,
    ‖Δ_t‖² to it (T float64)."""

def combine_needs(rows: int, targets: int) -> tuple[int, int]: ...
def combine(
    rows: NDArray[np.uint64],
    dtypes: NDArray[np.uint8],
    base: int,
    base_dtype: int,
    columns: int,
    weights: int,
    targets: int,
    out: NDArray[np.uint64],
    out_dtype: int,
    workspace: int,
    workspace_size: int,
    stream: int,
) -> None:
    """Write base + Σ_t w_t Δ_t for each row of ``weights`` (targets × T float64) to the device
    addresses ``out`` (a host array)."""
