"""What a random walk shows, and whether p says what it claims to say."""

from __future__ import annotations

import numpy as np
import pytest

import walks
from oracle import Float64
from relex_ext.evidence.measures import line_r2, measure
from relex_ext.evidence.nulls import (
    Flips,
    Memory,
    cosine,
    innovations,
    memory_of,
    share_reaching,
    sizes_of,
    updates_of,
    walk_gram,
)


def gram_of(updates: Float64) -> Float64:
    m = np.cumsum(updates, axis=0)
    return m @ m.T


def kolmogorov(p: Float64) -> float:
    """Largest distance of the distribution of p from the uniform one."""
    p = np.sort(p)
    ranks = np.arange(1, len(p) + 1) / len(p)
    return float(np.maximum(np.abs(p - ranks), np.abs(p - ranks + 1 / len(p))).max())


# ---- closed forms ------------------------------------------------------------------------------


def test_updates_and_sizes_from_the_gram_matrix() -> None:
    d = walks.updates(np.random.default_rng(0), 9, 30, drift=0.3)
    assert np.allclose(updates_of(gram_of(d)), d @ d.T, rtol=0, atol=1e-10)
    assert np.allclose(sizes_of(gram_of(d)), (d**2).sum(axis=1), rtol=1e-10)
    stack = np.stack([gram_of(d), gram_of(2 * d)])
    assert np.allclose(updates_of(stack)[1], 4 * d @ d.T, rtol=0, atol=1e-9)
    lower = np.tril(np.ones((9, 9)))
    sizes = (d**2).sum(axis=1)
    assert np.allclose(walk_gram(sizes), lower @ np.diag(sizes) @ lower.T, rtol=1e-13)


@pytest.mark.parametrize("count", [5, 20, 75])
def test_closed_form_is_what_walks_in_high_dimension_show(count: int) -> None:
    """Updates of very different sizes in 20,000 dimensions; the SVD of the deltas themselves."""
    rng = np.random.default_rng(count)
    d = rng.normal(size=(count, 20_000)) * np.exp(rng.normal(0, 0.7, count))[:, None]
    m = np.cumsum(d, axis=0)
    steps = np.cumsum(rng.integers(1, 9, count)).tolist()
    gram = m @ m.T / np.trace(m @ m.T)
    found = measure(gram[None], steps)
    assert np.allclose(found.null_shares[0], walks.shares(m), rtol=0, atol=0.02)
    assert found.null_r2[0] == pytest.approx(walks.r2(steps, walks.leading(m)), abs=0.02)
    assert walks.straightness(m) == pytest.approx(1.0, abs=0.05)


def test_known_limits_of_equal_updates() -> None:
    """8/π² as T grows, and the k-th eigenvalue a (2k−1)⁻² of it; R² ≈ 0.96 at T = 75."""
    walk = walk_gram(np.ones((1, 800))) / 800 / 801 * 2
    found = measure(walk, range(1, 801))
    limits = 8 / np.pi**2 * np.cumsum(1 / np.arange(1, 10, 2) ** 2)
    assert np.allclose(found.shares[0], limits, rtol=0, atol=2e-3)
    assert found.shares[0, 0] == pytest.approx(0.8106, abs=1e-3)
    assert np.allclose(found.null_shares, found.shares, rtol=0, atol=1e-12)
    short = measure(walk_gram(np.ones((1, 75))) / 75 / 76 * 2, range(1, 76))
    assert short.r2[0] == pytest.approx(0.9595, abs=2e-3)
    assert short.straightness[0] == pytest.approx(1.0, rel=1e-12)


