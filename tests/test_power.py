"""Power iteration: convergence on spectra that plain power iteration is slow on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tolerances
from memory import training_run
from oracle import Float64
from relex_ext import power
from relex_ext.backends import Backend
from tables import BACKENDS, backend


def gram_with(sigma: Float64, seed: int = 0) -> tuple[Float64, Float64]:
    """A random G with those singular values, and its eigenvectors."""
    t = len(sigma)
    u = np.linalg.qr(np.random.default_rng([seed, t]).normal(size=(t, t)))[0]
    return (u * sigma**2) @ u.T, u


def step_of(gram: Float64) -> Callable[[np.ndarray], Float64]:
    return lambda u: gram @ u.astype(np.float64)


def plain_passes(gram: Float64, tolerance: float, most: int) -> int:
    """Passes of textbook power iteration from the same first vector until the same residual."""
    u = power.start_block(len(gram), 1)[:, 0]
    for count in range(1, most + 1):
        image = gram @ u
        value = u @ image
        if np.linalg.norm(image - value * u) <= tolerance * value:
            return count
        u = image / np.linalg.norm(image)
    return most


def assert_solved(gram: Float64, rank: int) -> int:
    u, values, residuals, passes = power.solve(step_of(gram), len(gram), rank)
    expected = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1][:rank], 0))
    assert np.allclose(np.sqrt(values), expected, rtol=tolerances.SIGMA, atol=0)
    true = np.linalg.norm(gram @ u - u * values, axis=0) / values
    assert (true <= tolerances.POWER_RESIDUAL).all()
    assert (residuals <= tolerances.POWER_RESIDUAL).all()
    assert np.allclose(u.T @ u, np.eye(u.shape[1]), rtol=0, atol=tolerances.VECTOR)
    assert (u.sum(axis=0) >= 0).all()
    return passes


@pytest.mark.parametrize("ratio", [0.5, 0.97, 0.99])
@pytest.mark.parametrize("rows", [2, 3, 4, 5, 10, 17, 75, 200])
@pytest.mark.parametrize("rank", [1, 3])
def test_geometric_spectra(ratio: float, rows: int, rank: int) -> None:
    gram, _ = gram_with(3.0 * ratio ** np.arange(rows))
    passes = assert_solved(gram, min(rank, rows))
    assert passes <= -(-rows // power.block_size(rows, rank)) + 1


@pytest.mark.parametrize(("ratio", "most"), [(0.97, 25), (0.99, 30)])
def test_far_fewer_passes_than_plain_power_iteration(ratio: float, most: int) -> None:
    gram, _ = gram_with(np.concatenate([[1.0], ratio * np.linspace(1, 0.01, 199)]))
    passes = assert_solved(gram, 1)
    assert passes <= most
    assert plain_passes(gram, tolerances.POWER_RESIDUAL, 7 * most) == 7 * most


@pytest.mark.parametrize("rows", [8, 40, 120])
@pytest.mark.parametrize("seed", range(5))
def test_start_orthogonal_to_the_leading_vector(rows: int, seed: int) -> None:
    """The deterministic part of the start has nothing of u₁; the random vector must find it."""
    start = power.start_block(rows, 4)[:, :3]
    u = np.random.default_rng(seed).normal(size=(rows, rows))
    u[:, 0] -= start @ (start.T @ u[:, 0])
    u = np.linalg.qr(u)[0]
    assert np.abs(start.T @ u[:, 0]).max() < 1e-12
    assert_solved((u * np.linspace(2, 0.1, rows) ** 2) @ u.T, 1)


@pytest.mark.parametrize("rows", [2, 5, 33])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_equal_singular_values(rows: int, rank: int) -> None:
    """Any vector of the eigenspace is an answer; the residual and σ are what is defined."""
    gram, _ = gram_with(np.ones(rows))
    assert_solved(gram, min(rank, rows))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_two_equal_leading_values(rank: int) -> None:
    gram, _ = gram_with(np.array([5.0, 5.0, 2.0, 1.0, 1.0, 0.5, 0.1]))
    assert_solved(gram, rank)


def test_rank_one_matrix() -> None:
    """σ₂ = 0: the second pair of a rank-2 request is zero, not noise."""
    gram, u = gram_with(np.array([4.0] + [0.0] * 19))
    found, values, _, passes = power.solve(step_of(gram), 20, 2)
    assert np.sqrt(values[0]) == pytest.approx(4.0, rel=tolerances.SIGMA)
    assert values[1] <= 1e-6 * values[0]
    assert abs(found[:, 0] @ u[:, 0]) == pytest.approx(1.0, abs=tolerances.EXACT)
    assert passes <= 5


def test_one_row() -> None:
    u, values, _, passes = power.solve(step_of(np.array([[9.0]])), 1, 1)
    assert (u.tolist(), passes) == ([[1.0]], 1)
    assert values[0] == pytest.approx(9.0, rel=tolerances.SIGMA)


def test_most_limits_the_passes() -> None:
    gram, _ = gram_with(0.999 ** np.arange(100))
    _, _, residuals, passes = power.solve(step_of(gram), 100, 1, most=3)
    assert passes == 3
    assert residuals[0] > tolerances.POWER_RESIDUAL


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("rows", "columns"), [(2, 5000), (17, 20001), (40, 3000)])
@pytest.mark.parametrize("rank", [1, 3])
def test_on_real_kernels(name: str, rows: int, columns: int, rank: int) -> None:
    memory = training_run(rows, columns)
    engine: Backend = backend(name)
    strips = memory.strips()

    def step(u: np.ndarray) -> Float64:
        y = np.zeros(u.shape)
        engine.power_step(strips, u, y, None)
        return y

    u, values, _, _ = power.solve(step, rows, rank)
    k = min(rank, rows)
    left, sigma, _ = np.linalg.svd(memory.deltas, full_matrices=False)
    assert np.sqrt(values[0]) == pytest.approx(sigma[0], rel=tolerances.SIGMA)
    # fp32 products leave an error of 1e-7 σ₁² on every σ², small ones too.
    assert np.allclose(values, sigma[:k] ** 2, rtol=0, atol=tolerances.GRAM * sigma[0] ** 2)
    assert abs(left[:, 0] @ u[:, 0]) == pytest.approx(1.0, abs=tolerances.VECTOR)
