"""The Triton gram kernels against M Mᵀ in float64. Run by test_triton_kernels.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import oracle
import tolerances
from memory import Memory, training_run
from oracle import Float64
from relex_ext import _core
from tables import DTYPES, MIXES
from test_kernels_gram import assert_close, inexact, is_bf16
from triton_device import INTERPRETED, gram_of, kernels, marks

pytestmark = marks

PART, DEPTH = kernels.PART.value, kernels.DEPTH.value

SHAPES = (
    *((t, 97) for t in (1, 2, 15, 16, 17, 75)),
    *((3, n) for n in (1, DEPTH - 1, DEPTH, DEPTH + 1, PART, PART + 1)),
    (33, 300),
    (200, 50),
)
"""(T, columns): around the tiles (16, 32, 64, 128, several) and around products and parts."""


def moving(memory: Memory) -> Memory:
    """A single column may round back to its base: make it move."""
    for t, row in enumerate(memory.deltas):
        if not row.any():
            memory.rows[t] = oracle.round_to(memory.base_values + 0.25, memory.dtypes[t])
    return memory


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_shape_in_bf16(rows: int, columns: int) -> None:
    memory = moving(training_run(rows, columns, step=0.05))
    assert_close(gram_of(memory), memory)


@pytest.mark.parametrize(("base", "dtypes"), MIXES)
@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (17, 333), (70, 130)])
def test_every_dtype(base: str, dtypes: tuple[str, ...], rows: int, columns: int) -> None:
    memory = moving(training_run(rows, columns, base, dtypes, step=0.05))
    assert_close(gram_of(memory), memory)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_base_means_zeros(dtype: str) -> None:
    memory = training_run(5, 301, dtype, (dtype,), with_base=False)
    assert_close(gram_of(memory), memory)


@pytest.mark.parametrize(("base", "dtypes"), MIXES)
def test_unaligned_addresses_change_nothing(base: str, dtypes: tuple[str, ...]) -> None:
    memory = training_run(6, 503, base, dtypes)
    assert gram_of(memory).tobytes() == gram_of(memory, shift=True).tobytes()


def test_windows_of_segments_change_no_bit() -> None:
    assert _core.SEGMENT % PART == 0
    memory = training_run(2, _core.SEGMENT + 77)
    pieces = gram_of(memory, ((0, _core.SEGMENT), (_core.SEGMENT, None)))
    whole = gram_of(memory)
    assert_close(whole, memory)
    assert whole.tobytes() == pieces.tobytes()


@pytest.mark.parametrize(("base", "dtypes"), [("BF16", ("BF16",)), ("F16", ("F32", "F16"))])
def test_launches_change_no_bit(
    base: str, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workspace of one part, for two."""
    memory = training_run(3, PART + 50, base, dtypes)
    whole = gram_of(memory)
    assert_close(whole, memory)
    monkeypatch.setattr(kernels, "_WORKSPACE", 1)
    assert gram_of(memory).tobytes() == whole.tobytes()


@pytest.mark.parametrize(("rows", "name"), [(5, "GRAM"), (40, "GRAM"), (75, "GRAM_WIDE")])
def test_tuning_changes_no_bit(rows: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = getattr(kernels, name)
    memory, found = inexact(rows, 40 if INTERPRETED else 20_000, 0.05, 1), set()
    for config in tuning.configs:
        monkeypatch.setattr(kernels, name, replace(tuning, configs=[config]))
        found.add(gram_of(memory).tobytes())
    assert len(found) == 1


def test_adds_to_what_is_there() -> None:
    memory = training_run(3, 1000)
    expected = memory.deltas @ memory.deltas.T + 7.0
    assert np.allclose(gram_of(memory, start=7.0), expected, rtol=1e-9, atol=0)


# ---- deltas that bf16 cannot hold --------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "rows", "columns"),
    [(s, t, n) for s in (0.002, 0.1, 1.0) for t, n in ((2, 1023), (17, 700), (75, 100))]
    + [(0.1, 140, 60)],
)
def test_bf16_deltas_that_are_not_bf16(share: float, rows: int, columns: int) -> None:
    memory = inexact(rows, columns, share, seed=rows)
    if columns * share > 20:
        assert not is_bf16(memory.deltas).all(), "the case must leave bf16"
    heavy = tolerances.GRAM_HEAVY_TAILED
    assert_close(gram_of(memory), memory, heavy, heavy)


