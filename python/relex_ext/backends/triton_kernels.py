"""gram, power_step and combine in Triton: any GPU that Triton compiles for, no toolkit needed.

The contract is that of csrc/cuda/kernels.hpp. A tensor is cut into parts of PART columns counted
from its first; a part's sums are fp32 and go to a workspace, and the parts are added to the result
in fp64, one after the other. So neither the windows in which a tensor was streamed nor the order
in which programs ran can change a bit of the result. There are no atomics.

Deltas are formed in registers, in fp32, and never stored. Products of deltas go to the matrix
units as bf16: a delta is the exact sum of three bf16 numbers, and of two bf16 weights nearly
always just one (bf16_pieces). No product is ever left to tf32.
"""

# Kernels are written in Triton's own language: their arguments are neither Python's nor typed, and
# triton may be absent where mypy runs. What calls the launchers below is checked.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped, import-not-found, no-any-return, untyped-decorator"

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray

from relex_ext.backends.triton_combine import combine_block
from relex_ext.backends.triton_gram import (
    REPAIR_ROWS,
    gram_check,
    gram_high,
    gram_repair,
    gram_rest,
)
from relex_ext.backends.triton_power import VECTORS, add_parts, power_parts, power_parts_tiled
from relex_ext.backends.triton_values import (
    BF16,
    BLOCKS,
    DEPTH,
    F16,
    F32,
    INTERPRETED,
    MIXED,
    NONE,
    PART,
)

__all__ = [
    "BF16", "COMBINE", "DEPTH", "F16", "F32", "GRAM", "INTERPRETED", "MIXED", "NONE", "PART",
    "Rows", "Tuning", "combine", "combine_passes", "combine_weights", "gram", "power_step",
    "workspace_bytes",
]  # fmt: skip

_TUNE_FROM = 1 << 20  # columns: what takes less is not worth the timing, nor fit for it


@dataclass(frozen=True)
class Tuning:
    """A kernel with settings that are chosen by timing them, and what the choice depends on.

    A setting may say how many threads share a program, how far loads run ahead, and how many of
    combine's columns, which are independent, a program takes: nothing that changes the order of a
    sum. How a matrix product adds depends on its tile, which T fixes, and not on 4 warps or 8,
    which divide the tile among themselves and use the same instructions. What adds up across
    threads (‖Δ_t‖² in power_step, gram_repair) is not tuned. And all of it writes the same bytes
    however often it runs.
    """

    kernel: Any
    configs: Sequence[Any]
    """The first is the default."""
    key: Sequence[str]

    @functools.cached_property
    def timed(self) -> Any:
        """Made when first needed: the autotuner wants a GPU, which the interpreter has not."""
        key = ["ROWS", "BASE", "ALIGN", *self.key]
        return triton.autotune(list(self.configs), key=key, do_bench=_seconds)(self.kernel)

    def choose(self, columns: int) -> tuple[Any, dict[str, Any]]:
        """What to launch, and with which settings."""
        if not INTERPRETED.value and columns >= _TUNE_FROM:
            return self.timed, {}
        first = self.configs[0]
        warps_and_stages = {"num_warps": first.num_warps, "num_stages": first.num_stages}
        return self.kernel, {**first.kwargs, **warps_and_stages}


def _seconds(call: Callable[[], Any], quantiles: Sequence[float]) -> list[float]:
    """How long a launch takes. Triton's own benchmark would take a second, and 256 MB."""
    stream = torch.accelerator.current_stream()
    found = []
    for launches in (1, 4, 4, 4):  # the first compiles
        stream.synchronize()
        begun = time.perf_counter()
        for _ in range(launches):
            call()
        stream.synchronize()
        found.append((time.perf_counter() - begun) / launches)
    return [min(found)] * len(quantiles)


