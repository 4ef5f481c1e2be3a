"""The compiled CUDA kernels, in torch's memory and on torch's streams."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relex_ext.backends.contract import Strips
from relex_ext.backends.device import Accelerator, DeviceBackend

WORKSPACE = 256 << 20
"""Bytes of workspace at most, unless an operation cannot do with less."""


class CudaBackend(DeviceBackend):
    """``kernels``: relex_ext._cuda, or the same sources compiled for the processor."""

    isa = "cuda"

    def __init__(
        self, device: torch.device, kernels: Any = None, accelerator: Accelerator | None = None
    ) -> None:
        super().__init__(device, accelerator)
        self._kernels = import_module("relex_ext._cuda") if kernels is None else kernels
        self._workspace = torch.empty(0, dtype=torch.uint8, device=device)
        self.name = f"cuda ({self.accelerator.name})"

    def workspace_bytes(self, rows: int, columns: int, vectors: int, targets: int) -> int:
        kernels = self._kernels
        needs = (
            kernels.gram_needs(rows, columns),
            kernels.power_step_needs(rows, columns, vectors),
            kernels.combine_needs(rows, targets) if targets else (0, 0),
        )
        return max(_bounded(need) for need in needs)

    def reserve(self, nbytes: int) -> None:
        if self._workspace.numel() < nbytes:
            self._workspace = self.accelerator.empty(nbytes, self.accelerator.current_stream())

    def gram(self, strips: Strips, gram: Any) -> None:
        needs = self._kernels.gram_needs(len(strips.rows), strips.columns)
        self._launch(self._kernels.gram, strips, needs, gram.data_ptr())

    def power_step(
        self, strips: Strips, u: NDArray[np.float32], y: Any, energy: Any | None
    ) -> None:
        k = u.shape[1]
        needs = self._kernels.power_step_needs(len(strips.rows), strips.columns, k)
        there = self.to_device(u)
        squares = 0 if energy is None else energy.data_ptr()
        self._launch(
            self._kernels.power_step, strips, needs, there.data_ptr(), k, y.data_ptr(), squares
        )

    def combine(
        self,
        strips: Strips,
        weights: NDArray[np.float64],
        out: NDArray[np.uint64],
        out_dtype: int,
    ) -> None:
        targets = len(weights)
        needs = self._kernels.combine_needs(len(strips.rows), targets)
        there = self.to_device(weights)
        self._launch(
            self._kernels.combine, strips, needs, there.data_ptr(), targets, out, out_dtype
        )

    def _launch(
        self, operation: Callable[..., None], s: Strips, needs: tuple[int, int], *more: Any
    ) -> None:
        """Tensors that are dropped after a launch are safe: torch hands their memory out again in
        the order of this stream."""
        with self.accelerator.reporting(), self.accelerator.current():
            self.reserve(_bounded(needs))
            operation(
                s.rows, s.dtypes, s.base, s.base_dtype, s.columns, *more,
                self._workspace.data_ptr(), self._workspace.numel(),
                self.accelerator.stream_handle(),
            )  # fmt: skip


def _bounded(needs: tuple[int, int]) -> int:
    least, most = needs
    return max(least, min(most, WORKSPACE))
