"""The CUDA combine kernels, run on this processor: the bytes of the CPU's fused kernels."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
from emulated import COLUMNS, ROWS, SCHEDULES, SHARED, Emulated, Fenced, Watched
from memory import CODES, Memory, training_run
from oracle import Float64, Words
from relex_ext import _core
from relex_ext.backends import Strips
from relex_ext.backends.cpu import CpuBackend
from tables import DTYPES, ISAS, MIXES
from test_kernels_combine import assert_within_fp32, combined, weights_of

FUSED = next((isa for isa in ISAS if isa != "scalar"), None)
"""A set of kernels that fuses a·b + c, as the CUDA ones do."""

SHAPES = (
    *((t, n) for t in ROWS for n in (9, 1000)),
    *((t, n) for t in (2, 17) for n in COLUMNS),
    (200, 24653),
)


def emulated(
    memory: Memory,
    weights: Float64,
    dtype: str,
    workspace: float = 1.0,
    strips: Strips | None = None,
    offset: int = 0,
) -> list[Words]:
    """``offset``: bytes from 64-byte alignment at which the first output starts, one more each."""
    strips = strips or memory.strips()
    size = strips.columns * np.dtype(oracle.WORD[dtype]).itemsize
    out = [Watched(np.full(offset + q + size, 0x5A, np.uint8), 64) for q in range(len(weights))]
    skip = [offset + q if offset else 0 for q in range(len(weights))]
    addresses = np.array([o.address + s for o, s in zip(out, skip, strict=True)], np.uint64)
    Emulated(workspace).combine(strips, weights, addresses, CODES[dtype])
    words = []
    for o, s in zip(out, skip, strict=True):
        o.check()
        assert (o.array[:s] == 0x5A).all() and (o.array[s + size :] == 0x5A).all()
        words.append(o.array[s : s + size].copy().view(oracle.WORD[dtype]))
    return words


def assert_same(memory: Memory, weights: Float64, dtype: str, offset: int = 0) -> None:
    found = emulated(memory, weights, dtype, offset=offset)
    assert_within_fp32(found, memory, weights, dtype)
    if FUSED is None:
        pytest.skip("this processor has no fused kernels to compare with")
    expected = combined(FUSED, memory, weights, dtype)
    for got, want in zip(found, expected, strict=True):
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_shape_in_bf16(rows: int, columns: int, out: str, offset: int) -> None:
    assert_same(training_run(rows, columns, offset=offset), weights_of(1, rows), out, offset)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("base", "dtypes"), MIXES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 17, 161])
def test_every_dtype(base: str, dtypes: tuple[str, ...], out: str, rows: int, offset: int) -> None:
    memory = training_run(rows, 1003, base, dtypes, offset=offset)
    assert_same(memory, weights_of(2, rows), out, offset)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_every_number_of_columns_in_other_dtypes(dtype: str, columns: int) -> None:
    assert_same(training_run(5, columns, dtype, (dtype,)), weights_of(2, 5), dtype)


@pytest.mark.parametrize("targets", [*range(1, 10), 17])
@pytest.mark.parametrize("out", DTYPES)
def test_many_targets(targets: int, out: str) -> None:
    assert_same(training_run(5, 1011), weights_of(targets, 5), out)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("step", [1e-3, 0.1, 10.0])
def test_moves_as_large_as_the_weights(out: str, step: float) -> None:
    """Where sums cancel, every rounding of theirs shows."""
    assert_same(training_run(17, 9001, "BF16", step=step), weights_of(2, 17), out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_base_means_zeros(dtype: str) -> None:
    memory = training_run(17, 3001, dtype, (dtype,), with_base=False)
    assert_same(memory, weights_of(2, 17), dtype)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("rows", [1000, 4096])
def test_thousands_of_rows(out: str, rows: int) -> None:
    assert_same(training_run(rows, 100), weights_of(2, rows), out)


def assert_same_as_cpu(memory: Memory, weights: Float64, dtype: str) -> list[Words]:
    found = emulated(memory, weights, dtype)
    if FUSED is not None:
        expected = combined(FUSED, memory, weights, dtype)
        assert [w.tobytes() for w in found] == [w.tobytes() for w in expected]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_weights_give_the_base_bits(dtype: str) -> None:
    """Its −0 too."""
    memory = training_run(3, 1001, dtype, (dtype,))
    assert memory.base is not None
    memory.base[::7] = 0
    memory.base[::5] = oracle.round_to(np.array([-0.0]), dtype)[0]
    found = assert_same_as_cpu(memory, np.zeros((2, 3)), dtype)
    assert all(words.tobytes() == memory.base.tobytes() for words in found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_one_gives_that_row(dtype: str) -> None:
    memory = training_run(3, 1001, dtype, (dtype,))
    found = assert_same_as_cpu(memory, np.array([[0.0, 1.0, 0.0]]), dtype)
    assert np.array_equal(found[0], memory.rows[1])


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_word_of_the_base_survives(dtype: str) -> None:
    """Every finite 16-bit number but −0, subnormals among them, through the rounding."""
    exponent = {"F16": 0x7C00, "BF16": 0x7F80}[dtype]
    words = np.arange(2**16, dtype=np.uint16)
    words = words[((words & exponent) != exponent) & (words != 0x8000)]
    memory = Memory(words, dtype, [words.copy()], [dtype])
    found = assert_same_as_cpu(memory, np.ones((1, 1)), dtype)
    assert np.array_equal(found[0], words)


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_words(dtype: str, out: str) -> None:
    """Numbers of all sizes, subnormals, infinities: sums overflow, vanish and are lost."""
    rng = np.random.default_rng(8)
    word = oracle.WORD[dtype]
    words = rng.integers(0, np.iinfo(word).max, (4, 9001), dtype=word, endpoint=True)
    for row in words:  # NaN's bits are nobody's promise
        with np.errstate(invalid="ignore"):
            row[np.isnan(oracle.to_float64(row, dtype))] = 0
    memory = Memory(words[0], dtype, list(words[1:]), [dtype] * 3)
    weights = np.array([[1.0, -2.0, 0.5]])
    found = emulated(memory, weights, out)[0]
    if FUSED is None:
        pytest.skip("this processor has no fused kernels to compare with")
    expected = combined(FUSED, memory, weights, out)[0]
    with np.errstate(invalid="ignore"):
        nan = np.isnan(oracle.to_float64(expected, out))
        assert np.array_equal(np.isnan(oracle.to_float64(found, out)), nan)
    assert np.array_equal(found[~nan], expected[~nan])


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_ties_go_to_even_and_near_ties_to_their_side(dtype: str) -> None:
    bits = {"F16": 11, "BF16": 8}[dtype]
    half = 2.0**-bits
    rng = np.random.default_rng(6)
    base = 1.0 + rng.integers(0, 2 ** (bits - 1), 600) * 2.0 ** (1 - bits)
    nudge = np.tile([0.0, 2.0**-30, -(2.0**-30)], 200)
    rows = [oracle.round_to(base + half, "F32"), oracle.round_to(base + nudge * 2**12, "F32")]
    memory = Memory(oracle.round_to(base, dtype), dtype, rows, ["F32", "F32"])
    weights = np.array([[1.0, 2.0**-12]])
    exact = memory.base_values + weights @ memory.deltas
    found = assert_same_as_cpu(memory, weights, dtype)
    assert np.array_equal(found[0], oracle.round_to(exact[0], dtype))


# ---- the same bytes, whatever happens ----------------------------------------------------------


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("rows", [5, 161])
def test_schedules_shared_memory_and_workspaces_change_no_bit(
    out: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = training_run(rows, 1003, "BF16", ("F32", "F16", "BF16"))
    weights = weights_of(3, rows)
    found = {b"".join(w.tobytes() for w in emulated(memory, weights, out, s)) for s in (0.0, 0.4)}
    for kib in SHARED:
        monkeypatch.setenv("RELEX_EMULATED_SHARED", str(kib * 1024))
        for schedule in SCHEDULES:
            for name, value in schedule.items():
                monkeypatch.setenv(name, value)
            found.add(b"".join(w.tobytes() for w in emulated(memory, weights, out)))
    assert len(found) == 1


@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", range(1, 17))
def test_unaligned_addresses_change_nothing(dtype: str, out: str, offset: int) -> None:
    weights = weights_of(2, 6)
    aligned = training_run(6, 205, dtype, (dtype,))
    shifted = training_run(6, 205, dtype, (dtype,), offset=offset)
    expected = emulated(aligned, weights, out)
    for to in (0, offset, 17 - offset):
        found = emulated(shifted, weights, out, offset=to)
        assert [w.tobytes() for w in found] == [w.tobytes() for w in expected]


@pytest.mark.parametrize("out", DTYPES)
def test_windows_of_segments_change_no_bit(out: str) -> None:
    memory, weights = training_run(5, 3 * _core.SEGMENT + 77), weights_of(1, 5)
    whole = emulated(memory, weights, out)[0]
    pieces = [
        emulated(memory, weights, out, strips=memory.strips(begin, begin + _core.SEGMENT))[0]
        for begin in range(0, memory.columns - _core.SEGMENT, _core.SEGMENT)
    ]
    last = memory.strips(len(pieces) * _core.SEGMENT)
    pieces.append(emulated(memory, weights, out, strips=last)[0])
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [8, 9, 1000, 1003])
def test_accesses_stay_inside_of_the_pages(dtype: str, columns: int, at_end: bool) -> None:
    memory, fenced, weights = training_run(5, columns, dtype, (dtype,)), Fenced(), weights_of(1, 5)
    out = np.zeros(columns, oracle.WORD[dtype])
    place = fenced.place(out, at_end)
    Emulated().combine(
        fenced.strips(memory, at_end), weights, np.array([place], np.uint64), CODES[dtype]
    )
    assert fenced.words(place, out) == emulated(memory, weights, dtype)[0].tobytes()


def test_the_cpu_backend_that_is_compared_with_is_fused() -> None:
    if FUSED is not None:
        assert CpuBackend(1, isa=FUSED).isa.startswith("avx")