GRAM = Tuning(
    gram_high,
    [triton.Config({}, num_warps=w, num_stages=s) for w, s in ((4, 2), (4, 3), (8, 2), (8, 3))],
    ("TILE", "SINGLE"),
)
GRAM_WIDE = Tuning(  # tiles of 128 rows: four warps have too few registers for them
    gram_high,
    [triton.Config({}, num_warps=8, num_stages=s) for s in (2, 3)],
    ("TILE", "SINGLE"),
)
COMBINE = Tuning(
    combine_block,
    [
        triton.Config({"BLOCK": 1024, "TOGETHER": 4}, num_warps=4),
        triton.Config({"BLOCK": 1024, "TOGETHER": 8}, num_warps=4),
        triton.Config({"BLOCK": 2048, "TOGETHER": 4}, num_warps=8),
        triton.Config({"BLOCK": 512, "TOGETHER": 8}, num_warps=2),
    ],
    ("OUT", "OUT_ALIGN", "TARGETS"),
)

_WORKSPACE = 64 << 20  # bytes; one part of many rows may need more
_GRID_Y = 65535
_TARGETS = 4  # per pass of combine
_PADDED_ROWS = 8  # the largest TOGETHER

_LOCK = threading.Lock()


def _launch(kernel: Any, grid: Any, *args: Any, **settings: Any) -> None:
    """Queue a kernel. One at a time: what Triton compiles, tunes or interprets belongs to all
    threads."""
    with _LOCK:
        # Where a product and a sum are to be fused, the kernels say so themselves.
        kernel[grid](*args, **settings, enable_fp_fusion=False)


@dataclass(frozen=True)
class Rows:
    """The strips of one tensor, as kernels find them."""

    table: torch.Tensor
    """int64, on the device: T addresses, the base's, T dtype codes."""
    count: int
    columns: int
    dtype: int
    """The rows' code, or MIXED."""
    base_dtype: int
    """The base's code, or NONE."""
    align: int
    """Every address is a multiple of this."""

    @property
    def constants(self) -> dict[str, int]:
        """What every kernel over the strips is compiled for."""
        return {"ROWS": self.dtype, "BASE": self.base_dtype, "ALIGN": self.align}

    @property
    def stages(self) -> int:
        """How far loads run ahead where that is not tuned. Each stage of rows of several dtypes
        holds three tiles in shared memory."""
        return 1 if self.dtype == MIXED.value else 2


def _power_of_2(n: int) -> int:
    """The least that is not below n."""
    return 1 << (n - 1).bit_length()


def _tile(rows: int) -> int:
    """Rows per tile: all of them up to 128. It decides how products add: it depends on T alone."""
    return max(16, _power_of_2(rows)) if rows <= 128 else 64


def _gram_bytes(rows: int) -> int:
    """Of workspace per part: sums, flags of blocks, and whether it is unsafe."""
    tiles: int = triton.cdiv(rows, _tile(rows))
    return 8 * rows * rows + BLOCKS.value * tiles * tiles + 4


def _power_bytes(rows: int, vectors: int) -> int:
    return 4 * rows * (vectors + 1)


