"""The Triton kernels of whatever GPU torch sees: NVIDIA's without nvcc, AMD's, Intel's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relex_ext import _core
from relex_ext.backends import triton_kernels as kernels
from relex_ext.backends.contract import Strips
from relex_ext.backends.device import Accelerator, DeviceBackend
from relex_ext.dtypes import ITEM_SIZE, NAMES
from relex_ext.errors import InputError

_INTERPRETED = bool(kernels.INTERPRETED.value)


class TritonBackend(DeviceBackend):
    """Addresses in Strips are ``device``'s; each is a multiple of its element's size.

    On ``cpu`` the kernels are interpreted, if TRITON_INTERPRET=1 was set when triton was imported.
    """

    isa = "triton"

    def __init__(self, device: torch.device, accelerator: Accelerator | None = None) -> None:
        super().__init__(device, accelerator)
        if (device.type == "cpu") != _INTERPRETED:
            expected = "a GPU" if device.type == "cpu" else "cpu, since TRITON_INTERPRET=1 is set"
            raise InputError(f"backend triton: expected {expected}, found {device}")
        self.name = f"triton ({'interpreter' if _INTERPRETED else self.accelerator.name})"

    def workspace_bytes(self, rows: int, columns: int, vectors: int, targets: int) -> int:
        return kernels.workspace_bytes(rows, columns, vectors)

    def gram(self, strips: Strips, gram: Any) -> None:
        with self._launching():
            rows = self._rows(strips)
            _expect("gram", gram, (rows.count, rows.count))
            kernels.gram(rows, gram)

    def power_step(
        self, strips: Strips, u: NDArray[np.float32], y: Any, energy: Any | None
    ) -> None:
        with self._launching():
            rows = self._rows(strips)
            if u.ndim != 2 or not 1 <= u.shape[1] <= _core.MAX_VECTORS:
                raise ValueError(f"u: expected (T, 1 to {_core.MAX_VECTORS}), found {u.shape}")
            _expect("u", u, (rows.count, u.shape[1]))
            _expect("y", y, (rows.count, u.shape[1]))
            if energy is not None:
                _expect("energy", energy, (rows.count,))
            kernels.power_step(rows, self.to_device(u), y, energy)

    def combine(
        self,
        strips: Strips,
        weights: NDArray[np.float64],
        out: NDArray[np.uint64],
        out_dtype: int,
    ) -> None:
        with self._launching():
            rows = self._rows(strips)
            _expect("weights", weights, (len(out), rows.count))
            align = _alignment([(address, out_dtype) for address in out.tolist()])
            for some in kernels.combine_passes(len(out)):
                there = self.to_device(kernels.combine_weights(weights[some], out_dtype))
                addresses = self.to_device(out[some].view(np.int64))
                kernels.combine(rows, there, addresses, out_dtype, align)

    @contextmanager
    def _launching(self) -> Iterator[None]:
        """Triton launches on the current device, in its current stream."""
        with self.accelerator.reporting(), self.accelerator.current():
            yield

    def _rows(self, strips: Strips) -> kernels.Rows:
        addresses, codes = strips.rows.tolist(), strips.dtypes.tolist()
        if not 1 <= len(addresses) <= _core.MAX_ROWS or len(codes) != len(addresses):
            raise ValueError(
                f"rows: expected 1 to {_core.MAX_ROWS} with as many dtypes, "
                f"found {len(addresses)} with {len(codes)}"
            )
        strip_list = list(zip(addresses, codes, strict=True))
        if strips.base:
            strip_list.append((strips.base, strips.base_dtype))
        table = np.array([*addresses, strips.base, *codes], np.int64)
        return kernels.Rows(
            table=self.to_device(table),
            count=len(addresses),
            columns=strips.columns,
            dtype=codes[0] if len(set(codes)) == 1 else kernels.MIXED.value,
            base_dtype=strips.base_dtype if strips.base else kernels.NONE.value,
            align=_alignment(strip_list),
        )


def _alignment(strips: list[tuple[int, int]]) -> int:
    """The power of two, at most 16, of which all addresses are multiples.

    A GPU cannot read an element across its natural boundary: that is a ValueError here and would
    be the end of the process's GPU context there.
    """
    bits = 16
    for address, dtype in strips:
        size = ITEM_SIZE[NAMES[dtype]]
        if address % size:
            raise ValueError(f"address: expected a multiple of {size}, found {address:#x}")
        bits |= address
    return bits & -bits


def _expect(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {tuple(array.shape)}")
