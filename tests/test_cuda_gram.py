"""The CUDA gram kernels, run on this processor, against M Mᵀ in float64."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
import tolerances
from emulated import COLUMNS, SCHEDULES, SHAPES, SHARED, Emulated, Fenced
from memory import Memory, training_run
from oracle import Float64
from relex_ext import _core
from tables import DTYPES, MIXES
from test_kernels_gram import assert_close, inexact, is_bf16


def gram_of(memory: Memory, workspace: float = 1.0) -> Float64:
    """The lower triangle, with zeros above."""
    rows = len(memory.rows)
    gram = np.triu(np.full((rows, rows), 0.5), 1)
    Emulated(workspace).gram(memory.strips(), gram)
    assert (gram[np.triu_indices(rows, 1)] == 0.5).all(), "the upper triangle is not its business"
    return np.tril(gram)


def symmetric(gram: Float64) -> Float64:
    return gram + np.tril(gram, -1).T


def moving(rows: int, columns: int, base: str = "BF16", dtypes: tuple[str, ...] = ("BF16",),
           offset: int = 0) -> Memory:  # fmt: skip
    """A step as large as the weights; a column that rounds back to its base is made to move."""
    memory = training_run(rows, columns, base, dtypes, step=0.05, offset=offset)
    for t, delta in enumerate(memory.deltas):
        if not delta.any():
            memory.rows[t] = oracle.round_to(memory.base_values + 0.25, memory.dtypes[t])
    return memory


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_shape_in_bf16(rows: int, columns: int, offset: int) -> None:
    memory = moving(rows, columns, offset=offset)
    assert_close(symmetric(gram_of(memory)), memory)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("base", "dtypes"), MIXES)
@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (17, 9001), (161, 300), (40, 8192)])
def test_every_dtype(
    base: str, dtypes: tuple[str, ...], rows: int, columns: int, offset: int
) -> None:
    memory = moving(rows, columns, base, dtypes, offset)
    assert_close(symmetric(gram_of(memory)), memory)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_every_number_of_columns_in_other_dtypes(dtype: str, columns: int) -> None:
    memory = moving(5, columns, dtype, (dtype,))
    assert_close(symmetric(gram_of(memory)), memory)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 9), (17, 3001), (75, 1000)])
def test_no_base_means_zeros(dtype: str, rows: int, columns: int) -> None:
    memory = training_run(rows, columns, dtype, (dtype,), with_base=False)
    assert_close(symmetric(gram_of(memory)), memory)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", range(1, 17))
def test_unaligned_addresses_change_nothing(dtype: str, offset: int) -> None:
    aligned = training_run(6, 1003, dtype, (dtype,))
    shifted = training_run(6, 1003, dtype, (dtype,), offset=offset)
    assert gram_of(aligned).tobytes() == gram_of(shifted).tobytes()


# ---- the same bytes, whatever happens ----------------------------------------------------------

CASES = [
    (rows, columns, base, dtypes)
    for rows, columns in ((17, 8300), (75, 1000), (200, 300))
    for base, dtypes in (("BF16", ("BF16",)), ("BF16", ("F32", "F16", "BF16")))
]


@pytest.mark.parametrize(("rows", "columns", "base", "dtypes"), CASES)
def test_schedules_change_no_bit(
    rows: int, columns: int, base: str, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, found = training_run(rows, columns, base, dtypes), set()
    for schedule in SCHEDULES:
        for name, value in schedule.items():
            monkeypatch.setenv(name, value)
        found.add(gram_of(memory).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize("rows", [17, 200])
def test_schedules_change_no_bit_of_inexact_columns(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, found = inexact(rows, 700, 0.3, seed=1), set()
    for schedule in SCHEDULES:
        for name, value in schedule.items():
            monkeypatch.setenv(name, value)
        found.add(gram_of(memory).tobytes())
    assert len(found) == 1


@pytest.mark.parametrize(("rows", "columns", "base", "dtypes"), CASES)
def test_less_shared_memory_is_as_right(
    rows: int, columns: int, base: str, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, found = training_run(rows, columns, base, dtypes), set()
    for kib in SHARED:
        monkeypatch.setenv("RELEX_EMULATED_SHARED", str(kib * 1024))
        gram = gram_of(memory)
        assert_close(symmetric(gram), memory)
        found.add(gram.tobytes())
    if rows <= 160:  # above, what shares a job with a row decides how its columns are multiplied
        assert len(found) == 1


@pytest.mark.parametrize(
    ("rows", "columns", "dtype"),
    [(5, 40000, "BF16"), (5, 40000, "F16"), (75, 17000, "BF16"), (161, 8193, "F32")],
)
def test_small_workspaces_change_no_bit(rows: int, columns: int, dtype: str) -> None:
    memory = training_run(rows, columns, dtype, (dtype,))
    found = {gram_of(memory, workspace).tobytes() for workspace in (0.0, 0.4, 1.0)}
    assert len(found) == 1


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("window", [1, 2])
def test_windows_of_segments_change_no_bit(dtype: str, window: int) -> None:
    memory = training_run(5, 3 * _core.SEGMENT + 77, dtype, (dtype,))
    whole, pieces = np.zeros((5, 5)), np.zeros((5, 5))
    Emulated().gram(memory.strips(), whole)
    width = window * _core.SEGMENT
    for begin in range(0, memory.columns, width):
        strips = memory.strips(begin, min(begin + width, memory.columns))
        Emulated().gram(strips, pieces)
    assert whole.any()
    assert whole.tobytes() == pieces.tobytes()


def test_adds_to_what_is_there() -> None:
    memory = training_run(3, 1000)
    gram = np.full((3, 3), 7.0)
    Emulated().gram(memory.strips(), gram)
    expected = np.tril(memory.deltas @ memory.deltas.T) + 7.0
    assert np.allclose(gram, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [8, 9, 1000, 1003])
def test_reads_stay_inside_of_the_rows_pages(dtype: str, columns: int, at_end: bool) -> None:
    memory, fenced = training_run(5, columns, dtype, (dtype,)), Fenced()
    gram = np.zeros((5, 5))
    Emulated().gram(fenced.strips(memory, at_end), gram)
    assert gram.tobytes() == gram_of(memory).tobytes()


# ---- what the tensor cores do ------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(17, 24653), (75, 8192), (161, 1000)])
def test_tensor_cores_that_truncate(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELEX_EMULATED_SUMS", "truncated")
    memory = training_run(rows, columns)
    assert_close(symmetric(gram_of(memory)), memory)


@pytest.mark.parametrize("share", [0.0005, 0.02, 0.2, 0.6, 1.0])
@pytest.mark.parametrize(
    ("rows", "columns"), [(2, 8191), (5, 2049), (17, 9003), (6, 31), (75, 700), (200, 300)]
)
def test_bf16_deltas_that_are_not_bf16(share: float, rows: int, columns: int) -> None:
    memory = inexact(rows, columns, share, seed=rows)
    if columns * share > 20:
        assert not is_bf16(memory.deltas).all(), "the case must leave bf16"
    heavy = tolerances.GRAM_HEAVY_TAILED
    assert_close(symmetric(gram_of(memory)), memory, heavy, heavy)


# ---- the edges of fp32 -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-18, 1e-13, 1e12, 1e19, 1e25, 1e37])
def test_squares_outside_fp32(dtype: str, scale: float) -> None:
    rng = np.random.default_rng(4)
    direction, noise = rng.normal(0, 1, 9001), rng.normal(0, 0.1, (4, 9001))
    rows = [oracle.round_to((direction * (t + 1) + noise[t]) * scale, dtype) for t in range(4)]
    base = oracle.round_to(np.zeros(9001), dtype)
    memory = Memory(base, dtype, rows, [dtype] * 4)
    assert_close(symmetric(gram_of(memory)), memory)


@pytest.mark.parametrize("rows", [33, 170])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_many_rows_outside_fp32(rows: int, scale: float) -> None:
    rng = np.random.default_rng(6)
    words = [oracle.round_to(rng.normal(0, scale, 300), "BF16") for _ in range(rows)]
    memory = Memory(None, "BF16", words, ["BF16"] * rows)
    assert_close(symmetric(gram_of(memory)), memory)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_one_part_outside_fp32(part: int, dtype: str) -> None:
    """The part that is done again adds once, and the others stay as they are."""
    memory = training_run(5, 3 * 8192, dtype, (dtype,), with_base=False)
    for t, row in enumerate(memory.rows):
        tiny = oracle.to_float64(row, dtype) * 1e-22
        tiny[8192 * part + t] = 1e21  # as large as all the rest is small
        cut = slice(8192 * part, 8192 * (part + 1))
        row[cut] = oracle.round_to(tiny, dtype)[cut]
    assert_close(symmetric(gram_of(memory)), memory)


def test_rows_of_very_different_size() -> None:
    """Each element of G relative to its own rows, 40 orders of magnitude apart."""
    scales = [1e-25, 1e-10, 1.0, 1e15]
    rng = np.random.default_rng(5)
    rows = [oracle.round_to(rng.normal(0, s, 9000), "F32") for s in scales]
    memory = Memory(None, "F32", rows, ["F32"] * 4)
    assert_close(symmetric(gram_of(memory)), memory)


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_rows_are_exact_zeros(dtype: str) -> None:
    memory = training_run(4, 9001, dtype, (dtype,))
    assert memory.base is not None
    memory.rows[1] = memory.base.copy()
    gram = symmetric(gram_of(memory))
    assert not gram[1].any() and not gram[:, 1].any()
    assert gram[0, 0] > 0 and gram[3, 2] > 0


def test_minus_zero_is_zero() -> None:
    base = np.full(333, 0x8000, np.uint16)
    rows = [np.zeros(333, np.uint16), base.copy()]
    assert not gram_of(Memory(base, "BF16", rows, ["BF16", "BF16"])).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 8191, 8200, 8999])
def test_non_finite_values_reach_the_diagonal(dtype: str, value: float, column: int) -> None:
    memory = training_run(3, 9000, dtype, (dtype,))
    memory.rows[1][column] = oracle.round_to(np.array([value]), dtype)[0]
    diagonal = np.diag(gram_of(memory))
    assert np.isfinite(diagonal).tolist() == [True, False, True]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_base_that_is_not_finite_reaches_every_row(value: float) -> None:
    memory = training_run(3, 1000)
    assert memory.base is not None
    memory.base[500] = oracle.round_to(np.array([value]), "BF16")[0]
    assert not np.isfinite(np.diag(gram_of(memory))).any()
