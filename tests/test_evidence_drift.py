"""Drift apart from noise, from Gram matrices of which both are known."""

from __future__ import annotations

import numpy as np
import pytest

import walks
from oracle import Float64
from relex_ext.evidence.drift import Drift, find_drift
from relex_ext.evidence.velocities import fit_velocity

NOW = np.array([0.0])


def updates_gram(velocity: Float64, distances: Float64, noise: float) -> Float64:
    """H of a drift along one direction and of a walk in infinitely many dimensions:
    v_i v_j δ_i δ_j, and noise · δ_i on the diagonal."""
    moved = velocity * distances
    return np.outer(moved, moved) + np.diag(noise * distances)


def ends(distances: Float64) -> Float64:
    """Middle of each update, in windows, −1 … 0."""
    return (np.cumsum(distances) - distances / 2.0) / distances.sum() - 1.0


def find(velocity: Float64, distances: Float64, noise: float = 1.0) -> Drift:
    found = find_drift(updates_gram(velocity, distances, noise), distances, draws=199)
    assert found is not None
    assert walks.finite((found.straightness, found.p, found.limit, found.mean, found.noise))
    return found


def even(count: int = 60, apart: float = 1.0) -> Float64:
    return np.full(count, apart)


def irregular(count: int = 60) -> Float64:
    return np.random.default_rng(1).choice([1.0, 2.0, 5.0, 9.0], count)


# ---- how much ----------------------------------------------------------------------------------


@pytest.mark.parametrize("distances", [even(), even(10), even(60, 10.0), irregular()])
def test_a_constant_drift_beside_a_walk(distances: Float64) -> None:
    """Squared velocity 0.04, noise 3 per step: the ratio is 0.04 · span / 3."""
    found = find(np.full(len(distances), 0.2), distances, noise=3.0)
    span = distances.sum()
    assert found.updates == len(distances) and found.span == span
    assert found.mean == pytest.approx(0.04, rel=1e-9)
    assert found.noise == pytest.approx(3.0, rel=1e-9)
    assert found.ratio == pytest.approx(0.04 * span / 3.0, rel=1e-9)
    sizes = 0.04 * distances**2 + 3.0 * distances
    assert found.straightness == pytest.approx(
        (0.04 * span**2 + 3.0 * span) / sizes.sum(), rel=1e-9
    )
    assert found.velocity.kind == "constant"
    assert np.allclose(found.velocities, 1.0, rtol=0, atol=1e-6)
    assert found.velocity.at(NOW)[0] == pytest.approx(1.0, abs=1e-6)
    assert found.velocity.moved(np.array([0.5]))[0] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("momentum", [0.5, 0.8])
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_what_momentum_makes_neighbours_share_is_no_drift(momentum: float, drift: float) -> None:
    """The noise of a long walk with momentum β is 1/(1 − β)² of its innovations'."""
    found = []
    for seed in range(6):
        d = walks.updates(np.random.default_rng(seed), 75, 3000, momentum=momentum, drift=drift)
        one = find_drift(d @ d.T / 3000, even(75), draws=9)
        assert one is not None
        found.append((one.mean, one.noise))
    mean, noise = np.mean(found, axis=0)
    expected = 1.0 / (1.0 - momentum) ** 2
    assert noise == pytest.approx(expected, rel=0.05)
    assert mean == pytest.approx(drift**2, abs=0.01 * expected / 10)


def test_drift_without_noise_has_no_end_of_a_ratio() -> None:
    found = find(np.ones(20), even(20), noise=0.0)
    assert found.ratio > 1e9
    assert found.straightness == pytest.approx(20.0)


def test_noise_alone_has_no_ratio() -> None:
    found = find(np.zeros(60), even())
    assert found.mean == 0.0 and found.ratio == 0.0
    assert found.straightness == pytest.approx(1.0)
    assert found.p == 1.0  # every flip of an exactly orthogonal walk is as straight
    assert found.limit == pytest.approx(1.0)


# ---- where to ----------------------------------------------------------------------------------


@pytest.mark.parametrize("distances", [even(75), even(75, 10.0), irregular(75)])
@pytest.mark.parametrize("rate", [0.7, 2.0, 5.0])
def test_a_drift_that_dies_away(distances: Float64, rate: float) -> None:
    """v = exp(−k t): what is left of the mean velocity at the newest is k/(eᵏ − 1), and what is
    still to come ∫₀ᵗ of it."""
    found = find(np.exp(-rate * (ends(distances) + 1.0)), distances)
    assert found.velocity.kind == "decaying"
    now = rate / np.expm1(rate)
    assert found.velocity.at(NOW)[0] == pytest.approx(now, rel=0.05, abs=0.01)
    for ahead in (0.25, 1.0, 4.0):
        to_come = now * -np.expm1(-rate * ahead) / rate
        assert found.velocity.moved(np.array([ahead]))[0] == pytest.approx(
            to_come, rel=0.05, abs=0.01
        )


@pytest.mark.parametrize("distances", [even(75), irregular(75)])
@pytest.mark.parametrize(("cycles", "phase"), [(1.0, 0.4), (1.6, 2.0), (2.4, 5.0)])
def test_a_drift_that_turns(distances: Float64, cycles: float, phase: float) -> None:
    times, turn = ends(distances), 2.0 * np.pi * cycles
    velocity = 1.0 + 1.2 * np.sin(turn * times + phase)
    found = find(velocity, distances)
    assert found.velocity.kind == "turning"
    mean = (velocity * distances).sum() / distances.sum()
    for ahead in (0.0, 0.1, 0.3, 0.6):
        expected = (1.0 + 1.2 * np.sin(turn * ahead + phase)) / mean
        assert found.velocity.at(np.array([ahead]))[0] == pytest.approx(expected, abs=0.15)
        moved = (ahead + 1.2 / turn * (np.cos(phase) - np.cos(turn * ahead + phase))) / mean
        assert found.velocity.moved(np.array([ahead]))[0] == pytest.approx(moved, abs=0.05)


