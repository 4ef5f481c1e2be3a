"""combine in Triton: the weighted deltas, the base, one rounding."""

# Kernels are written in Triton's own language: their arguments are neither Python's nor typed, and
# triton may be absent where mypy runs. What calls the launchers below is checked.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped, import-not-found, no-any-return, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from relex_ext.backends.triton_values import (
    F16,
    F32,
    NONE,
    as_pointers,
    bf16_word,
    block_of,
    load_origin,
    load_rows,
    load_values,
)


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
        tl.store(as_pointers(out, tl.float32, ALIGN) + at, values, mask=mask)
    elif OUT == F16:
        values = _add_odd(base, sums).to(tl.float16)
        tl.store(as_pointers(out, tl.float16, ALIGN) + at, values, mask=mask)
    else:
        words = (bf16_word(_add_odd(base, sums)) >> 16).to(tl.uint16)
        tl.store(as_pointers(out, tl.uint16, ALIGN) + at, words, mask=mask)


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
        base = load_values(load_origin(table, rows), 0, at, at < columns, BASE, ALIGN)
    sums = tl.zeros([TARGETS, BLOCK], WIDE)
    for t0 in range(0, rows, TOGETHER):
        # A group's loads are all under way before the first is used.
        for i in tl.static_range(TOGETHER):
            t = block_of(t0 + i)
            inside, address, dtype = load_rows(table, rows, t, ROWS)
            values = load_values(address, dtype, at, (at < columns) & inside, ROWS, ALIGN)
            delta = values.to(WIDE) - base.to(WIDE)
            weight = tl.load(weights + t * TARGETS + q)
            sums = tl.fma(delta[None, :], weight[:, None], sums)
    to = tl.load(out + q, mask=q < targets, other=0)
    mask = (q < targets)[:, None] & (at < columns)[None, :]
    base = tl.broadcast_to(base[None, :], [TARGETS, BLOCK])
    _store(to[:, None], at[None, :], base, sums, mask, OUT, OUT_ALIGN)
