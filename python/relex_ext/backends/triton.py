"""The Triton kernels of whatever GPU torch sees: NVIDIA's without nvcc, AMD's, Intel's."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relex_ext import _core
from relex_ext.backends import triton_kernels as kernels
from relex_ext.backends.contract import Strips
from relex_ext.backends.device import DeviceBackend
from relex_ext.dtypes import ITEM_SIZE, NAMES
from relex_ext.errors import InputError

_INTERPRETED = bool(kernels.INTERPRETED.value)


def find_device() -> torch.device:
    """The GPU to use, or the processor where TRITON_INTERPRET=1 asked for Triton's interpreter."""
    if _INTERPRETED:
        return torch.device("cpu")
    for kind in ("cuda", "xpu"):  # AMD's call themselves cuda, too
        runtime = getattr(torch, kind, None)
        if runtime is not None and runtime.is_available():
            return torch.device(kind, runtime.current_device())
    raise InputError("backend: expected a GPU for triton, found none")


class TritonBackend(DeviceBackend):
    """Addresses in Strips are ``device``'s; each is a multiple of its element's size."""

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(find_device() if device is None else device)
        if (self.device.type == "cpu") != _INTERPRETED:
            found = "TRITON_INTERPRET=1" if _INTERPRETED else "none set"
            raise InputError(
                f"backend: expected TRITON_INTERPRET=1 for triton on cpu alone, found {found} "
                f"for {self.device}"
            )
        model = "interpreter" if _INTERPRETED else self.runtime.get_device_name(self.device)
        self.name = f"triton ({model})"

    def gram(self, strips: Strips, gram: Any) -> None:
        rows = self._rows(strips)
        _expect("gram", gram, (rows.count, rows.count))
        with self._current():
            kernels.gram(rows, gram)

    def power_step(
        self, strips: Strips, u: NDArray[np.float32], y: Any, energy: Any | None
    ) -> None:
        rows = self._rows(strips)
        if u.ndim != 2 or not 1 <= u.shape[1] <= _core.MAX_VECTORS:
            raise ValueError(f"u: expected (T, 1 to {_core.MAX_VECTORS}), found {u.shape}")
        _expect("y", y, (rows.count, u.shape[1]))
        _expect("u", u, (rows.count, u.shape[1]))
        if energy is not None:
            _expect("energy", energy, (rows.count,))
        with self._current():
            kernels.power_step(rows, self.to_device(u), y, energy)

    def combine(
        self,
        strips: Strips,
        weights: NDArray[np.float64],
        out: NDArray[np.uint64],
        out_dtype: int,
    ) -> None:
        rows = self._rows(strips)
        _expect("weights", weights, (len(out), rows.count))
        align = _alignment([(address, out_dtype) for address in out.tolist()])
        with self._current():
            for some in kernels.combine_passes(len(out)):
                kernels.combine(
                    rows,
                    self.to_device(kernels.combine_weights(weights[some], out_dtype)),
                    self.to_device(out[some].view(np.int64)),
                    out_dtype,
                    align,
                )

    def _current(self) -> AbstractContextManager[Any]:
        """Triton launches on the current device."""
        if _INTERPRETED:
            return nullcontext()
        context: AbstractContextManager[Any] = self.runtime.device(self.device)
        return context

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
