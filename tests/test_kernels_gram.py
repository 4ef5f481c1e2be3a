"""The gram kernels of every ISA against M Mᵀ in float64."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
import tolerances
from memory import Memory, training_run
from oracle import Float64
from relex_ext import _core
from tables import BACKENDS, ISAS, MIXES, ROWS, SHAPES, backend


def gram_of(name: str, memory: Memory, threads: int = 2) -> Float64:
    """The full symmetric G as a backend computes it."""
    rows = len(memory.rows)
    gram = np.zeros((rows, rows))
    backend(name, threads).gram(memory.strips(), gram)
    return np.tril(gram) + np.tril(gram, -1).T


def assert_close(
    found: Float64,
    memory: Memory,
    gram: float = tolerances.GRAM,
    sigma: float = tolerances.SIGMA,
) -> None:
    m = memory.deltas
    expected = m @ m.T
    norms = np.sqrt(np.diag(expected))
    assert norms.all(), "the oracle's rows must move for the comparison to mean something"
    error = np.abs(found - expected) / np.outer(norms, norms)
    assert error.max() <= gram
    leading = np.sqrt(np.linalg.eigvalsh(found)[-1])
    assert leading == pytest.approx(np.linalg.svd(m, compute_uv=False)[0], rel=sigma)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_shape_in_bf16(name: str, rows: int, columns: int) -> None:
    # A step as large as the weights: even a single column moves in every row.
    assert_moves(name, training_run(rows, columns, step=0.05, offset=3))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("base", "rows"), MIXES)
@pytest.mark.parametrize(("count", "columns"), [(5, 4099), (17, 66001), (4, 1)])
def test_every_dtype(name: str, base: str, rows: tuple[str, ...], count: int, columns: int) -> None:
    assert_moves(name, training_run(count, columns, base, rows, step=0.05, offset=1))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("rows", ROWS)
def test_no_base_means_zeros(name: str, rows: int) -> None:
    assert_moves(name, training_run(rows, 3001, with_base=False))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("offset", range(1, 9))
def test_unaligned_addresses_change_nothing(name: str, offset: int) -> None:
    aligned = training_run(6, 5003)
    shifted = training_run(6, 5003, offset=offset)
    assert gram_of(name, aligned).tobytes() == gram_of(name, shifted).tobytes()


def assert_moves(name: str, memory: Memory) -> None:
    still = [t for t, row in enumerate(memory.deltas) if not row.any()]
    for t in still:  # a single column may round back to its base: make it move
        memory.rows[t] = oracle.round_to(memory.base_values + 0.25, memory.dtypes[t])
    assert_close(gram_of(name, memory), memory)


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize(("base", "rows"), MIXES)
def test_threads_change_no_bit(name: str, base: str, rows: tuple[str, ...]) -> None:
    memory = training_run(7, 500_003, base, rows, offset=5)
    one = gram_of(name, memory, 1)
    assert one.any()
    assert all(gram_of(name, memory, n).tobytes() == one.tobytes() for n in (2, 7))


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize("window", [1, 2, 3])
def test_windows_of_segments_change_no_bit(name: str, window: int) -> None:
    memory = training_run(5, 4 * _core.SEGMENT + 77)
    whole = np.zeros((5, 5))
    backend(name).gram(memory.strips(), whole)
    pieces = np.zeros((5, 5))
    width = window * _core.SEGMENT
    for begin in range(0, memory.columns, width):
        strips = memory.strips(begin, min(begin + width, memory.columns))
        backend(name).gram(strips, pieces)
    assert whole.any()
    assert whole.tobytes() == pieces.tobytes()


@pytest.mark.parametrize("name", BACKENDS)
def test_adds_to_what_is_there(name: str) -> None:
    memory = training_run(3, 1000)
    gram = np.full((3, 3), 7.0)
    backend(name).gram(memory.strips(), gram)
    expected = memory.deltas @ memory.deltas.T + 7.0
    assert np.allclose(np.tril(gram), np.tril(expected), rtol=1e-9, atol=0)


# ---- deltas that bf16 cannot hold --------------------------------------------------------------


def inexact(rows: int, columns: int, share: float, seed: int) -> Memory:
    """bf16 weights of which a share jumps so far that row − base is no bf16 number."""
    memory = training_run(rows, columns, seed=seed)
    assert memory.base is not None
    rng = np.random.default_rng(seed)
    chosen = rng.random(columns) < share
    kinds = rng.integers(0, 3, columns)
    tiny = oracle.round_to(rng.normal(0, 1e-7, columns), "BF16")  # a base near zero
    huge = oracle.round_to(rng.normal(0, 300.0, columns), "BF16")  # a huge ratio
    memory.base = np.where(chosen & (kinds == 0), tiny, memory.base).astype(np.uint16)
    for t, row in enumerate(memory.rows):
        flipped = row ^ np.uint16(0x8000)  # a change of sign
        changed = np.where(kinds == 1, flipped, np.where(kinds == 2, huge, row))
        keep = ~chosen | (rng.random(columns) < 0.3)
        memory.rows[t] = np.where(keep, row, changed).astype(np.uint16)
    return memory


def is_bf16(values: Float64) -> np.ndarray:
    return oracle.to_float64(oracle.round_to(values, "BF16"), "BF16") == values


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("share", [0.0005, 0.02, 0.2, 0.6, 1.0])
@pytest.mark.parametrize(("rows", "columns"), [(2, 2047), (5, 2049), (17, 66003), (6, 31)])
def test_bf16_deltas_that_are_not_bf16(name: str, share: float, rows: int, columns: int) -> None:
    memory = inexact(rows, columns, share, seed=rows)
    if columns * share > 20:
        assert not is_bf16(memory.deltas).all(), "the case must leave bf16"
    heavy = tolerances.GRAM_HEAVY_TAILED
    assert_close(gram_of(name, memory), memory, heavy, heavy)


@pytest.mark.parametrize("name", ISAS)
def test_blocks_with_and_without_inexact_columns_in_turn(name: str) -> None:
    """The side panel is filled, emptied for an all-inexact block, and filled again."""
    calm, wild = training_run(5, 40 * 2048 + 333, seed=1), inexact(5, 40 * 2048 + 333, 1.0, 2)
    few = inexact(5, 40 * 2048 + 333, 0.1, 3)
    assert calm.base is not None and wild.base is not None and few.base is not None
    block = np.arange(calm.columns) // 2048 % 5
    kind = [block < 2, block == 2, block > 2]
    base = np.select(kind, [few.base, wild.base, calm.base])
    rows = [np.select(kind, list(r)) for r in zip(few.rows, wild.rows, calm.rows, strict=True)]
    memory = Memory(base, "BF16", rows, ["BF16"] * 5)
    heavy = tolerances.GRAM_HEAVY_TAILED
    assert_close(gram_of(name, memory), memory, heavy, heavy)
    assert gram_of(name, memory, 1).tobytes() == gram_of(name, memory, 7).tobytes()


# ---- the edges of fp32 -------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-18, 1e-13, 1e12, 1e19, 1e25, 1e37])
def test_squares_outside_fp32(name: str, dtype: str, scale: float) -> None:
    rng = np.random.default_rng(4)
    direction = rng.normal(0, 1, 70001)
    noise = rng.normal(0, 0.1, (4, 70001))
    rows = [oracle.round_to((direction * (t + 1) + noise[t]) * scale, dtype) for t in range(4)]
    base = oracle.round_to(np.zeros(70001), dtype)
    memory = Memory(base, dtype, rows, [dtype] * 4)
    assert_close(gram_of(name, memory), memory)


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_of_very_different_size(name: str) -> None:
    """Each element of G relative to its own rows, 40 orders of magnitude apart."""
    scales = [1e-25, 1e-10, 1.0, 1e15]
    rng = np.random.default_rng(5)
    rows = [oracle.round_to(rng.normal(0, s, 66000), "F32") for s in scales]
    memory = Memory(None, "F32", rows, ["F32"] * 4)
    assert_close(gram_of(name, memory), memory)


@pytest.mark.parametrize("name", BACKENDS)
def test_frozen_rows_are_exact_zeros(name: str) -> None:
    memory = training_run(4, 70001)
    assert memory.base is not None
    memory.rows[1] = memory.base.copy()
    gram = gram_of(name, memory)
    assert not gram[1].any() and not gram[:, 1].any()
    assert gram[0, 0] > 0 and gram[3, 2] > 0


@pytest.mark.parametrize("name", BACKENDS)
def test_minus_zero_is_zero(name: str) -> None:
    base = np.full(333, 0x8000, np.uint16)
    rows = [np.zeros(333, np.uint16), base.copy()]
    gram = gram_of(name, Memory(base, "BF16", rows, ["BF16", "BF16"]))
    assert not gram.any()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 65536, 70000])
def test_non_finite_values_reach_the_diagonal(
    name: str, dtype: str, value: float, column: int
) -> None:
    memory = training_run(3, 70001, dtype, (dtype,))
    memory.rows[1][column] = oracle.round_to(np.array([value]), dtype)[0]
    with np.errstate(invalid="ignore"):
        diagonal = np.diag(gram_of(name, memory))
    assert np.isfinite(diagonal).tolist() == [True, False, True]


@pytest.mark.parametrize("name", BACKENDS)
def test_no_columns_add_nothing(name: str) -> None:
    rows = [np.zeros(0, np.uint16)] * 3
    gram = np.full((3, 3), 2.0)
    backend(name).gram(Memory(None, "BF16", rows, ["BF16"] * 3).strips(), gram)
    assert (gram == 2.0).all()
