"""What the Triton kernels are written with: the order of sums, values, deltas, exact products."""

# Kernels are written in Triton's own language: their arguments are neither Python's nor typed, and
# triton may be absent where mypy runs. What calls the launchers below is checked.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# mypy: disable-error-code="import-untyped, import-not-found, no-any-return, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

# ---- what fixes the order of sums --------------------------------------------------------------

# Columns per partial sum; divides _core.SEGMENT, at which windows begin.
PART = tl.constexpr(4096)

# Columns that one matrix product sums before its result is added, correctly rounded, to the sums
# of the part. Matrix units cut off low bits where an fp32 addition rounds, so a sum left to them
# shrinks with its length: by about 1e-7 in 64 columns, by 1e-5 in a part.
DEPTH = tl.constexpr(64)
BLOCKS = tl.constexpr(PART.value // DEPTH.value)

# Codes of relex_ext.dtypes, and two more: rows of several dtypes, and no base.
F32 = tl.constexpr(0)
F16 = tl.constexpr(1)
BF16 = tl.constexpr(2)
MIXED = tl.constexpr(3)
NONE = tl.constexpr(4)


# ---- helpers: values and deltas ----------------------------------------------------------------


@triton.jit
def as_pointers(address, element: tl.constexpr, ALIGN: tl.constexpr):
    """Addresses of strips as pointers. The launcher found all of them to be multiples of ALIGN.
    The hint has to be here: the compiler knows nothing about what was an integer."""
    pointers = address.to(tl.pointer_type(element))
    if len(address.shape) == 2:
        pointers = tl.multiple_of(pointers, (ALIGN, ALIGN))
    else:
        pointers = tl.multiple_of(pointers, (ALIGN,))
    return pointers


@triton.jit
def f32_values(address, at, mask, ALIGN: tl.constexpr):
    return tl.load(as_pointers(address, tl.float32, ALIGN) + at, mask=mask, other=0.0)


@triton.jit
def f16_values(address, at, mask, ALIGN: tl.constexpr):
    values = tl.load(as_pointers(address, tl.float16, ALIGN) + at, mask=mask, other=0.0)
    return values.to(tl.float32)


@triton.jit
def bf16_values(address, at, mask, ALIGN: tl.constexpr):
    # As words: the interpreter's own conversion is wrong for subnormal numbers.
    words = tl.load(as_pointers(address, tl.uint16, ALIGN) + at, mask=mask, other=0)
    return (words.to(tl.uint32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def load_values(address, dtype, at, mask, DTYPE: tl.constexpr, ALIGN: tl.constexpr):
    """Elements `at` of the strips at `address` as float32, exactly; zeros where masked."""
    if DTYPE == F32:
        values = f32_values(address, at, mask, ALIGN)
    elif DTYPE == F16:
        values = f16_values(address, at, mask, ALIGN)
    elif DTYPE == BF16:
        values = bf16_values(address, at, mask, ALIGN)
    else:  # each row as what it is: three loads, of which two fetch nothing
        values = f32_values(address, at, mask & (dtype == F32), ALIGN)
        narrow = f16_values(address, at, mask & (dtype == F16), ALIGN)
        values = tl.where(dtype == F16, narrow, values)
        narrow = bf16_values(address, at, mask & (dtype == BF16), ALIGN)
        values = tl.where(dtype == BF16, narrow, values)
    return values


@triton.jit
def block_of(x):
    """A block of one x. The interpreter cannot mask a block with a scalar's comparison."""
    return x + tl.arange(0, 1)


@triton.jit
def load_rows(table, rows, t, ROWS: tl.constexpr):
    """Of rows `t`: which exist, their addresses, and their dtype codes where these differ."""
    inside = t < rows
    address = tl.load(table + t, mask=inside, other=0)
    dtype = t
    if ROWS == MIXED:
        dtype = tl.load(table + rows + 1 + t, mask=inside, other=0).to(tl.int32)
    return inside, address, dtype


@triton.jit
def load_origin(table, rows):
    """The base's address."""
    return tl.load(table + block_of(rows))


@triton.jit
def deltas_of(
    inside, address, dtype, origin, at, columns,
    ROWS: tl.constexpr, BASE: tl.constexpr, ALIGN: tl.constexpr, TYPE: tl.constexpr = tl.float32,
):  # fmt: skip
    """Δ of a tile of rows in columns `at`; zeros in rows and columns that do not exist."""
    # Addresses are arguments: loaded here, in the loops over columns, they would hold up the loads
    # of values, which run ahead.
    column = at < columns
    mask = inside[:, None] & column[None, :]
    values = load_values(address[:, None], dtype[:, None], at[None, :], mask, ROWS, ALIGN).to(TYPE)
    if BASE != NONE:
        base = load_values(origin, 0, at, column, BASE, ALIGN).to(TYPE)
        values = tl.where(inside[:, None], values - base[None, :], 0.0)
    return values


# ---- helpers: products -------------------------------------------------------------------------


@triton.jit
def bf16_word(x):
    """Rounded to nearest even, as the upper half of 32 bits (relex::float_to_bf16)."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits | 0x400000) & 0xFFFF0000, rounded)


# Without a GPU the functions above and below are interpreted, if TRITON_INTERPRET=1 was set when
# triton was imported: slow, in numpy, on tensors in host memory.
INTERPRETED = tl.constexpr(not isinstance(bf16_word, triton.JITFunction))


@triton.jit
def bf16_piece(x):
    """bf16(x), an operand of matrix products. The interpreter, which has no bf16, is given the
    same number in float32."""
    return bf16_word(x).to(tl.float32, bitcast=True) if INTERPRETED else x.to(tl.bfloat16)


@triton.jit
def bf16_pieces(x):
    """x = high + middle + low, exactly: 24 bits are three times 8, above fp32's smallest."""
    high = bf16_piece(x)
    rest = x - high.to(tl.float32)
    middle = bf16_piece(rest)
    low = bf16_piece(rest - middle.to(tl.float32))
    return high, middle, low


@triton.jit
def any_inexact(x):
    """Whether some x is no bf16 number: is more than its high piece."""
    bits = x.to(tl.int32, bitcast=True) & 0xFFFF
    return (tl.max(tl.max(bits, axis=1), axis=0) != 0).to(tl.int8)


@triton.jit
def dot_ieee(a, b, c):
    # ieee: what the interpreter is given as float32 stays float32. bf16 is bf16 either way.
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def add_rounded(sums, product, one):
    """sums + product, rounded. `one` is 1, which the compiler does not know: it would otherwise
    merge the addition into the product, whose units cut off instead (see DEPTH)."""
    return tl.fma(product, one, sums)


@triton.jit
def small_terms(a, b):
    """a bᵀ but for the product of the high pieces. What is below 2^-23 of the whole is left out,
    and smaller terms come first."""
    a_high, a_middle, a_low = bf16_pieces(a)
    b_high, b_middle, b_low = bf16_pieces(b)
    sums = tl.zeros([a.shape[0], b.shape[0]], tl.float32)
    sums = dot_ieee(a_middle, tl.trans(b_middle), sums)
    sums = dot_ieee(a_low, tl.trans(b_high), sums)
    sums = dot_ieee(a_high, tl.trans(b_low), sums)
    sums = dot_ieee(a_middle, tl.trans(b_high), sums)
    return dot_ieee(a_high, tl.trans(b_middle), sums)


@triton.jit
def add_product(a_high, a_middle, a_low, inexact, b_high, b_middle, b_low, sums):
    """sums + a b. `a` are deltas, all of them bf16 unless `inexact`; `b` are any numbers."""
    sums = dot_ieee(a_high, b_low, sums)
    if inexact != 0:
        sums = dot_ieee(a_middle, b_middle, sums)
        sums = dot_ieee(a_low, b_high, sums)
        sums = dot_ieee(a_middle, b_high, sums)
    sums = dot_ieee(a_high, b_middle, sums)
    return dot_ieee(a_high, b_high, sums)
