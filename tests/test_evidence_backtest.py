"""Forecasts of observed checkpoints, each against the deltas themselves."""

from __future__ import annotations

import numpy as np
import pytest

import oracle
import walks
from oracle import Float64
from relex_ext import InputError, Scan
from relex_ext.evidence import backtest
from relex_ext.evidence.backtest import Backtest, Fold
from relex_ext.forecasts import Spectrum
from relex_ext.methods import METHODS

FORECASTS = ("relex", "pinned", "secant", "two-point", "first-update")


def paths(count: int, seed: int = 0) -> dict[str, Float64]:
    """Two tensors that drift and wander, and one that never moves."""
    rng = np.random.default_rng(seed)
    walk = {
        name: np.cumsum(walks.updates(rng, count, columns, drift=0.5), axis=0)
        for name, columns in (("a", 40), ("b", 25))
    }
    return {**walk, "frozen": np.zeros((count, 7))}


def fold_from_the_definition(
    paths: dict[str, Float64], steps: tuple[int, ...], fold: Fold
) -> tuple[float, float, float]:
    """⟨f, D⟩, ‖f‖², ‖D‖² of materialised deltas, forecast by the oracle."""
    p, t = steps.index(fold.prefix), steps.index(fold.target)
    along = forecast = moved = 0.0
    for m in paths.values():
        if not m.any():
            continue
        f = oracle.movement(fold.method, m[: p + 1], steps[: p + 1], [fold.target])[0] - m[p]
        d = m[t] - m[p]
        along, forecast, moved = along + f @ d, forecast + f @ f, moved + d @ d
    return along, forecast, moved


@pytest.mark.parametrize("steps", [tuple(range(1, 21)), (3, 10, 12, 40, 41, 90, 95, 130, 200)])
def test_every_fold_is_what_the_deltas_say(steps: tuple[int, ...]) -> None:
    m = paths(len(steps))
    found = backtest.run(walks.scan_of(m, steps), methods=FORECASTS)
    assert found.methods == FORECASTS
    for fold in found.folds:
        expected = fold_from_the_definition(m, steps, fold)
        got = (fold.along, fold.forecast, fold.moved)
        scale = max(expected[1], expected[2])
        assert np.allclose(got, expected, rtol=0, atol=1e-9 * scale), fold


def test_a_subset_of_steps_is_a_trajectory_of_its_own() -> None:
    m = paths(16)
    whole = walks.scan_of(m)
    rows = [0, 2, 3, 6, 7, 8, 11, 13, 15]
    part = walks.scan_of({name: one[rows] for name, one in m.items()}, [r + 1 for r in rows])
    chosen = backtest.run(whole, [r + 1 for r in reversed(rows)])
    alone = backtest.run(part)
    assert [f.target for f in chosen.folds] == [f.target for f in alone.folds]
    for a, b in zip(chosen.folds, alone.folds, strict=True):
        assert a.along == pytest.approx(b.along, rel=1e-9, abs=1e-9 * b.moved)


