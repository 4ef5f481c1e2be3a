"""The combine kernels of every ISA against θ₀ + Σ w_t Δ_t in float64, rounded once."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
import tolerances
from memory import CODES, Memory, addresses, training_run
from oracle import Float64, Words
from relex_ext import _core
from tables import BACKENDS, DTYPES, ISAS, MIXES, SHAPES, backend


def weights_of(targets: int, rows: int) -> Float64:
    """Like a forecast's: they grow along the run and sum to a few."""
    rng = np.random.default_rng([targets, rows])
    ramp = np.arange(1, rows + 1) / rows
    return np.array([(2 + q) * ramp / rows for q in range(targets)]) * rng.uniform(0.8, 1.2, rows)


def combined(
    name: str, memory: Memory, weights: Float64, dtype: str, threads: int = 2
) -> list[Words]:
    size = memory.columns * np.dtype(oracle.WORD[dtype]).itemsize
    out = [np.full(size, 0xAA, np.uint8) for _ in weights]
    backend(name, threads).combine(memory.strips(), weights, addresses(out), CODES[dtype])
    return [buffer.view(oracle.WORD[dtype]) for buffer in out]


def assert_within_fp32(found: list[Words], memory: Memory, weights: Float64, dtype: str) -> Float64:
    """Every output is the rounding of a number near the exact one; returns |Σ| over Σ|·|."""
    exact = memory.base_values + weights @ memory.deltas
    terms = np.abs(memory.base_values) + np.abs(weights) @ np.abs(memory.deltas)
    slack = tolerances.COMBINE_TERMS * terms
    values = np.stack([oracle.to_float64(words, dtype) for words in found])
    assert (oracle.to_float64(oracle.round_to(exact - slack, dtype), dtype) <= values).all()
    assert (values <= oracle.to_float64(oracle.round_to(exact + slack, dtype), dtype)).all()
    return np.abs(exact) / np.maximum(terms, np.finfo(np.float64).tiny)


def assert_rounded(found: list[Words], memory: Memory, weights: Float64, dtype: str) -> None:
    left = assert_within_fp32(found, memory, weights, dtype)
    expected = oracle.round_to(memory.base_values + weights @ memory.deltas, dtype)
    for got, want, share in zip(found, expected, left, strict=True):
        far = oracle.ulps(got, want, dtype) > tolerances.ULP
        assert not (far & (share >= tolerances.CANCELLED)).any()
        assert np.count_nonzero(got != want) <= max(1, (1 - tolerances.EQUAL_BITS) * want.size)
    still = oracle.round_to(memory.base_values, dtype)
    assert memory.columns < 20 or (expected != still).any(), "the case must move something"


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_shape_in_bf16(name: str, rows: int, columns: int) -> None:
    memory, weights = training_run(rows, columns, offset=3), weights_of(1, rows)
    assert_rounded(combined(name, memory, weights, "BF16"), memory, weights, "BF16")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("base", "rows"), MIXES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 17])
def test_every_dtype(name: str, base: str, rows: tuple[str, ...], out: str, count: int) -> None:
    memory, weights = training_run(count, 66001, base, rows, offset=1), weights_of(2, count)
    assert_rounded(combined(name, memory, weights, out), memory, weights, out)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("out", ["F16", "BF16"])
@pytest.mark.parametrize("step", [1e-3, 0.1, 10.0])
def test_moves_as_large_as_the_weights(name: str, out: str, step: float) -> None:
    """Where sums cancel, the error is bounded by what was summed, not by the result."""
    memory, weights = training_run(17, 66001, "BF16", step=step), weights_of(2, 17)
    assert_within_fp32(combined(name, memory, weights, out), memory, weights, out)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("targets", range(1, 10))