def test_the_way_is_the_integral_of_the_velocity() -> None:
    times = np.linspace(-0.97, -0.03, 16)
    for values in (np.ones(16), np.exp(-2.0 * times), 1.0 + np.sin(9.0 * times)):
        fitted = fit_velocity(times, values)
        fine = np.linspace(0.0, 1.0, 20_001)
        speed = fitted.at(fine)
        way = float((speed[1:] + speed[:-1]).sum()) / 2.0 / 20_000
        assert fitted.moved(np.array([1.0]))[0] == pytest.approx(way, rel=1e-6)
        assert np.allclose(fitted.at(times), values, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("stretches", "most"), [(8, 12), (16, 12)])
def test_noise_seldom_passes_for_a_turn(stretches: int, most: int) -> None:
    """Once in a hundred: among 500, 5 are expected, and 13 or more once in 500 times."""
    rng = np.random.default_rng(0)
    times = (np.arange(stretches) + 0.5) / stretches - 1.0
    kinds = [fit_velocity(times, 1.0 + 0.5 * rng.normal(size=stretches)).kind for _ in range(500)]
    assert kinds.count("turning") <= most
    assert kinds.count("decaying") <= most


def test_velocities_of_a_noisy_drift_stay_near_the_true_ones() -> None:
    d = walks.updates(np.random.default_rng(4), 75, 2000, drift=0.5)
    found = find_drift(d @ d.T, even(75), draws=99)
    assert found is not None
    assert found.velocity.kind == "constant"
    assert np.abs(found.velocities - 1.0).max() < 0.2
    assert found.velocities @ np.full(16, 1 / 16) == pytest.approx(1.0, abs=0.02)


# ---- whether -----------------------------------------------------------------------------------


def test_p_and_its_limit_tell_a_drift_from_walks() -> None:
    rng = np.random.default_rng(3)
    drifting, wandering = (walks.updates(rng, 40, 400, drift=drift) for drift in (0.3, 0.0))
    yes, no = (find_drift(d @ d.T, even(40), draws=499) for d in (drifting, wandering))
    assert yes is not None and no is not None
    assert yes.p == 1.0 / 500.0 and yes.straightness > yes.limit
    assert no.p > 0.05 and no.straightness < no.limit
    same = find_drift(drifting @ drifting.T, even(40), draws=499)
    assert same is not None and (same.p, same.limit) == (yes.p, yes.limit)


def test_one_walk_in_a_hundred_passes_the_limit() -> None:
    """At most 7 of 200 walks are past it: by chance more once in a thousand times."""
    over = 0
    for seed in range(200):
        d = walks.updates(np.random.default_rng(seed), 30, 300)
        found = find_drift(d @ d.T, even(30), draws=199)
        assert found is not None
        over += found.straightness > found.limit
    assert over <= 7


# ---- odd cases ---------------------------------------------------------------------------------


def test_too_few_updates_or_none_that_moves() -> None:
    d = walks.updates(np.random.default_rng(0), 8, 50, drift=1.0)
    assert find_drift(d[:7] @ d[:7].T, even(7)) is None
    assert find_drift(d @ d.T, even(8)) is not None
    assert find_drift(np.zeros((20, 20)), even(20)) is None
    assert find_drift(np.zeros((0, 0)), even(0)) is None


def test_repeated_checkpoints() -> None:
    """Updates of nothing among others: the same drift, over as many steps more."""
    d = np.insert(walks.updates(np.random.default_rng(0), 40, 500, drift=0.5), [5, 6, 20], 0.0, 0)
    found = find_drift(d @ d.T, even(43), draws=99)
    assert found is not None and walks.finite((found.p, found.mean, found.noise, found.ratio))
    assert found.p == 0.01
    assert found.mean / 500 == pytest.approx(0.25 * 0.85, rel=0.1)
    assert np.isfinite(found.velocities).all()


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e9])
def test_units_do_not_matter(scale: float) -> None:
    d = walks.updates(np.random.default_rng(1), 50, 300, drift=0.2, momentum=0.4)
    one, other = (find_drift(h, even(50), draws=99) for h in (d @ d.T, scale**2 * (d @ d.T)))
    assert one is not None and other is not None
    assert other.ratio == pytest.approx(one.ratio, rel=1e-6)
    assert (other.p, other.limit) == pytest.approx((one.p, one.limit), rel=1e-6)
    assert other.mean == pytest.approx(scale**2 * one.mean, rel=1e-6)
    assert np.allclose(other.velocities, one.velocities, rtol=1e-6)
    assert other.velocity.kind == one.velocity.kind


def test_the_unit_of_steps_does_not_matter_either() -> None:
    d = walks.updates(np.random.default_rng(1), 50, 300, drift=0.2)
    one, other = (find_drift(d @ d.T, even(50, apart), draws=99) for apart in (1.0, 25.0))
    assert one is not None and other is not None
    assert other.ratio == pytest.approx(one.ratio, rel=1e-9)
    assert other.mean == pytest.approx(one.mean / 625.0, rel=1e-9)
    assert np.allclose(other.velocities, one.velocities, rtol=1e-9)


def test_a_drift_there_and_back_leaves_no_nan() -> None:
    found = find(np.where(np.arange(40) < 20, 1.0, -1.0), even(40))
    assert np.isfinite(found.velocities).all()
    assert np.isfinite(found.velocity.moved(np.array([0.1, 1.0, 8.0]))).all()
