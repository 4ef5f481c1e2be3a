"""power_step in Triton, and how parts are added, gram's too."""

# Kernels are written in Triton's own language: their arguments are neither Python's nor typed, and
# triton may be absent where mypy runs. What calls the launchers below is checked.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped, import-not-found, no-any-return, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from relex_ext.backends.triton_values import (
    PART,
    add_product,
    add_rounded,
    any_inexact,
    bf16_pieces,
    block_of,
    deltas_of,
    load_origin,
    load_rows,
)

# Columns of u that power_step takes at once: matrix units want no fewer.
VECTORS = tl.constexpr(16)


@triton.jit
def _vectors(u, t, q, inside, k):
    """Pieces of rows t and columns q of u (rows, k); zeros beyond."""
    mask = inside[:, None] & (q < k)[None, :]
    return bf16_pieces(tl.load(u + t[:, None] * k + q[None, :], mask=mask, other=0.0))


@triton.jit
def _project(high, middle, low, inexact, u_high, u_middle, u_low):
    """Δᵀu of a tile of rows."""
    zeros = tl.zeros([high.shape[1], u_high.shape[1]], tl.float32)
    return add_product(
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
    inside, address, dtype = load_rows(table, rows, t, ROWS)
    origin = load_origin(table, rows)
    u_high, u_middle, u_low = _vectors(u, t, q, inside, k)
    y = tl.zeros([TILE, VECTORS], tl.float32)
    energy = tl.zeros([TILE], tl.float32)
    for block in range(0, tl.cdiv(tl.minimum(columns - start, PART), WIDTH)):
        at = start + block * WIDTH + tl.arange(0, WIDTH)
        deltas = deltas_of(inside, address, dtype, origin, at, columns, ROWS, BASE, ALIGN)
        inexact = any_inexact(deltas)
        high, middle, low = bf16_pieces(deltas)
        z = _project(high, middle, low, inexact, u_high, u_middle, u_low)
        z_high, z_middle, z_low = bf16_pieces(z)
        zeros = tl.zeros([TILE, VECTORS], tl.float32)
        product = add_product(high, middle, low, inexact, z_high, z_middle, z_low, zeros)
        y = add_rounded(y, product, one)
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
    origin = load_origin(table, rows)
    for block in range(0, tl.cdiv(tl.minimum(columns - start, PART), WIDTH)):
        at = start + block * WIDTH + tl.arange(0, WIDTH)
        z = tl.zeros([WIDTH, VECTORS], tl.float32)
        for t0 in range(0, rows, TILE):
            t = t0 + tl.arange(0, TILE)
            inside, address, dtype = load_rows(table, rows, t, ROWS)
            deltas = deltas_of(inside, address, dtype, origin, at, columns, ROWS, BASE, ALIGN)
            inexact = any_inexact(deltas)
            high, middle, low = bf16_pieces(deltas)
            u_high, u_middle, u_low = _vectors(u, t, q, inside, k)
            z = add_rounded(z, _project(high, middle, low, inexact, u_high, u_middle, u_low), one)
        z_high, z_middle, z_low = bf16_pieces(z)
        for t0 in range(0, rows, TILE):
            t = t0 + tl.arange(0, TILE)
            inside, address, dtype = load_rows(table, rows, t, ROWS)
            deltas = deltas_of(inside, address, dtype, origin, at, columns, ROWS, BASE, ALIGN)
            inexact = any_inexact(deltas)
            high, middle, low = bf16_pieces(deltas)
            zeros = tl.zeros([TILE, VECTORS], tl.float32)
            product = add_product(high, middle, low, inexact, z_high, z_middle, z_low, zeros)
            to = partials + part * rows * k + t[:, None] * k + q[None, :]
            mask = inside[:, None] & (q < k)[None, :]
            tl.store(to, add_rounded(tl.load(to, mask=mask, other=0.0), product, one), mask=mask)
            if ENERGY:
                to = energies + part * rows + t
                before = tl.load(to, mask=inside, other=0.0)
                tl.store(to, before + tl.sum(deltas * deltas, axis=1), mask=inside)
        # Another thread of this program may read back what this one has stored.
        tl.debug_barrier()


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
            here = mask & (block_of(part + i) < parts)
            total += tl.load(place, mask=here, other=0.0).to(tl.float64)
            place += size
    tl.store(sums + at, total, mask=mask)
