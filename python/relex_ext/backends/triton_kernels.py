"""gram, power_step and combine in Triton: any GPU that Triton compiles for, no toolkit needed.

The contract is that of csrc/cuda/kernels.hpp. A tensor is cut into parts of PART columns counted
from its first; a part's sums are fp32 and go to a workspace, and the parts are added to the result
in fp64, one after the other. So neither the windows in which a tensor was streamed nor the order
in which programs ran can change a bit of the result. There are no atomics.

Deltas are formed in registers, in fp32, and never stored. Products of deltas go to the matrix
units as bf16: a delta is the exact sum of three bf16 numbers, and of two bf16 weights nearly
always just one (_pieces). No product is ever left to tf32.
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
import triton.language as tl
from numpy.typing import NDArray

# ---- what fixes the order of sums --------------------------------------------------------------

# Columns per partial sum; divides _core.SEGMENT, at which windows begin.
PART = tl.constexpr(4096)

# Columns that one matrix product sums before its result is added, correctly rounded, to the sums
# of the part. Matrix units cut off low bits where an fp32 addition rounds, so a sum left to them
# shrinks with its length: by about 1e-7 in 64 columns, by 1e-5 in a part.
DEPTH = tl.constexpr(64)
BLOCKS = tl.constexpr(PART.value // DEPTH.value)

# Columns of u that power_step takes at once: matrix units want no fewer.
VECTORS = tl.constexpr(16)

# Squares below 2^-126 lose bits and below 2^-149 vanish: a row whose squares sum to less than this
# may hold such ones (csrc/cpu/gram_fp64.cpp).
TINY = tl.constexpr(2.0**-90)

# Diagonal elements, and columns of a row, that gram_check looks at together.
CHECKED_ROWS = tl.constexpr(128)
CHECKED = tl.constexpr(1024)

# The tiles in which a part is computed again in fp64.
REPAIR_ROWS = tl.constexpr(16)
REPAIR_COLUMNS = tl.constexpr(32)

# Codes of relex_ext.dtypes, and two more: rows of several dtypes, and no base.
F32 = tl.constexpr(0)
F16 = tl.constexpr(1)
BF16 = tl.constexpr(2)
MIXED = tl.constexpr(3)
NONE = tl.constexpr(4)


# ---- helpers: values and deltas ----------------------------------------------------------------


@triton.jit
def _pointers(address, element: tl.constexpr, ALIGN: tl.constexpr):
    """Addresses of strips as pointers. The launcher found all of them to be multiples of ALIGN.
    The hint has to be here: the compiler knows nothing about what was an integer."""
    pointers = address.to(tl.pointer_type(element))
    if len(address.shape) == 2:
        pointers = tl.multiple_of(pointers, (ALIGN, ALIGN))
    else:
        pointers = tl.multiple_of(pointers, (ALIGN,))
    return pointers


@triton.jit
def _f32_values(address, at, mask, ALIGN: tl.constexpr):
    return tl.load(_pointers(address, tl.float32, ALIGN) + at, mask=mask, other=0.0)


@triton.jit
def _f16_values(address, at, mask, ALIGN: tl.constexpr):
    values = tl.load(_pointers(address, tl.float16, ALIGN) + at, mask=mask, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _bf16_values(address, at, mask, ALIGN: tl.constexpr):
    # As words: the interpreter's own conversion is wrong for subnormal numbers.
    words = tl.load(_pointers(address, tl.uint16, ALIGN) + at, mask=mask, other=0)
    return (words.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def _values(address, dtype, at, mask, DTYPE: tl.constexpr, ALIGN: tl.constexpr):
    """Elements `at` of the strips at `address` as float32, exactly; zeros where masked."""
    if DTYPE == F32:
        values = _f32_values(address, at, mask, ALIGN)
    elif DTYPE == F16:
        values = _f16_values(address, at, mask, ALIGN)
    elif DTYPE == BF16:
        values = _bf16_values(address, at, mask, ALIGN)
    else:  # each row as what it is: three loads, of which two fetch nothing
        values = _f32_values(address, at, mask & (dtype == F32), ALIGN)
        narrow = _f16_values(address, at, mask & (dtype == F16), ALIGN)
        values = tl.where(dtype == F16, narrow, values)
        narrow = _bf16_values(address, at, mask & (dtype == BF16), ALIGN)
        values = tl.where(dtype == BF16, narrow, values)
    return values


@triton.jit
def _one(x):
    """A block of one x. The interpreter cannot mask a block with a scalar's comparison."""
    return x + tl.arange(0, 1)