@pytest.mark.parametrize("rows", [5, 75, 130])
def test_blocks_with_and_without_inexact_columns(rows: int) -> None:
    """Of four blocks the third, in a row of the first tile, and the last, in a row of the last."""
    rng, columns = np.random.default_rng(rows), 4 * DEPTH
    base = rng.uniform(0.016, 0.03, columns)  # differences within one binade are bf16
    words = [oracle.round_to(base + rng.normal(0, 3e-4, columns), "BF16") for _ in range(rows)]
    memory = Memory(oracle.round_to(base, "BF16"), "BF16", words, ["BF16"] * rows)
    assert is_bf16(memory.deltas).all()
    assert_close(gram_of(memory), memory)
    for row, column in ((1, 2 * DEPTH + 5), (rows - 1, columns - 1)):
        words[row][column] = oracle.round_to(np.array([3e-7]), "BF16")[0]
    assert np.argwhere(~is_bf16(memory.deltas)).tolist() == [
        [1, 2 * DEPTH + 5],
        [rows - 1, columns - 1],
    ]
    heavy = tolerances.GRAM_HEAVY_TAILED
    assert_close(gram_of(memory), memory, heavy, heavy)


def test_every_bit_of_a_delta_counts() -> None:
    """Two rows that differ from one another in their last bits only, and a third across them: the
    product of pieces must tell what is left when the rest cancels."""
    rng = np.random.default_rng(3)
    one = rng.integers(2**23, 2**24, 64).astype(np.float64) * 2.0**-24
    other = one + np.where(rng.random(64) < 0.5, 2.0**-24, -(2.0**-24))
    rows = [oracle.round_to(x, "F32") for x in (one, other, rng.normal(0, 1, 64))]
    memory = Memory(None, "F32", rows, ["F32"] * 3)
    assert_close(gram_of(memory), memory)


# ---- the edges of fp32 -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-18, 1e-13, 1e12, 1e19, 1e25, 1e37])
def test_squares_outside_fp32(dtype: str, scale: float) -> None:
    rng = np.random.default_rng(4)
    direction = rng.normal(0, 1, 300)
    noise = rng.normal(0, 0.1, (4, 300))
    rows = [oracle.round_to((direction * (t + 1) + noise[t]) * scale, dtype) for t in range(4)]
    memory = Memory(np.zeros_like(rows[0]), dtype, rows, [dtype] * 4)
    assert_close(gram_of(memory), memory)


def test_rows_of_very_different_size() -> None:
    """Each element of G relative to its own rows, 40 orders of magnitude apart, in two tiles."""
    rng = np.random.default_rng(5)
    scales = np.resize([1e-25, 1e-10, 1.0, 1e15], 18)
    rows = [oracle.round_to(rng.normal(0, s, 200), "F32") for s in scales]
    memory = Memory(None, "F32", rows, ["F32"] * 18)
    assert_close(gram_of(memory), memory)


def test_one_part_of_two_leaves_fp32() -> None:
    rng = np.random.default_rng(6)
    size = np.where(np.arange(PART + 500) < PART, 1e-24, 1e-3)
    rows = [oracle.round_to(rng.normal(0, 1, size.size) * size, "F32") for _ in range(3)]
    memory = Memory(None, "F32", rows, ["F32"] * 3)
    first = Memory(None, "F32", [row[:PART] for row in rows], ["F32"] * 3)
    assert_close(gram_of(memory), memory)
    assert_close(gram_of(first), first)


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_rows_are_exact_zeros(dtype: str) -> None:
    memory = training_run(4, 1100, dtype, (dtype,))
    assert memory.base is not None
    memory.rows[1] = memory.base.copy()
    gram = gram_of(memory)
    assert not gram[1].any() and not gram[:, 1].any()
    moving = np.array([0, 2, 3])
    expected = memory.deltas[moving] @ memory.deltas[moving].T
    assert np.allclose(gram[np.ix_(moving, moving)], expected, rtol=1e-5, atol=0)


def test_minus_zero_is_zero() -> None:
    base = np.full(333, 0x8000, np.uint16)
    rows = [np.zeros(333, np.uint16), base.copy()]
    assert not gram_of(Memory(base, "BF16", rows, ["BF16", "BF16"])).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 200])
def test_non_finite_values_reach_the_diagonal(dtype: str, value: float, column: int) -> None:
    memory = training_run(3, 201, dtype, (dtype,))
    memory.rows[1][column] = oracle.round_to(np.array([value]), dtype)[0]
    finite: Float64 = np.isfinite(np.diag(gram_of(memory)))
    assert finite.tolist() == [True, False, True]


def test_no_columns_add_nothing() -> None:
    rows = [np.zeros(0, np.uint16)] * 3
    found = gram_of(Memory(None, "BF16", rows, ["BF16"] * 3), start=2.0)
    assert (found == 2.0).all()