@pytest.mark.parametrize("out", ["BF16", "F32"])
def test_many_targets(name: str, targets: int, out: str) -> None:
    memory, weights = training_run(5, 20011), weights_of(targets, 5)
    together = combined(name, memory, weights, out)
    assert_rounded(together, memory, weights, out)
    for q in range(targets):  # a target's bits do not depend on the others
        alone = combined(name, memory, np.ascontiguousarray(weights[q : q + 1]), out)
        assert alone[0].tobytes() == together[q].tobytes()


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("out", DTYPES)
def test_threads_change_no_bit(name: str, out: str) -> None:
    memory, weights = training_run(7, 500_003, offset=5), weights_of(2, 7)
    one = combined(name, memory, weights, out, 1)
    for threads in (2, 7):
        found = combined(name, memory, weights, out, threads)
        assert [a.tobytes() for a in found] == [a.tobytes() for a in one]


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("out", DTYPES)
def test_windows_of_segments_change_no_bit(name: str, out: str) -> None:
    memory, weights = training_run(5, 3 * _core.SEGMENT + 77), weights_of(1, 5)
    whole = combined(name, memory, weights, out)[0]
    pieces = []
    for begin in range(0, memory.columns, _core.SEGMENT):
        strips = memory.strips(begin, min(begin + _core.SEGMENT, memory.columns))
        part = np.empty(strips.columns, oracle.WORD[out])
        backend(name).combine(strips, weights, addresses([part]), CODES[out])
        pieces.append(part)
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("out", DTYPES)
def test_unaligned_output(name: str, out: str) -> None:
    memory, weights = training_run(3, 3001), weights_of(1, 3)
    expected = combined(name, memory, weights, out)[0].tobytes()
    buffer = np.full(len(expected) + 2, 0x55, np.uint8)
    backend(name).combine(memory.strips(), weights, addresses([buffer[1:-1]]), CODES[out])
    assert buffer[1:-1].tobytes() == expected
    assert buffer[0] == buffer[-1] == 0x55, "wrote outside its buffer"


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_weights_give_the_base_bits(name: str, dtype: str) -> None:
    memory = training_run(3, 5001, dtype, (dtype,))
    assert memory.base is not None
    memory.base[::7] = 0
    found = combined(name, memory, np.zeros((2, 3)), dtype)
    assert all(np.array_equal(words, memory.base) for words in found)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_one_gives_that_row(name: str, dtype: str) -> None:
    """θ₀ + (θ_t − θ₀) = θ_t: exact wherever the difference is."""
    memory = training_run(3, 5001, dtype, (dtype,))
    found = combined(name, memory, np.array([[0.0, 1.0, 0.0]]), dtype)[0]
    expected = oracle.round_to(memory.base_values + memory.deltas[1], dtype)
    assert np.array_equal(found, expected)
    assert np.array_equal(expected, memory.rows[1])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_word_of_the_base_survives(name: str, dtype: str) -> None:
    """Every finite 16-bit number but −0, subnormals among them, through the rounding."""
    exponent = {"F16": 0x7C00, "BF16": 0x7F80}[dtype]
    words = np.arange(2**16, dtype=np.uint16)
    words = words[((words & exponent) != exponent) & (words != 0x8000)]
    memory = Memory(words, dtype, [words.copy()], [dtype])
    assert np.array_equal(combined(name, memory, np.ones((1, 1)), dtype)[0], words)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_zero_of_a_frozen_base_survives(name: str, dtype: str) -> None:
    memory = training_run(2, 2001, dtype, (dtype,))
    assert memory.base is not None
    memory.base[::3] = oracle.round_to(np.array([-0.0]), dtype)[0]
    memory.rows = [memory.base.copy(), memory.base.copy()]
    found = combined(name, memory, np.zeros((1, 2)), dtype)[0]
    assert found.tobytes() == memory.base.tobytes()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_ties_go_to_even_and_near_ties_to_their_side(name: str, dtype: str) -> None:
    """Sums that lie on, just above and just below the middle of two 16-bit numbers.

    Rounding to float32 first would send the near ones to the tie and then to the even number.
    """
    bits = {"F16": 11, "BF16": 8}[dtype]
    half = 2.0**-bits
    rng = np.random.default_rng(6)
    base = 1.0 + rng.integers(0, 2 ** (bits - 1), 6000) * 2.0 ** (1 - bits)
    nudge = np.tile([0.0, 2.0**-30, -(2.0**-30)], 2000)
    row = np.float32(half + nudge).astype(np.float64)
    memory = Memory(
        oracle.round_to(base, dtype),
        dtype,
        [oracle.round_to(base + half, "F32"), oracle.round_to(base + nudge * 2**12, "F32")],
        ["F32", "F32"],
    )
    assert (row != half).sum() == 4000
    weights = np.array([[1.0, 2.0**-12]])
    exact = memory.base_values + weights @ memory.deltas
    assert np.array_equal(exact[0], base + half + nudge)
    assert np.array_equal(
        combined(name, memory, weights, dtype)[0], oracle.round_to(exact[0], dtype)
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_overflow_becomes_infinity(name: str) -> None:
    base = oracle.round_to(np.full(40, 60000.0), "F16")
    row = oracle.round_to(np.full(40, 62000.0), "F16")
    memory = Memory(base, "F16", [row], ["F16"])
    with np.errstate(over="ignore"):
        found = combined(name, memory, np.array([[10.0]]), "F16")[0]
    assert (found == 0x7C00).all()