@triton.jit
def _rows(table, rows, t, ROWS: tl.constexpr):
    """Of rows `t`: which exist, their addresses, and their dtype codes where these differ."""
    inside = t < rows
    address = tl.load(table + t, mask=inside, other=0)
    dtype = t
    if ROWS == MIXED:
        dtype = tl.load(table + rows + 1 + t, mask=inside, other=0).to(tl.int32)
    return inside, address, dtype


@triton.jit
def _origin(table, rows):
    """The base's address."""
    return tl.load(table + _one(rows))


@triton.jit
def _deltas(
    inside, address, dtype, origin, at, columns,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr, TYPE: tl.constexpr = tl.float32,
):  # fmt: skip
    """Δ of a tile of rows in columns `at`; zeros in rows and columns that do not exist."""
    # Addresses are arguments: loaded here, in the loops over columns, they would hold up the loads
    # of values, which run ahead.
    column = at < columns
    mask = inside[:, None] & column[None, :]
    values = _values(address[:, None], dtype[:, None], at[None, :], mask, ROWS, ALIGN).to(TYPE)
    if BASE != NONE:
        base = _values(origin, 0, at, column, BASE, ALIGN).to(TYPE)
        values = tl.where(inside[:, None], values - base[None, :], 0.0)
    return values


# ---- helpers: products -------------------------------------------------------------------------


@triton.jit
def _bf16_word(x):
    """Rounded to nearest even, as the upper half of 32 bits (relex::float_to_bf16)."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits | 0x400000) & 0xFFFF0000, rounded)


# Without a GPU the functions above and below are interpreted, if TRITON_INTERPRET=1 was set when
# triton was imported: slow, in numpy, on tensors in host memory.
INTERPRETED = tl.constexpr(not isinstance(_bf16_word, triton.JITFunction))


@triton.jit
def _piece(x):
    """bf16(x), an operand of matrix products. The interpreter, which has no bf16, is given the
    same number in float32."""
    return _bf16_word(x).to(tl.float32, bitcast=True) if INTERPRETED else x.to(tl.bfloat16)


@triton.jit
def _pieces(x):
    """x = high + middle + low, exactly: 24 bits are three times 8, above fp32's smallest."""
    high = _piece(x)
    rest = x - high.to(tl.float32)
    middle = _piece(rest)
    low = _piece(rest - middle.to(tl.float32))
    return high, middle, low


@triton.jit
def _any_inexact(x):
    """Whether some x is no bf16 number: is more than its high piece."""
    bits = x.to(tl.int32, bitcast=True) & 0xFFFF
    return (tl.max(tl.max(bits, axis=1), axis=0) != 0).to(tl.int8)


@triton.jit
def _dot(a, b, c):
    # ieee: what the interpreter is given as float32 stays float32. bf16 is bf16 either way.
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def _add(sums, product, one):
    """sums + product, rounded. `one` is 1, which the compiler does not know: it would otherwise
    merge the addition into the product, whose units cut off instead (see DEPTH)."""
    return tl.fma(product, one, sums)


@triton.jit
def _small_terms(a, b):
    """a bᵀ but for the product of the high pieces. What is below 2^-23 of the whole is left out,
    and smaller terms come first."""
    a_high, a_middle, a_low = _pieces(a)
    b_high, b_middle, b_low = _pieces(b)
    sums = tl.zeros([a.shape[0], b.shape[0]], tl.float32)
    sums = _dot(a_middle, tl.trans(b_middle), sums)
    sums = _dot(a_low, tl.trans(b_high), sums)
    sums = _dot(a_high, tl.trans(b_low), sums)
    sums = _dot(a_middle, tl.trans(b_high), sums)
    return _dot(a_high, tl.trans(b_middle), sums)


@triton.jit
def _product(a_high, a_middle, a_low, inexact, b_high, b_middle, b_low, sums):
    """sums + a b. `a` are deltas, all of them bf16 unless `inexact`; `b` are any numbers."""
    sums = _dot(a_high, b_low, sums)
    if inexact != 0:
        sums = _dot(a_middle, b_middle, sums)
        sums = _dot(a_low, b_high, sums)
        sums = _dot(a_middle, b_high, sums)
    sums = _dot(a_high, b_middle, sums)
    return _dot(a_high, b_high, sums)


# ---- kernels: gram -----------------------------------------------------------------------------