# ---- draws -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phi", "block"), [(0.0, 1), (0.0, 4), (0.6, 1), (0.6, 3)])
def test_draws_are_flipped_paths(phi: float, block: int) -> None:
    """Every statistic of every draw, against paths put together from flipped innovations."""
    rng = np.random.default_rng(7)
    d = walks.updates(rng, 22, 40, momentum=0.6, drift=0.2)
    h = d @ d.T
    flips = Flips(22, Memory(phi, block), 15, seed=3)
    e = d.copy()
    e[1:] -= phi * d[:-1]
    assert np.allclose(innovations(h, phi), e @ e.T, rtol=0, atol=1e-10)
    straight = flips.straightness(np.stack([h, h / 2]))
    shares, vectors = flips.spectra(h, 5)
    cosines = flips.cosines(h, [1, 4])
    r2 = line_r2(np.arange(22.0), vectors)
    blocks = -(-22 // block)
    assert flips.signs.shape == (blocks, 16) and (flips.signs[:, 0] == 1).all()
    for n in range(16):
        walk = np.repeat(flips.signs[:, n], block)[:22, None] * e
        for t in range(1, 22):
            walk[t] += phi * walk[t - 1]
        m = np.cumsum(walk, axis=0)
        assert straight[0, n] == pytest.approx(walks.straightness(m), rel=1e-9)
        assert straight[1, n] == pytest.approx(straight[0, n], rel=1e-12)
        assert np.allclose(shares[n], walks.shares(m), rtol=0, atol=1e-6)
        assert r2[n] == pytest.approx(walks.r2(range(22), walks.leading(m)), abs=1e-5)
        for row, gap in enumerate((1, 4)):
            scale = np.sqrt((walk[:-gap] ** 2).sum() * (walk[gap:] ** 2).sum())
            expected = (walk[:-gap] * walk[gap:]).sum() / scale
            assert cosines[row, n] == pytest.approx(expected, abs=1e-10)
            if n == 0:
                assert cosine(h, gap) == pytest.approx(expected, abs=1e-12)


def test_share_reaching() -> None:
    assert share_reaching(np.array([2.0, 1.0, 3.0, 2.0])) == 0.75
    assert share_reaching(np.array([2.0, 2.0 - 1e-12, 1.0, 1.0])) == 0.5, "equal but for rounding"
    assert share_reaching(np.array([-1.0, -2.0])) == 0.5
    assert share_reaching(np.array([5.0])) is None
    assert share_reaching(np.zeros(10)) == 1.0


def test_draws_repeat() -> None:
    a, b, c = (Flips(30, Memory(), 50, seed) for seed in (1, 1, 2))
    assert np.array_equal(a.signs, b.signs) and not np.array_equal(a.signs, c.signs)


# ---- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "drift"), [(0.0, 0.0), (0.5, 0.0), (0.8, 0.0), (0.5, 0.5)])
def test_momentum_is_told_from_drift(momentum: float, drift: float) -> None:
    d = walks.updates(np.random.default_rng(4), 100, 2000, momentum=momentum, drift=drift)
    found = memory_of(d @ d.T)
    assert found.coefficient == pytest.approx(momentum, abs=0.03)
    assert found.block == 1, "nothing is left of the memory"


def test_other_memories_make_blocks() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(105, 2000))
    averaged = sum(noise[i : i + 100] for i in range(5))  # alike to a distance of four
    assert 4 <= memory_of(averaged @ averaged.T).block <= 12
    slow = np.cumsum(rng.normal(size=(100, 2000)), axis=0)  # alike to any distance
    assert memory_of(slow @ slow.T).block <= 100 // 8
    assert memory_of(np.ones((7, 7))) == Memory()
    assert memory_of(np.zeros((40, 40))) == Memory()


# ---- p -----------------------------------------------------------------------------------------


def all_p(d: Float64, draws: int, seed: int, memory: Memory | None = None) -> list[float | None]:
    h = d @ d.T / (d**2).sum()
    flips = Flips(len(d), memory_of(h) if memory is None else memory, draws, seed)
    shares, vectors = flips.spectra(h, 3)
    x = np.arange(1.0, len(d) + 1)
    found = [flips.straightness(h[None])[0], shares[:, 0], shares[:, 2], line_r2(x, vectors)]
    return [share_reaching(one) for one in found]


@pytest.mark.parametrize(("count", "momentum"), [(24, 0.0), (32, 0.5), (48, 0.8)])
def test_p_is_uniform_for_walks(count: int, momentum: float) -> None:
    """300 walks with and without momentum: no statistic's p leans to small values.

    0.094 is the 99 % point of Kolmogorov's distance for 300; a little is added for the memory,
    which is estimated from the same few updates.
    """
    rng = np.random.default_rng([count, int(10 * momentum)])
    p = np.array(
        [all_p(walks.updates(rng, count, 200, momentum=momentum), 59, i) for i in range(300)]
    )
    for column in p.T:
        assert kolmogorov(column) < 0.12
        assert np.mean(column <= 0.05) <= 0.10


def test_blocks_alone_would_take_momentum_for_drift() -> None:
    """Why updates are prewhitened: docs/evidence.md."""
    rng = np.random.default_rng(11)
    walked = [walks.updates(rng, 75, 1000, momentum=0.5) for _ in range(20)]
    blocks = [all_p(d, 199, 0, Memory(0.0, 9))[0] for d in walked]
    assert np.mean(np.array(blocks) <= 0.05) > 0.6
    prewhitened = [all_p(d, 199, 0)[0] for d in walked]
    assert np.mean(np.array(prewhitened) <= 0.05) <= 0.25


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_p_is_small_for_drift(momentum: float) -> None:
    rng = np.random.default_rng(6)
    for i in range(20):
        d = walks.updates(rng, 75, 400, momentum=momentum, drift=0.6)
        assert max(p for p in all_p(d, 999, i) if p is not None) <= 0.02


def test_rounding_noise_makes_p_larger() -> None:
    """White noise on every checkpoint: neighbouring updates are unlike, straightness falls."""
    rng = np.random.default_rng(8)
    for i in range(20):
        m = np.cumsum(walks.updates(rng, 60, 400), axis=0) + rng.normal(size=(60, 400))
        d = np.diff(m, axis=0, prepend=0.0)
        assert memory_of(d @ d.T).coefficient == 0.0
        assert walks.straightness(m) < 0.6
        p = all_p(d, 99, i)[0]
        assert p is not None and p > 0.9