def _parts(columns: int, bytes_per_part: int) -> tuple[int, int]:
    """How many parts there are, and how many of them a launch takes."""
    parts: int = triton.cdiv(columns, PART.value)
    return parts, min(parts, max(1, _WORKSPACE // bytes_per_part), _GRID_Y)


def workspace_bytes(rows: int, columns: int, vectors: int) -> int:
    """Device memory that gram and power_step take for a time, beside what they are given."""
    each = (_gram_bytes(rows), _power_bytes(rows, vectors))
    return max(_parts(columns, one)[1] * one for one in each)


def _add_up(partials: torch.Tensor, sums: torch.Tensor, parts: int, lower: bool = False) -> None:
    size, block = sums.numel(), 64
    _launch(
        add_parts, (triton.cdiv(size, block),), partials, sums, size, sums.shape[0], parts,
        LOWER=lower, BLOCK=block, TOGETHER=16, num_warps=2,
    )  # fmt: skip


def gram(rows: Rows, sums: torch.Tensor) -> None:
    """Add ΔΔᵀ's lower triangle to ``sums`` (T, T)."""
    count, columns, tile = rows.count, rows.columns, _tile(rows.count)
    rest = min(tile, 64)
    tiles, rests, repairs = (triton.cdiv(count, t) for t in (tile, rest, REPAIR_ROWS.value))
    high, settings = (GRAM_WIDE if tile > 64 else GRAM).choose(columns)
    bf16 = rows.dtype == BF16.value and rows.base_dtype in (BF16.value, NONE.value)
    parts, most = _parts(columns, _gram_bytes(count))
    partials = sums.new_empty(most * count * count)
    flags = sums.new_empty(most * tiles * tiles * BLOCKS.value, dtype=torch.int8)
    unsafe = sums.new_empty(most, dtype=torch.int32)
    for first in range(0, parts, most or 1):
        now = min(most, parts - first)
        if bf16:
            _launch(
                high, (tiles * tiles, now),
                rows.table, partials, flags, count, columns, first, 1.0,
                TILE=tile, SINGLE=tiles == 1, **rows.constants, **settings,
            )  # fmt: skip
        _launch(
            gram_rest, (rests * rests, now),
            rows.table, partials, flags, count, columns, first, 1.0,
            TILE=rest, SINGLE=rests == 1, FLAG_TILE=tile if bf16 else 0, **rows.constants,
            num_warps=8 if rest == 64 else 4, num_stages=rows.stages,
        )  # fmt: skip
        strips = (count, columns, first)
        _launch(gram_check, (now,), rows.table, partials, unsafe, *strips, **rows.constants)
        _launch(
            gram_repair, (repairs * repairs, now),
            rows.table, partials, unsafe, *strips, **rows.constants,
        )  # fmt: skip
        _add_up(partials, sums, now, lower=True)


def power_step(
    rows: Rows, u: torch.Tensor, sums: torch.Tensor, squares: torch.Tensor | None
) -> None:
    """Add Δ(Δᵀu) to ``sums`` (T, k) for ``u`` (T, k), and ‖Δ_t‖² to ``squares`` (T)."""
    count, columns, tile, k = rows.count, rows.columns, _tile(rows.count), u.shape[1]
    kernel = power_parts if count <= tile else power_parts_tiled
    parts, most = _parts(columns, _power_bytes(count, k))
    partials, energies = u.new_empty(most * count * k), u.new_empty(most * count)
    for first in range(0, parts, most or 1):
        now = min(most, parts - first)
        partials.zero_()
        energies.zero_()
        for q in range(0, k, VECTORS.value):
            _launch(
                kernel, (now,),
                rows.table, u, partials, energies, count, k, q, columns, first, 1.0,
                TILE=tile, WIDTH=32 if tile > 64 else DEPTH.value,
                ENERGY=q == 0 and squares is not None, **rows.constants,
                num_warps=8 if tile > 64 else 4, num_stages=rows.stages,
            )  # fmt: skip
        _add_up(partials, sums, now)
        if squares is not None:
            _add_up(energies, squares, now)


def combine_passes(targets: int) -> Iterator[slice]:
    """Targets that one pass over the strips writes together."""
    for q in range(0, targets, _TARGETS):
        yield slice(q, min(q + _TARGETS, targets))


def combine_weights(weights: NDArray[np.float64], out_dtype: int) -> NDArray[Any]:
    """(targets, T) → (T, targets) as combine reads them: in the sums' type, zeros around."""
    targets, count = weights.shape
    shape = (triton.cdiv(count, _PADDED_ROWS) * _PADDED_ROWS, _power_of_2(targets))
    padded = np.zeros(shape, np.float64 if out_dtype == F32.value else np.float32)
    padded[:count, :targets] = weights.T
    return padded


def combine(
    rows: Rows, weights: torch.Tensor, out: torch.Tensor, out_dtype: int, out_align: int
) -> None:
    """Write one pass's targets. ``weights``: combine_weights(), ``out``: int64 addresses, both on
    the device; ``out_align``: every address in ``out`` is a multiple of it."""
    if rows.columns == 0:
        return
    kernel, settings = COMBINE.choose(rows.columns)
    _launch(
        kernel, lambda meta: (triton.cdiv(rows.columns, meta["BLOCK"]),),
        rows.table, weights, out, rows.count, rows.columns, out.numel(),
        OUT=out_dtype, OUT_ALIGN=out_align, TARGETS=weights.shape[1], **rows.constants, **settings,
    )  # fmt: skip