@triton.jit
def _pair(tiles):
    """The tile of G that this program computes: its row and its column."""
    return tl.program_id(0) // tiles, tl.program_id(0) % tiles


@triton.jit(do_not_specialize=["rows", "first"])
def gram_high(
    table, partials, flags, rows, columns, first, one,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr,
    TILE: tl.constexpr, SINGLE: tl.constexpr,
):  # fmt: skip
    """Each part's lower triangle of ΔΔᵀ, of the deltas' high pieces, a tile a program, to partials
    (parts, rows, rows). flags (parts, tiles, tiles, BLOCKS): blocks that have more than these."""
    tiles = tl.cdiv(rows, TILE)
    tile_i, tile_j = _pair(tiles)
    if tile_j > tile_i:
        return
    part = tl.program_id(1).to(tl.int64)
    start = (first + part) * PART
    i = tile_i * TILE + tl.arange(0, TILE)
    j = tile_j * TILE + tl.arange(0, TILE)
    in_i, address_i, dtype_i = _rows(table, rows, i, ROWS)
    in_j, address_j, dtype_j = _rows(table, rows, j, ROWS)
    origin = _origin(table, rows)
    flags += (part * tiles * tiles + tl.program_id(0)) * BLOCKS
    sums = tl.zeros([TILE, TILE], tl.float32)
    for block in range(0, tl.cdiv(tl.minimum(columns - start, PART), DEPTH)):
        at = start + block * DEPTH + tl.arange(0, DEPTH)
        a = _deltas(in_i, address_i, dtype_i, origin, at, columns, ROWS, BASE, ALIGN)
        b = a
        if not SINGLE:
            b = _deltas(in_j, address_j, dtype_j, origin, at, columns, ROWS, BASE, ALIGN)
        zeros = tl.zeros([TILE, TILE], tl.float32)
        sums = _add(sums, _dot(_piece(a), tl.trans(_piece(b)), zeros), one)
        tl.store(flags + block, _any_inexact(a) | _any_inexact(b))
    to = partials + part * rows * rows + i[:, None] * rows + j[None, :]
    tl.store(to, sums.to(tl.float64), mask=(i[:, None] < rows) & (j[None, :] <= i[:, None]))


@triton.jit(do_not_specialize=["rows", "first"])
def gram_rest(
    table, partials, flags, rows, columns, first, one,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr,
    TILE: tl.constexpr, SINGLE: tl.constexpr, FLAG_TILE: tl.constexpr,
):  # fmt: skip
    """What gram_high leaves out, of the blocks that it flagged with tiles of FLAG_TILE rows, added
    to partials. FLAG_TILE = 0: everything, without gram_high."""
    tile_i, tile_j = _pair(tl.cdiv(rows, TILE))
    if tile_j > tile_i:
        return
    part = tl.program_id(1).to(tl.int64)
    start = (first + part) * PART
    i = tile_i * TILE + tl.arange(0, TILE)
    j = tile_j * TILE + tl.arange(0, TILE)
    in_i, address_i, dtype_i = _rows(table, rows, i, ROWS)
    in_j, address_j, dtype_j = _rows(table, rows, j, ROWS)
    origin = _origin(table, rows)
    sums = tl.zeros([TILE, TILE], tl.float32)
    to = partials + part * rows * rows + i[:, None] * rows + j[None, :]
    mask = (i[:, None] < rows) & (j[None, :] <= i[:, None])
    blocks = tl.cdiv(tl.minimum(columns - start, PART), DEPTH)
    if FLAG_TILE == 0:
        for block in range(0, blocks):
            at = start + block * DEPTH + tl.arange(0, DEPTH)
            a = _deltas(in_i, address_i, dtype_i, origin, at, columns, ROWS, BASE, ALIGN)
            b = a
            if not SINGLE:
                b = _deltas(in_j, address_j, dtype_j, origin, at, columns, ROWS, BASE, ALIGN)
            product = _dot(_piece(a), tl.trans(_piece(b)), _small_terms(a, b))
            sums = _add(sums, product, one)
        tl.store(to, sums.to(tl.float64), mask=mask)
    else:
        tiles = tl.cdiv(rows, FLAG_TILE)
        pair = tile_i * TILE // FLAG_TILE * tiles + tile_j * TILE // FLAG_TILE
        flags += (part * tiles * tiles + pair) * BLOCKS
        for block in range(0, blocks):
            if tl.load(flags + block) != 0:
                at = start + block * DEPTH + tl.arange(0, DEPTH)
                a = _deltas(in_i, address_i, dtype_i, origin, at, columns, ROWS, BASE, ALIGN)
                b = a
                if not SINGLE:
                    b = _deltas(in_j, address_j, dtype_j, origin, at, columns, ROWS, BASE, ALIGN)
                sums = _add(sums, _small_terms(a, b), one)
        before = tl.load(to, mask=mask, other=0.0)
        tl.store(to, before + sums.to(tl.float64), mask=mask)


