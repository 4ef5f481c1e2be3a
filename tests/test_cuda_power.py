"""The CUDA power_step kernels, run on this processor, against M (Mᵀ U) in float64."""

from __future__ import annotations

import numpy as np
import pytest

from emulated import COLUMNS, ROWS, SCHEDULES, SHARED, Emulated, Fenced
from memory import Memory, training_run
from oracle import Float64
from relex_ext import _core
from relex_ext.backends import Strips
from tables import DTYPES, MIXES
from test_kernels_power import assert_close, vectors

SHAPES = (
    *((t, n) for t in ROWS for n in (9, 1000)),
    *((t, n) for t in (2, 17) for n in COLUMNS),
    (75, 24653),
    (161, 8193),
)


def step(
    memory: Memory, u: np.ndarray, workspace: float = 1.0, strips: Strips | None = None
) -> tuple[Float64, Float64]:
    y, energy = np.zeros(u.shape), np.zeros(len(u))
    Emulated(workspace).power_step(strips or memory.strips(), u, y, energy)
    return y, energy


def joined(found: tuple[Float64, Float64]) -> bytes:
    return found[0].tobytes() + found[1].tobytes()


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_shape_in_bf16(rows: int, columns: int, offset: int) -> None:
    memory = training_run(rows, columns, step=0.05, offset=offset)
    u = vectors(rows, min(rows, 4))
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("base", "dtypes"), MIXES)
@pytest.mark.parametrize(("rows", "columns"), [(17, 9001), (161, 300)])
def test_every_dtype(
    base: str, dtypes: tuple[str, ...], rows: int, columns: int, offset: int
) -> None:
    memory = training_run(rows, columns, base, dtypes, offset=offset)
    u = vectors(rows, 4)
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_every_number_of_columns_in_other_dtypes(dtype: str, columns: int) -> None:
    memory, u = training_run(5, columns, dtype, (dtype,), step=0.05), vectors(5, 3)
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64])
@pytest.mark.parametrize("rows", [9, 80])
def test_every_number_of_vectors(rows: int, k: int) -> None:
    memory, u = training_run(rows, 1003), vectors(rows, k)
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_base_means_zeros(dtype: str) -> None:
    memory, u = training_run(17, 3001, dtype, (dtype,), with_base=False), vectors(17, 4)
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_energy_can_be_left_out(k: int) -> None:
    memory, u = training_run(5, 3001), vectors(5, k)
    expected, _ = step(memory, u)
    y = np.zeros(u.shape)
    Emulated().power_step(memory.strips(), u, y, None)
    assert y.tobytes() == expected.tobytes()


def test_adds_to_what_is_there() -> None:
    memory, u = training_run(5, 1000), vectors(5, 3)
    y, energy = np.full(u.shape, 3.0), np.full(5, 4.0)
    Emulated().power_step(memory.strips(), u, y, energy)
    m = memory.deltas
    assert np.allclose(y, m @ (m.T @ u.astype(np.float64)) + 3.0, rtol=1e-9, atol=1e-9)
    assert np.allclose(energy, np.sum(m * m, axis=1) + 4.0, rtol=1e-9, atol=0)


# ---- the same bytes, whatever happens ----------------------------------------------------------

CASES = [
    (rows, columns, base, dtypes)
    for rows, columns in ((17, 8300), (75, 1000), (200, 300))
    for base, dtypes in (("BF16", ("BF16",)), ("BF16", ("F32", "F16", "BF16")))
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", range(1, 17))
def test_unaligned_addresses_change_nothing(dtype: str, offset: int) -> None:
    u = vectors(6, 4)
    aligned = training_run(6, 1003, dtype, (dtype,))
    shifted = training_run(6, 1003, dtype, (dtype,), offset=offset)
    assert joined(step(aligned, u)) == joined(step(shifted, u))


@pytest.mark.parametrize(("rows", "columns", "base", "dtypes"), CASES)
def test_schedules_change_no_bit(
    rows: int, columns: int, base: str, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, u, found = training_run(rows, columns, base, dtypes), vectors(rows, 5), set()
    for schedule in SCHEDULES:
        for name, value in schedule.items():
            monkeypatch.setenv(name, value)
        found.add(joined(step(memory, u)))
    assert len(found) == 1


@pytest.mark.parametrize(("rows", "columns", "base", "dtypes"), CASES)
def test_less_shared_memory_is_as_right(
    rows: int, columns: int, base: str, dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the same bytes: the width of a chunk, and the order of the sums, follow from it."""
    memory, u = training_run(rows, columns, base, dtypes), vectors(rows, 5)
    for kib in SHARED:
        monkeypatch.setenv("RELEX_EMULATED_SHARED", str(kib * 1024))
        assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_thousands_of_rows(dtype: str, k: int) -> None:
    """More than any block's shared memory holds."""
    memory, u = training_run(1500, 200, dtype, (dtype,)), vectors(1500, k)
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_small_workspaces_change_no_bit(dtype: str) -> None:
    memory, u = training_run(7, 50000, dtype, (dtype,)), vectors(7, 5)
    assert len({joined(step(memory, u, workspace)) for workspace in (0.0, 0.4, 1.0)}) == 1


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_windows_of_segments_change_no_bit(dtype: str) -> None:
    memory, u = training_run(5, 3 * _core.SEGMENT + 77, dtype, (dtype,)), vectors(5, 4)
    whole = step(memory, u)
    y, energy = np.zeros(u.shape), np.zeros(5)
    for begin in range(0, memory.columns, _core.SEGMENT):
        strips = memory.strips(begin, min(begin + _core.SEGMENT, memory.columns))
        Emulated().power_step(strips, u, y, energy)
    assert joined((y, energy)) == joined(whole)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [8, 9, 1000, 1003])
def test_reads_stay_inside_of_the_rows_pages(dtype: str, columns: int, at_end: bool) -> None:
    memory, fenced, u = training_run(5, columns, dtype, (dtype,)), Fenced(), vectors(5, 3)
    found = step(memory, u, strips=fenced.strips(memory, at_end))
    assert joined(found) == joined(step(memory, u))
