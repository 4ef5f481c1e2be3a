"""gram in Triton: products of high pieces, what they leave out, and the net under fp32's range."""

# Kernels are written in Triton's own language: their arguments are neither Python's nor typed, and
# triton may be absent where mypy runs. What calls the launchers below is checked.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped, import-not-found, no-any-return, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from relex_ext.backends.triton_values import (
    BLOCKS,
    DEPTH,
    NONE,
    PART,
    add_rounded,
    any_inexact,
    bf16_piece,
    block_of,
    deltas_of,
    dot_ieee,
    load_origin,
    load_rows,
    load_values,
    small_terms,
)

# Squares below 2^-126 lose bits and below 2^-149 vanish: a row whose squares sum to less than this
# may hold such ones (csrc/cpu/gram_fp64.cpp).
TINY = tl.constexpr(2.0**-90)

# Diagonal elements, and columns of a row, that gram_check looks at together.
CHECKED_ROWS = tl.constexpr(128)
CHECKED = tl.constexpr(1024)

# The tiles in which a part is computed again in fp64.
REPAIR_ROWS = tl.constexpr(16)
REPAIR_COLUMNS = tl.constexpr(32)


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
    in_i, address_i, dtype_i = load_rows(table, rows, i, ROWS)
    in_j, address_j, dtype_j = load_rows(table, rows, j, ROWS)
    origin = load_origin(table, rows)
    flags += (part * tiles * tiles + tl.program_id(0)) * BLOCKS
    sums = tl.zeros([TILE, TILE], tl.float32)
    for block in range(0, tl.cdiv(tl.minimum(columns - start, PART), DEPTH)):
        at = start + block * DEPTH + tl.arange(0, DEPTH)
        a = deltas_of(in_i, address_i, dtype_i, origin, at, columns, ROWS, BASE, ALIGN)
        b = a
        if not SINGLE:
            b = deltas_of(in_j, address_j, dtype_j, origin, at, columns, ROWS, BASE, ALIGN)
        zeros = tl.zeros([TILE, TILE], tl.float32)
        sums = add_rounded(sums, dot_ieee(bf16_piece(a), tl.trans(bf16_piece(b)), zeros), one)
        tl.store(flags + block, any_inexact(a) | any_inexact(b))
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
    in_i, address_i, dtype_i = load_rows(table, rows, i, ROWS)
    in_j, address_j, dtype_j = load_rows(table, rows, j, ROWS)
    origin = load_origin(table, rows)
    sums = tl.zeros([TILE, TILE], tl.float32)
    to = partials + part * rows * rows + i[:, None] * rows + j[None, :]
    mask = (i[:, None] < rows) & (j[None, :] <= i[:, None])
    blocks = tl.cdiv(tl.minimum(columns - start, PART), DEPTH)
    if FLAG_TILE == 0:
        for block in range(0, blocks):
            at = start + block * DEPTH + tl.arange(0, DEPTH)
            a = deltas_of(in_i, address_i, dtype_i, origin, at, columns, ROWS, BASE, ALIGN)
            b = a
            if not SINGLE:
                b = deltas_of(in_j, address_j, dtype_j, origin, at, columns, ROWS, BASE, ALIGN)
            product = dot_ieee(bf16_piece(a), tl.trans(bf16_piece(b)), small_terms(a, b))
            sums = add_rounded(sums, product, one)
        tl.store(to, sums.to(tl.float64), mask=mask)
    else:
        tiles = tl.cdiv(rows, FLAG_TILE)
        pair = tile_i * TILE // FLAG_TILE * tiles + tile_j * TILE // FLAG_TILE
        flags += (part * tiles * tiles + pair) * BLOCKS
        for block in range(0, blocks):
            if tl.load(flags + block) != 0:
                at = start + block * DEPTH + tl.arange(0, DEPTH)
                a = deltas_of(in_i, address_i, dtype_i, origin, at, columns, ROWS, BASE, ALIGN)
                b = a
                if not SINGLE:
                    b = deltas_of(in_j, address_j, dtype_j, origin, at, columns, ROWS, BASE, ALIGN)
                sums = add_rounded(sums, small_terms(a, b), one)
        before = tl.load(to, mask=mask, other=0.0)
        tl.store(to, before + sums.to(tl.float64), mask=mask)


@triton.jit
def _moves(
    table, rows, t, start, columns,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """1 where row t differs from the base anywhere in the part at `start`, else 0."""
    _, address, dtype = load_rows(table, rows, block_of(t), ROWS)
    origin = load_origin(table, rows)
    moved = tl.zeros([CHECKED], tl.int32)
    for c in range(0, PART, CHECKED):
        at = start + c + tl.arange(0, CHECKED)
        values = load_values(address, dtype, at, at < columns, ROWS, ALIGN)
        if BASE != NONE:
            values -= load_values(origin, 0, at, at < columns, BASE, ALIGN)
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
        in_i, address_i, dtype_i = load_rows(table, rows, i, ROWS)
        in_j, address_j, dtype_j = load_rows(table, rows, j, ROWS)
        origin = load_origin(table, rows)
        sums = tl.zeros([REPAIR_ROWS, REPAIR_ROWS], tl.float64)
        for c in range(0, PART, REPAIR_COLUMNS):
            at = start + c + tl.arange(0, REPAIR_COLUMNS)
            a = deltas_of(
                in_i, address_i, dtype_i, origin, at, columns, ROWS, BASE, ALIGN, tl.float64
            )
            b = deltas_of(
                in_j, address_j, dtype_j, origin, at, columns, ROWS, BASE, ALIGN, tl.float64
            )
            sums += tl.sum(a[:, None, :] * b[None, :, :], axis=2)
        to = partials + part * rows * rows + i[:, None] * rows + j[None, :]
        tl.store(to, sums, mask=(i[:, None] < rows) & (j[None, :] <= i[:, None]))