@triton.jit
def _moves(
    table, rows, t, start, columns,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """1 where row t differs from the base anywhere in the part at `start`, else 0."""
    _, address, dtype = _rows(table, rows, _one(t), ROWS)
    origin = _origin(table, rows)
    moved = tl.zeros([CHECKED], tl.int32)
    for c in range(0, PART, CHECKED):
        at = start + c + tl.arange(0, CHECKED)
        values = _values(address, dtype, at, at < columns, ROWS, ALIGN)
        if BASE != NONE:
            values -= _values(origin, 0, at, at < columns, BASE, ALIGN)
        moved |= (values != 0.0).to(tl.int32)
    return tl.max(moved, axis=0)


@triton.jit(do_not_specialize=["rows", "first"])
def gram_check(
    table, partials, unsafe, rows, columns, first,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """unsafe[part]: whether squares have left fp32's range, so that some diagonal element is not
    finite, or tiny though its row moves."""
    part = tl.program_id(0).to(tl.int64)
    start = (first + part) * PART
    diagonal = partials + part * rows * rows
    found = tl.zeros([], tl.int32)
    for t0 in range(0, rows, CHECKED_ROWS):
        t = t0 + tl.arange(0, CHECKED_ROWS)
        squares = tl.load(diagonal + t * (rows + 1), mask=t < rows, other=1.0)
        safe = (squares >= TINY) & (squares < float("inf"))
        if tl.min(safe.to(tl.int32), axis=0) == 0:
            for row in range(t0, tl.minimum(t0 + CHECKED_ROWS, rows)):
                square = tl.load(diagonal + row * (rows + 1))
                if square < TINY:
                    found |= _moves(table, rows, row, start, columns, ROWS, BASE, ALIGN)
                else:  # large, infinite or NaN
                    found |= (square < float("inf")).to(tl.int32) ^ 1
    tl.store(unsafe + part, found)


@triton.jit(do_not_specialize=["rows", "first"])
def gram_repair(
    table, partials, unsafe, rows, columns, first,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Parts that are unsafe, once more, in fp64. Slow, and rare."""
    tile_i, tile_j = _pair(tl.cdiv(rows, REPAIR_ROWS))
    part = tl.program_id(1).to(tl.int64)
    if (tile_j <= tile_i) & (tl.load(unsafe + part) != 0):
        start = (first + part) * PART
        i = tile_i * REPAIR_ROWS + tl.arange(0, REPAIR_ROWS)
        j = tile_j * REPAIR_ROWS + tl.arange(0, REPAIR_ROWS)
        in_i, address_i, dtype_i = _rows(table, rows, i, ROWS)
        in_j, address_j, dtype_j = _rows(table, rows, j, ROWS)
        origin = _origin(table, rows)
        sums = tl.zeros([REPAIR_ROWS, REPAIR_ROWS], tl.float64)
        for c in range(0, PART, REPAIR_COLUMNS):
            at = start + c + tl.arange(0, REPAIR_COLUMNS)
            a = _deltas(
                in_i, address_i, dtype_i, origin, at, columns, ROWS, BASE, ALIGN, tl.float64
            )
            b = _deltas(
                in_j, address_j, dtype_j, origin, at, columns, ROWS, BASE, ALIGN, tl.float64
            )
            sums += tl.sum(a[:, None, :] * b[None, :, :], axis=2)
        to = partials + part * rows * rows + i[:, None] * rows + j[None, :]
        tl.store(to, sums, mask=(i[:, None] < rows) & (j[None, :] <= i[:, None]))


# ---- kernels: power_step -----------------------------------------------------------------------


@triton.jit
def _vectors(u, t, q, inside, k):
    """Pieces of rows t and columns q of u (rows, k); zeros beyond."""
    mask = inside[:, None] & (q < k)[None, :]
    return _pieces(tl.load(u + t[:, None] * k + q[None, :], mask=mask, other=0.0))


@triton.jit
def _project(high, middle, low, inexact, u_high, u_middle, u_low):
    """Δᵀu of a tile of rows."""
    zeros = tl.zeros([high.shape[1], u_high.shape[1]], tl.float32)
    return _product(
        tl.trans(high), tl.trans(middle), tl.trans(low), inexact, u_high, u_middle, u_low, zeros
    )


@triton.jit(do_not_specialize=["rows", "k", "q0", "first"])
def power_parts(
    table, u, partials, energies, rows, k, q0, columns, first, one,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr, ENERGY: tl.constexpr,
):  # fmt: skip
    """Each part's Δ(Δᵀu), for VECTORS columns of u from q0 on, to partials (parts, rows, k), and
    ‖Δ_t‖² to energies (parts, rows), where all rows fit a tile: each delta is read once."""
    part = tl.program_id(0).to(tl.int64)
    start = (first + part) * PART
    t = tl.arange(0, TILE)
    q = q0 + tl.arange(0, VECTORS)
    inside, address, dtype = _rows(table, rows, t, ROWS)
    origin = _origin(table, rows)
    u_high, u_middle, u_low = _vectors(u, t, q, inside, k)
    y = tl.zeros([TILE, VECTORS], tl.float32)
    energy = tl.zeros([TILE], tl.float32)
    for block in range(0, tl.cdiv(tl.minimum(columns - start, PART), WIDTH)):
        at = start + block * WIDTH + tl.arange(0, WIDTH)
        deltas = _deltas(inside, address, dtype, origin, at, columns, ROWS, BASE, ALIGN)
        inexact = _any_inexact(deltas)
        high, middle, low = _pieces(deltas)
        z = _project(high, middle, low, inexact, u_high, u_middle, u_low)
        z_high, z_middle, z_low = _pieces(z)
        zeros = tl.zeros([TILE, VECTORS], tl.float32)
        product = _product(high, middle, low, inexact, z_high, z_middle, z_low, zeros)
        y = _add(y, product, one)
        if ENERGY:
            energy += tl.sum(deltas * deltas, axis=1)
    to = partials + part * rows * k + t[:, None] * k + q[None, :]
    tl.store(to, y, mask=inside[:, None] & (q < k)[None, :])
    if ENERGY:
        tl.store(energies + part * rows + t, energy, mask=inside)


@triton.jit(do_not_specialize=["rows", "k", "q0", "first"])
def power_parts_tiled(
    table, u, partials, energies, rows, k, q0, columns, first, one,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr,
    TILE: tl.constexpr, WIDTH: tl.constexpr, ENERGY: tl.constexpr,
):  # fmt: skip
    """power_parts for any number of rows: a block is read for Δᵀu and again, from the cache, for
    the rest. Between blocks, sums wait in partials and energies, zeros at first."""
    part = tl.program_id(0).to(tl.int64)
    start = (first + part) * PART
    q = q0 + tl.arange(0, VECTORS)
    origin = _origin(table, rows)
    for block in range(0, tl.cdiv(tl.minimum(columns - start, PART), WIDTH)):
        at = start + block * WIDTH + tl.arange(0, WIDTH)
        z = tl.zeros([WIDTH, VECTORS], tl.float32)
        for t0 in range(0, rows, TILE):
            t = t0 + tl.arange(0, TILE)
            inside, address, dtype = _rows(table, rows, t, ROWS)
            deltas = _deltas(inside, address, dtype, origin, at, columns, ROWS, BASE, ALIGN)
            inexact = _any_inexact(deltas)
            high, middle, low = _pieces(deltas)
            u_high, u_middle, u_low = _vectors(u, t, q, inside, k)
            z = _add(z, _project(high, middle, low, inexact, u_high, u_middle, u_low), one)
        z_high, z_middle, z_low = _pieces(z)
        for t0 in range(0, rows, TILE):
            t = t0 + tl.arange(0, TILE)
            inside, address, dtype = _rows(table, rows, t, ROWS)
            deltas = _deltas(inside, address, dtype, origin, at, columns, ROWS, BASE, ALIGN)
            inexact = _any_inexact(deltas)
            high, middle, low = _pieces(deltas)
            zeros = tl.zeros([TILE, VECTORS], tl.float32)
            product = _product(high, middle, low, inexact, z_high, z_middle, z_low, zeros)
            to = partials + part * rows * k + t[:, None] * k + q[None, :]
            mask = inside[:, None] & (q < k)[None, :]
            tl.store(to, _add(tl.load(to, mask=mask, other=0.0), product, one), mask=mask)
            if ENERGY:
                to = energies + part * rows + t
                before = tl.load(to, mask=inside, other=0.0)
                tl.store(to, before + tl.sum(deltas * deltas, axis=1), mask=inside)
        # Another thread of this program may read back what this one has stored.
        tl.debug_barrier()


# ---- kernels: adding parts ---------------------------------------------------------------------


@triton.jit(do_not_specialize=["size", "rows", "parts"])
def add_parts(
    partials, sums, size, rows, parts,
    LOWER: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """sums (size) += partials (parts, size), in fp64 and in order. LOWER: of a matrix with that
    many rows, the lower triangle."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    if LOWER:
        mask = mask & (at % rows <= at // rows)
    total = tl.load(sums + at, mask=mask, other=0.0)
    place = partials + at
    for part in range(0, parts, TOGETHER):
        # The loads of a group do not wait for one another; its additions keep their order.
        for i in tl.static_range(TOGETHER):
            here = mask & (_one(part + i) < parts)
            total += tl.load(place, mask=here, other=0.0).to(tl.float64)
            place += size
    tl.store(sums + at, total, mask=mask)


# ---- kernels: combine --------------------------------------------------------------------------


@triton.jit
def _add_odd(a, b):
    """a + b rounded to odd (relex::add_odd), so that the next rounding is the only one; a itself
    where b is zero."""
    s = a + b
    bb = s - a
    error = (a - (s - bb)) + (b - bb)
    bits = s.to(tl.int32, bitcast=True)
    # An even s that was rounded moves one unit towards the exact sum.
    moved = tl.where((bits ^ error.to(tl.int32, bitcast=True)) >= 0, bits + 1, bits - 1)
    rounded = ((error < 0.0) | (error > 0.0)) & ((bits & 1) == 0)
    return tl.where(b == 0.0, a, tl.where(rounded, moved, bits).to(tl.float32, bitcast=True))


@triton.jit
def _store(out, at, base, sums, mask, OUT: tl.constexpr, ALIGN: tl.constexpr):
    """base + sums, rounded once, to elements `at` of the outputs at addresses `out`."""
    if OUT == F32:
        values = tl.where(sums == 0.0, base, (base.to(tl.float64) + sums).to(tl.float32))
        tl.store(_pointers(out, tl.float32, ALIGN) + at, values, mask=mask)
    elif OUT == F16:
        values = _add_odd(base, sums).to(tl.float16)
        tl.store(_pointers(out, tl.float16, ALIGN) + at, values, mask=mask)
    else:
        words = (_bf16_word(_add_odd(base, sums)) >> 16).to(tl.uint16)
        tl.store(_pointers(out, tl.uint16, ALIGN) + at, words, mask=mask)


@triton.jit(do_not_specialize=["rows", "targets"])
def combine_block(
    table, weights, out, rows, columns, targets,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr,
    OUT: tl.constexpr, OUT_ALIGN: tl.constexpr, TARGETS: tl.constexpr,
    BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """base + Σ_t w_t Δ_t for up to TARGETS targets, rows in order: in fp64 for F32 outputs, in fp32
    for others. weights: (rows, TARGETS), with zeros for the rows that fill the last group."""
    WIDE: tl.constexpr = tl.float64 if OUT == F32 else tl.float32
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    q = tl.arange(0, TARGETS)
    base = tl.zeros([BLOCK], tl.float32)
    if BASE != NONE:
        base = _values(_origin(table, rows), 0, at, at < columns, BASE, ALIGN)
    sums = tl.zeros([TARGETS, BLOCK], WIDE)
    for t0 in range(0, rows, TOGETHER):
        # A group's loads are all under way before the first is used.
        for i in tl.static_range(TOGETHER):
            t = _one(t0 + i)
            inside, address, dtype = _rows(table, rows, t, ROWS)
            values = _values(address, dtype, at, (at < columns) & inside, ROWS, ALIGN)
            delta = values.to(WIDE) - base.to(WIDE)
            weight = tl.load(weights + t * TARGETS + q)
            sums = tl.fma(delta[None, :], weight[:, None], sums)
    to = tl.load(out + q, mask=q < targets, other=0)
    mask = (q < targets)[:, None] & (at < columns)[None, :]
    base = tl.broadcast_to(base[None, :], [TARGETS, BLOCK])
    _store(to[:, None], at[None, :], base, sums, mask, OUT, OUT_ALIGN)


# ---- launchers ---------------------------------------------------------------------------------

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
