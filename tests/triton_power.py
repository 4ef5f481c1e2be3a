"""The Triton power_step kernels against M (Mᵀ U) in float64. Run by test_triton_kernels.py."""

from __future__ import annotations

import numpy as np
import pytest

from memory import Memory, training_run
from relex_ext import _core
from tables import MIXES
from test_kernels_gram import inexact
from test_kernels_power import assert_close, vectors
from triton_device import kernels, marks, step

pytestmark = marks

PART = kernels.PART.value

SHAPES = (
    *((t, 97) for t in (1, 2, 15, 16, 17, 75)),
    *((3, n) for n in (1, 31, 33, 64, 65, PART, PART + 1)),
    (65, 300),
    (200, 65),
)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_shape_in_bf16(rows: int, columns: int) -> None:
    memory, u = training_run(rows, columns, step=0.05), vectors(rows, min(rows, 4))
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize(("base", "dtypes"), MIXES)
@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (17, 333), (130, 70)])
def test_every_dtype(base: str, dtypes: tuple[str, ...], rows: int, columns: int) -> None:
    memory, u = training_run(rows, columns, base, dtypes), vectors(rows, 4)
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("rows", [9, 130])
@pytest.mark.parametrize("k", [1, 3, 15, 16, 17, 64])
def test_every_number_of_vectors(rows: int, k: int) -> None:
    memory, u = training_run(rows, 150), vectors(rows, k)
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("share", [0.02, 1.0])
@pytest.mark.parametrize("rows", [5, 75, 140])
def test_bf16_deltas_that_are_not_bf16(share: float, rows: int) -> None:
    memory, u = inexact(rows, 300, share, seed=rows), vectors(rows, 4)
    assert_close(step(memory, u), memory, u)


def test_no_base_means_zeros() -> None:
    memory, u = training_run(5, 301, with_base=False), vectors(5, 3)
    assert_close(step(memory, u), memory, u)


@pytest.mark.parametrize("rows", [6, 130])
def test_unaligned_addresses_change_nothing(rows: int) -> None:
    memory, u = training_run(rows, 203), vectors(rows, 4)
    found, shifted = step(memory, u), step(memory, u, shift=True)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in shifted]


@pytest.mark.parametrize("rows", [5, 130])
def test_energy_can_be_left_out(rows: int) -> None:
    memory, u = training_run(rows, 150), vectors(rows, 4)
    y, _ = step(memory, u)
    alone, none = step(memory, u, energy=False)
    assert y.tobytes() == alone.tobytes()
    assert not none.any()


def test_adds_to_what_is_there() -> None:
    memory, u = training_run(4, 300, step=0.05), vectors(4, 2)
    y, energy = step(memory, u)
    more = step(memory, u, start=7.0)
    assert np.allclose(more[0], y + 7.0, rtol=1e-12, atol=0)
    assert np.allclose(more[1], energy + 7.0, rtol=1e-12, atol=0)


def test_windows_of_segments_change_no_bit() -> None:
    memory, u = training_run(2, _core.SEGMENT + 77), vectors(2, 2)
    whole = step(memory, u)
    assert_close(whole, memory, u)
    pieces = step(memory, u, ((0, _core.SEGMENT), (_core.SEGMENT, None)))
    assert [a.tobytes() for a in pieces] == [a.tobytes() for a in whole]


@pytest.mark.parametrize("rows", [3])
def test_launches_change_no_bit(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, u = training_run(rows, PART + 70), vectors(rows, 2)
    whole = step(memory, u)
    assert_close(whole, memory, u)
    monkeypatch.setattr(kernels, "_WORKSPACE", 1)
    parts = step(memory, u)
    assert [a.tobytes() for a in parts] == [a.tobytes() for a in whole]


def test_a_frozen_tensor_has_no_energy() -> None:
    memory = training_run(3, 200)
    assert memory.base is not None
    still = Memory(memory.base, "BF16", [memory.base.copy()] * 3, ["BF16"] * 3)
    y, energy = step(still, vectors(3, 2))
    assert not y.any() and not energy.any()