def test_many_checkpoints_whose_leading_pair_is_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As good as LAPACK's, and given up for LAPACK's where it does not converge."""
    steps = tuple(range(1, 241))
    m = {"a": np.cumsum(walks.updates(np.random.default_rng(2), 240, 300, drift=0.2), axis=0)}
    scan = walks.scan_of(m, steps)
    found = backtest.run(scan)
    assert max(fold.prefix for fold in found.folds) >= backtest.LARGE
    for changes in ({"LARGE": 10**9}, {"PASSES": 1}):
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setattr(backtest, name, value)
            exact = backtest.run(scan)
        for a, b in zip(found.folds, exact.folds, strict=True):
            scale = max(b.moved, b.forecast)
            assert abs(a.along - b.along) <= 1e-8 * scale
            assert abs(a.forecast - b.forecast) <= 1e-8 * scale
            assert a.moved == b.moved


def test_skill_is_a_squared_error_and_its_best_strength_the_top() -> None:
    """f = (3, 0), D = (1, 2): ⟨f, D⟩ = 3, ‖f‖² = 9, ‖D‖² = 5."""
    fold = Fold(10, 20, "relex", along=3.0, forecast=9.0, moved=5.0)
    for strength in (0.0, 0.25, 1.0, 2.0):
        missed = np.array([1.0, 2.0]) - strength * np.array([3.0, 0.0])
        assert fold.skill_at(strength) == pytest.approx(1.0 - missed @ missed / 5.0)
    assert fold.skill == pytest.approx(-0.6)
    assert fold.cosine == pytest.approx(1.0 / np.sqrt(5.0))
    assert fold.best_strength == pytest.approx(1.0 / 3.0)
    top = fold.skill_at(fold.best_strength)
    assert top > max(fold.skill_at(0.3), fold.skill_at(0.37))
    assert top == pytest.approx(fold.cosine**2)


def test_folds_without_movement_are_worth_nothing() -> None:
    still = Fold(10, 20, "relex", along=0.0, forecast=4.0, moved=0.0)
    assert (still.skill, still.cosine, still.best_strength) == (0.0, 0.0, 0.0)
    mute = Fold(10, 20, "relex", along=0.0, forecast=0.0, moved=4.0)
    assert (mute.skill, mute.cosine, mute.best_strength) == (0.0, 0.0, 0.0)
    back = Fold(10, 20, "relex", along=-2.0, forecast=4.0, moved=4.0)
    assert (back.skill, back.cosine, back.best_strength) == (-2.0, -0.5, 0.0)


def test_a_straight_line_is_foretold_without_error() -> None:
    m = {"w": np.outer(np.arange(1.0, 31.0), np.random.default_rng(0).normal(size=20))}
    for fold in backtest.run(walks.scan_of(m)).folds:
        assert fold.skill == pytest.approx(1.0, abs=1e-9)
        assert fold.cosine == pytest.approx(1.0, abs=1e-9)
        assert fold.best_strength == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, set()), (2, set()), (3, set()), (4, {(3, 4)}), (5, {(3, 4), (3, 5), (4, 5)}),
        (6, {(3, 4), (3, 5), (3, 6), (4, 5), (4, 6), (5, 6)}),
    ],
)  # fmt: skip
def test_short_trajectories(count: int, expected: set[tuple[int, int]]) -> None:
    folds = backtest.run(walks.scan_of(paths(count))).folds
    assert {(fold.prefix, fold.target) for fold in folds} == expected
    assert len(folds) == len(expected) * len(backtest.METHODS_TRIED)


@pytest.mark.parametrize("count", [24, 75, 200])
def test_prefixes_are_spread_and_targets_denser_near_them(count: int) -> None:
    found = backtest.run(walks.scan_of(paths(count)))
    prefixes = sorted({fold.prefix for fold in found.folds})
    assert len(prefixes) == backtest.PREFIXES
    apart = np.diff([0, *prefixes, count])
    assert apart.max() - apart.min() <= 2
    for prefix in prefixes:
        targets = [f.target for f in found.of("relex") if f.prefix == prefix]
        assert targets[0] == prefix + 1 and targets[-1] == count
        assert len(targets) <= backtest.TARGETS
        gaps = np.diff(targets)
        assert (gaps > 0).all() and (np.diff(gaps) >= -1).all()


def test_summary_takes_the_folds_that_look_about_as_far() -> None:
    def fold(prefix: int, target: int, along: float, method: str = "relex") -> Fold:
        return Fold(prefix, target, method, along, forecast=1.0, moved=1.0)

    found = Backtest((
        fold(10, 11, 0.1), fold(10, 20, 0.5), fold(10, 80, 0.9),
        fold(40, 44, 0.2), fold(40, 76, 0.7), fold(75, 80, 0.4),
        fold(40, 80, 0.99, "secant"),
    ))  # fmt: skip
    one = found.summary("relex", 1.0)
    assert one is not None and one.method == "relex"
    assert one.folds == 2  # 10 → 20 and 40 → 76; from 75 nothing looks half as far
    assert one.cosine == pytest.approx(0.6) and one.cosine_spread == pytest.approx(0.1)
    assert one.skill == pytest.approx((0.0 + 0.4) / 2) and one.skill_spread == pytest.approx(0.2)
    assert one.best_strength == pytest.approx(0.6)
    near = found.summary("relex", 0.08)
    assert near is not None and near.folds == 3
    assert near.cosine == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    shifted = found.summary("relex", 1.0, start=8)  # 10 → 11 looks half of 2 steps ahead
    assert shifted is not None and shifted.cosine == pytest.approx(0.7)
    assert found.summary("pinned", 1.0) is None
    assert Backtest(()).summary("relex", 1.0) is None


def test_weights_are_the_methods_own_and_none_is_shrunk() -> None:
    """A method's error at an observed step is (w − e_t)ᵀ G (w − e_t)."""
    steps = tuple(range(1, 13))
    scan = walks.scan_of(paths(12, seed=3))
    for fold in backtest.run(scan, methods=("pinned",)).folds[::3]:
        p, t, error = steps.index(fold.prefix), steps.index(fold.target), 0.0
        for name in scan.names:
            source = scan.source(name, steps[: p + 1])
            options = backtest.Options(method="pinned")
            weights = np.zeros(12)
            weights[: p + 1] = METHODS["pinned"].weigh(
                source, steps[: p + 1], [float(fold.target)], options
            )[0][0]
            weights[t] -= 1.0
            error += weights @ scan.grams[name] @ weights
        assert fold.skill == pytest.approx(1.0 - error / fold.moved, rel=1e-9)


def test_power_iterations_vectors_do_not_do() -> None:
    spectrum = Spectrum(np.full((12, 1), 12**-0.5), np.array([1.0]), 1.0)
    scan = Scan(tuple(range(1, 13)), {}, {"w": spectrum}, {})
    with pytest.raises(InputError, match="tensor w: holds power iteration's vectors"):
        backtest.run(scan)


def test_the_longest_gain() -> None:
    """From prefix 10 all gain up to 14, a later one notwithstanding; from 20 none does."""

    def fold(prefix: int, target: int, skill: float, method: str = "pinned") -> Fold:
        return Fold(prefix, target, method, along=(skill + 1.0) / 2.0, forecast=1.0, moved=1.0)

    folds = (
        fold(10, 14, 0.1), fold(10, 12, 0.2), fold(10, 16, -0.1), fold(10, 30, 0.5),
        fold(20, 21, -0.2), fold(20, 40, 0.9), fold(10, 40, 0.9, "secant"),
    )  # fmt: skip
    tested = Backtest(folds)
    assert [round(f.skill, 12) for f in folds[:3]] == [0.1, 0.2, -0.1]
    assert (tested.horizon("pinned"), tested.horizon("secant")) == (4, 30)
    assert tested.horizon("relex") == 0
