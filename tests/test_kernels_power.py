"""The power_step kernels of every ISA against M (Mᵀ U) in float64."""

from __future__ import annotations

import numpy as np
import pytest

import tolerances
from memory import Memory, training_run
from oracle import Float64
from relex_ext import _core
from tables import BACKENDS, ISAS, MIXES, SHAPES, backend


def vectors(rows: int, k: int) -> np.ndarray:
    return np.random.default_rng([rows, k]).normal(size=(rows, k)).astype(np.float32)


def step(name: str, memory: Memory, u: np.ndarray, threads: int = 2) -> tuple[Float64, Float64]:
    y, energy = np.zeros(u.shape), np.zeros(len(u))
    backend(name, threads).power_step(memory.strips(), u, y, energy)
    return y, energy


def assert_close(found: tuple[Float64, Float64], memory: Memory, u: np.ndarray) -> None:
    m = memory.deltas
    y = m @ (m.T @ u.astype(np.float64))
    energy = np.sum(m * m, axis=1)
    # Against the size of what is summed, ‖Δ_t‖ ‖M‖ ‖u‖: y itself may cancel.
    norms = np.sqrt(energy)
    scale = np.outer(norms, np.linalg.norm(u, axis=0)) * np.linalg.norm(norms)
    assert np.max(np.abs(found[0] - y) / np.maximum(scale, 1e-300)) <= tolerances.GRAM
    assert np.allclose(found[1], energy, rtol=tolerances.SIGMA, atol=0)
    assert energy.any()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_shape_in_bf16(name: str, rows: int, columns: int) -> None:
    memory, u = training_run(rows, columns, step=0.05, offset=3), vectors(rows, min(rows, 4))
    assert_close(step(name, memory, u), memory, u)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("base", "rows"), MIXES)
def test_every_dtype(name: str, base: str, rows: tuple[str, ...]) -> None:
    memory, u = training_run(17, 66001, base, rows, offset=1), vectors(17, 4)
    assert_close(step(name, memory, u), memory, u)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 8, 9, 63, 64])
def test_every_number_of_vectors(name: str, k: int) -> None:
    memory, u = training_run(9, 3001), vectors(9, k)
    assert_close(step(name, memory, u), memory, u)


@pytest.mark.parametrize("name", BACKENDS)
def test_energy_can_be_left_out(name: str) -> None:
    memory, u = training_run(5, 3001), vectors(5, 4)
    expected, _ = step(name, memory, u)
    y = np.zeros(u.shape)
    backend(name).power_step(memory.strips(), u, y, None)
    assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ISAS)
@pytest.mark.parametrize(("base", "rows"), MIXES)
def test_threads_change_no_bit(name: str, base: str, rows: tuple[str, ...]) -> None:
    memory, u = training_run(7, 500_003, base, rows, offset=5), vectors(7, 4)
    one = step(name, memory, u, 1)
    assert one[0].all() and one[1].all()
    for threads in (2, 7):
        found = step(name, memory, u, threads)
        assert [a.tobytes() for a in found] == [a.tobytes() for a in one]


@pytest.mark.parametrize("name", ISAS)
def test_windows_of_segments_change_no_bit(name: str) -> None:
    memory, u = training_run(5, 3 * _core.SEGMENT + 77), vectors(5, 4)
    whole = step(name, memory, u)
    y, energy = np.zeros(u.shape), np.zeros(5)
    for begin in range(0, memory.columns, _core.SEGMENT):
        strips = memory.strips(begin, min(begin + _core.SEGMENT, memory.columns))
        backend(name).power_step(strips, u, y, energy)
    assert y.tobytes() == whole[0].tobytes()
    assert energy.tobytes() == whole[1].tobytes()
