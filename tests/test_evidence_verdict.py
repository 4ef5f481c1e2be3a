"""The verdict: on simulated runs that leave no doubt, in its numbers, through the public API."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import walks
from oracle import Float64
from relex_ext import InputError, Scan, forecast
from relex_ext.evidence import Backtest, Fold, Verdict, backtest, judge
from relex_ext.evidence.cases import CHANCE, Case, strain_limit
from relex_ext.evidence.verdict import DECISIONS, FULL, LEAST, auto_strength
from relex_ext.forecasts import Spectrum
from relex_ext.methods import METHODS, Options

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from verdict.trajectories import KINDS, Run, draw

COUNT, COLUMNS = 75, 800
TIMES = np.arange(1.0, COUNT + 1.0)


def run_of(course: Float64, noise: float = 1.0, seed: int = 0, momentum: float = 0.0) -> Scan:
    """A course (T,) along one direction of length 1, and a walk of updates of length ``noise``."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=COLUMNS) / COLUMNS**0.5
    updates = walks.updates(rng, len(course), COLUMNS, momentum=momentum)
    walk = np.cumsum(updates, axis=0) * noise / COLUMNS**0.5
    return walks.scan_of({"w": np.outer(course, direction) + walk})


STEADY = run_of(0.4 * TIMES)
DYING = run_of(40.0 * -np.expm1(-TIMES / 20.0))
TURNING = run_of(TIMES + 17.0 * np.sin(2.0 * np.pi * TIMES / 60.0))
WANDER = run_of(0.0 * TIMES)
JUMPING = run_of(TIMES + np.where(TIMES >= 31, 60.0, 0.0))
PINNED, SECANT = Options(method="pinned"), Options(method="secant")


# ---- decisions ---------------------------------------------------------------------------------


def test_a_walk_gets_no_forecast() -> None:
    for scan in (WANDER, run_of(0.0 * TIMES, momentum=0.8)):
        found = judge(scan, 100)
        assert found.decision == "no-go"
        assert found.sentence == "no-go: the checkpoints wander like a random walk"
        assert (found.strength, found.horizon, found.course) == (0.0, None, None)
        straightness, chance, ratio = found.reasons
        assert straightness.found < straightness.limit
        assert chance.found > chance.limit == CHANCE
        assert abs(ratio.found) < 0.3


def test_a_steady_drift_is_a_go_for_what_it_can_stand() -> None:
    """λ falls as the target moves away, until the target is too far."""
    found = [judge(STEADY, target, SECANT) for target in (75.5, 90, 110, 150, 100_000)]
    assert found[0].decision == "go" and found[0].sentence == "go"
    assert found[0].strength == 1.0
    assert all(a.strength >= b.strength for a, b in itertools.pairwise(found))
    assert found[-1].decision == "short horizons"
    assert all(one.course == math.inf for one in found)
    for one in found:
        assert one.target > 75 and one.method == "secant"
        assert one.decision.startswith("go") == (one.strength >= LEAST)
        assert one.reasons[0].found > one.reasons[0].limit
        assert one.reasons[1].found == pytest.approx(1.0, abs=0.1)  # as far ahead as the drift


def test_a_shrunk_forecast_says_by_how_much() -> None:
    shrunk = [
        one
        for one in (judge(STEADY, target, SECANT) for target in range(77, 200, 6))
        if one.decision == "go shrunk"
    ]
    assert shrunk
    for one in shrunk:
        assert LEAST <= one.strength < FULL
        assert one.sentence == f"go, shrunk to λ = {one.strength:.2g}"


def test_a_horizon_is_as_far_as_a_full_forecast_may_go() -> None:
    found = judge(STEADY, 100_000, SECANT)
    assert found.sentence == f"short horizons only: up to step {int(found.horizon or 0)}"
    case = Case(STEADY, None, SECANT)
    assert case.strengths([found.horizon or 0.0])[0] == pytest.approx(1.0, rel=1e-6)
    assert case.strengths([2 * (found.horizon or 0.0) - 75])[0] == pytest.approx(0.5, rel=1e-6)
    nearer = judge(STEADY, 76, SECANT)
    assert nearer.horizon == pytest.approx(found.horizon, rel=1e-6)


@pytest.mark.parametrize("options", [PINNED, SECANT])
def test_the_course_of_a_dying_drift_ends_where_the_line_is_twice_ahead(options: Options) -> None:
    """1 − e^(−t/20): of the line's weights w, Σ w_i c_i = 2 (c(h) − c_T) / … at the horizon h."""
    found = judge(DYING, 150, options)
    steps = DYING.steps
    later = np.arange(75.5, 150.0, 0.5)
    weights, _ = METHODS[options.method].weigh(
        DYING.source("w"), steps, later.tolist(), Options(method=options.method)
    )
    course = 40.0 * -np.expm1(-TIMES / 20.0)
    ahead = weights @ course - course[-1]
    true = 40.0 * -np.expm1(-later / 20.0) - course[-1]
    assert (ahead > 2.0 * true).all()  # the line is too fast from the first step on
    assert found.decision == "no-go" and found.course is None
    assert found.sentence == "no-go: the drift has stopped or turned back"
    assert found.reasons[1].found > 2.0


def test_a_course_that_lasts_for_a_while() -> None:
    """v = e^(−t/60): the secant's line is twice as far ahead as the drift at one step, from which
    on the newest checkpoint is better; found from the course itself."""
    scan = run_of(120.0 * -np.expm1(-TIMES / 60.0), noise=0.5)
    found = judge(scan, 400, SECANT)
    later = np.arange(76.0, 400.0)
    gone = -np.expm1(-later / 60.0) + np.expm1(-75.0 / 60.0)
    line = (later - 75.0) / 75.0 * -np.expm1(-75.0 / 60.0)
    end = float(later[line > 2.0 * gone][0])
    assert found.course == pytest.approx(end, rel=0.1)
    assert found.decision == "short horizons"
    assert found.horizon is not None and found.course is not None
    assert found.horizon <= found.course < 400


def test_a_drift_that_turned_back_is_not_followed() -> None:
    """Of a swing of 60 steps the velocity is 1 + 1.78 cos(π/2) at step 75, negative from 81 to 99:
    a line at the mean velocity is too far ahead by then. By the course itself, from step 79 on."""
    found = judge(TURNING, 100, SECANT)
    assert found.course is not None and 77 < found.course < 82
    assert found.decision in ("no-go", "short horizons")
    back = run_of(np.minimum(TIMES, 110.0 - TIMES))
    assert judge(back, 100, SECANT).decision == "no-go"


# ---- jumps and short runs ----------------------------------------------------------------------


def test_after_a_jump_only_what_follows_counts() -> None:
    found = judge(JUMPING, 90)
    case = Case(JUMPING, None, Options())
    assert case.jumps[0][0] == 31 and len(case.jumps) == 1
    assert case.first == 31  # the jump's update is row 30
    assert case.options == Options(method="two-point", window=44)
    assert found.method == "two-point" and found.decision != "no-go"
    alone = Case(run_of(0.0 * TIMES + TIMES), list(range(1, 76)), Options())
    assert case.found.updates == 44 and alone.found.updates == 75
    # Whatever comes before the jump does not matter, not even its size.
    m = np.cumsum(np.random.default_rng(8).normal(size=(75, 300)) + 0.4, axis=0)
    other = m.copy()
    other[:30] = 3.0 * np.cumsum(np.random.default_rng(9).normal(size=(30, 300)), axis=0)
    m[30:] += 1000.0
    other[30:] += 1000.0
    one, two = (judge(walks.scan_of({"w": x}), 90) for x in (m, other))
    assert one.method == two.method == "two-point"
    assert dataclasses.replace(one, reasons=()) == dataclasses.replace(two, reasons=())


@pytest.mark.parametrize(("jump", "behind"), [(70, 5), (75, 0)])
def test_too_little_behind_a_jump(jump: int, behind: int) -> None:
    course = TIMES.copy()
    course[jump - 1 :] += 200.0
    scan = run_of(course)
    found = judge(scan, 90)
    assert found.decision == "no-go"
    assert found.sentence == (
        f"no-go: {behind} checkpoints since the jump at step {jump} are too few to tell a drift "
        "from chance"
    )
    assert auto_strength(scan, scan.steps, [90.0, 200.0], PINNED) == (0.0, 0.0)


def test_too_few_checkpoints() -> None:
    found = judge(STEADY, 90, steps=range(1, 8))
    assert found.decision == "no-go"
    assert found.sentence.startswith("no-go: 7 checkpoints are too few")
    assert [(r.found, r.limit) for r in found.reasons] == [(7, 8)]


def test_frozen_tensors_change_nothing() -> None:
    with_frozen = Scan(STEADY.steps, {"f": np.zeros((75, 75)), **STEADY.grams}, {}, {})
    for options in (Options(), PINNED, SECANT):
        assert judge(with_frozen, 110, options) == judge(STEADY, 110, options)
    still = Scan(STEADY.steps, {"f": np.zeros((75, 75))}, {}, {})
    assert judge(still, 110).decision == "no-go"
    assert auto_strength(still, still.steps, [110.0], PINNED) == (0.0,)


# ---- the recommended method --------------------------------------------------------------------


def folds(relex: float, pinned: float, secant: float) -> Backtest:
    """From step 50 to 75, with these cosines."""
    found = {"relex": relex, "pinned": pinned, "secant": secant}
    return Backtest(tuple(Fold(50, 75, m, cosine, 1.0, 1.0) for m, cosine in found.items()))


@pytest.mark.parametrize(
    ("cosines", "best"),
    [
        ((0.50, 0.51, 0.51), "relex"),
        ((0.50, 0.60, 0.55), "pinned"),
        ((0.50, 0.55, 0.60), "secant"),
        ((0.50, 0.40, 0.56), "secant"),
    ],
)
def test_a_variant_that_was_better_aimed_is_recommended(
    cosines: tuple[float, float, float], best: str
) -> None:
    tested = folds(*cosines)
    assert judge(STEADY, 112, tested=tested).method == best
    plain = judge(STEADY, 112, Options(method="relex", rank=2), tested=tested)
    assert plain.method == "relex"  # what was asked for in person is not replaced
    if best != "relex":
        asked = judge(STEADY, 112, Options(method=best))
        assert judge(STEADY, 112, tested=tested) == asked


def test_the_backtest_at_hand_is_the_one_that_would_be_made() -> None:
    assert judge(STEADY, 112, tested=backtest.run(STEADY)) == judge(STEADY, 112)


# ---- λ -----------------------------------------------------------------------------------------


def test_auto_strength_is_what_the_verdict_recommends() -> None:
    for scan in (STEADY, DYING, TURNING, WANDER):
        for target in (78.0, 95.0, 150.0):
            found = judge(scan, target, PINNED)
            (strength,) = auto_strength(scan, scan.steps, [target], PINNED)
            if found.decision == "go":
                assert found.strength == 1.0 and strength >= FULL
            elif found.course is not None:
                assert found.strength == pytest.approx(strength, rel=1e-12)


def test_auto_strength_of_walks_and_of_what_is_not_ahead() -> None:
    assert auto_strength(WANDER, WANDER.steps, [80.0, 75.0, 200.0, 10.0], PINNED) == (0, 1, 0, 1)
    some = auto_strength(STEADY, STEADY.steps, [75.0, 30.0, 76.0], PINNED)
    assert some[:2] == (1.0, 1.0) and 0.0 < some[2] <= 1.0
    assert auto_strength(STEADY, STEADY.steps[:7], [75.0], PINNED) == (0.0,)


@pytest.mark.parametrize("method", ["relex", "pinned", "secant", "two-point"])
def test_strain_is_bounded_by_its_limit(method: str) -> None:
    """‖f‖ and ‖Δ_T‖ from G; λ · strain is the limit wherever that binds, and never more."""
    case = Case(STEADY, None, Options(method=method))
    targets = [80.0, 100.0, 150.0, 400.0]
    ahead = case.look_ahead(targets)
    gram = STEADY.grams["w"]
    weights, _ = METHODS[method].weigh(STEADY.source("w"), STEADY.steps, targets, case.options)
    weights[:, -1] -= 1.0
    strain = np.sqrt(np.einsum("it,tu,iu->i", weights, gram, weights) / gram[-1, -1])
    assert np.allclose(ahead.strain, strain, rtol=1e-9)
    limit = strain_limit(case.found.ratio)
    bound = 0
    for strength, lasting, strain in zip(ahead.strengths, ahead.lasting, ahead.strain, strict=True):
        assert strength * strain <= limit * (1.0 + 1e-9)
        if strength < min(1.0, lasting):
            assert strength * strain == pytest.approx(limit, rel=1e-9)
            bound += 1
    assert bound >= 1


def test_the_strain_limit_falls_as_drift_comes_out_of_the_noise() -> None:
    ratios = np.geomspace(1e-3, 1e3, 40)
    limits = [strain_limit(float(ratio)) for ratio in ratios]
    assert all(a >= b for a, b in itertools.pairwise(limits))
    assert limits[0] > 5.0 * limits[-1] > 0.0
    assert strain_limit(0.0) == strain_limit(-1.0) == 0.0


@pytest.mark.parametrize("method", ["pinned", "secant", "relex"])
def test_lasting_is_the_strength_that_meets_the_drift(method: str) -> None:
    """Of the noise-free course: ⟨f, D⟩/‖f‖² for the method's weights on the noisy one."""
    scan = run_of(60.0 * -np.expm1(-TIMES / 60.0), 0.4, seed=2)
    course = 60.0 * -np.expm1(-np.arange(1.0, 151.0) / 60.0)
    targets = [90.0, 110.0, 150.0]
    weights, _ = METHODS[method].weigh(scan.source("w"), scan.steps, targets, Options())
    f = weights @ course[:75] - course[74]
    true = np.array([course[int(t) - 1] for t in targets]) - course[74]
    found = Case(scan, None, Options(method=method)).look_ahead(targets)
    assert np.allclose(found.lasting, true / f, rtol=0.1)


def test_noise_in_a_forecast_is_not_taken_for_drift() -> None:
    """A line through two checkpoints ten steps apart is mostly noise, ‖f‖² = 1.6 + 4 per step²; its
    part along the drift is as fast as that."""
    options = Options(method="two-point", window=10)
    found = [
        Case(run_of(0.4 * TIMES, noise=2.0, seed=seed), None, options).look_ahead([100.0]).lasting
        for seed in range(12)
    ]
    assert float(np.median(found)) == pytest.approx(1.0, abs=0.15)


def test_forecast_with_strength_auto_is_shrunk_towards_the_newest() -> None:
    targets = [60.0, 78.0, 110.0, 200.0]
    for method in ("relex", "pinned", "secant"):
        options = Options(method=method)
        found = forecast(STEADY, targets, method=method, strength="auto")
        full = forecast(STEADY, targets, method=method).tensors["w"]
        assert found.strengths == auto_strength(STEADY, STEADY.steps, targets, options)
        assert found.strengths[0] == 1.0 and 0.0 < found.strengths[3] < found.strengths[1] <= 1.0
        newest = np.eye(75)[-1]
        for row, strength in enumerate(found.strengths):
            expected = newest + strength * (full[row] - newest)
            assert np.allclose(found.tensors["w"][row], expected, rtol=0, atol=1e-12)
    still = forecast(WANDER, [100.0], strength="auto")
    assert still.strengths == (0.0,)
    assert np.array_equal(still.tensors["w"][0], np.eye(75)[-1])


# ---- determinism, units, errors ----------------------------------------------------------------


def test_the_same_seed_gives_the_same_verdict_and_units_do_not_matter() -> None:
    one = judge(STEADY, 110, seed=3)
    assert judge(STEADY, 110, seed=3) == one
    limits = {judge(STEADY, 110, PINNED, draws=99, seed=s).reasons[0].limit for s in range(4)}
    assert len(limits) > 1  # the seed is used
    scaled = walks.scan_of({"w": np.zeros((75, 1))})
    scaled = Scan(scaled.steps, {"w": 1e-10 * STEADY.grams["w"]}, {}, {})
    other = judge(scaled, 110, seed=3)
    assert (other.decision, other.method) == (one.decision, one.method)
    assert other.strength == pytest.approx(one.strength, rel=1e-6)


def test_a_subset_of_steps_is_a_run_of_its_own() -> None:
    chosen = list(range(2, 60, 2))
    rows = [s - 1 for s in chosen]
    alone = Scan(tuple(chosen), {"w": STEADY.grams["w"][np.ix_(rows, rows)]}, {}, {})
    for options in (Options(), SECANT):
        assert judge(STEADY, 90, options, steps=chosen) == judge(alone, 90, options)
        assert judge(STEADY, 90, options, steps=chosen[::-1]) == judge(alone, 90, options)


def test_what_is_refused() -> None:
    for target in (75.0, 10.0, math.nan):
        with pytest.raises(InputError, match="target_step: expected more than 75, found"):
            judge(STEADY, target)
    for method in ("latest", "reconstruct", "ema"):
        with pytest.raises(InputError, match=f"expected one that looks ahead.*found {method}"):
            judge(STEADY, 100, Options(method=method))
    spectrum = Spectrum(np.full((12, 1), 12**-0.5), np.array([1.0]), 1.0)
    with pytest.raises(InputError, match="tensor w: holds power iteration's vectors"):
        judge(Scan(tuple(range(1, 13)), {}, {"w": spectrum}, {}), 20)
    with pytest.raises(InputError, match="the scan lacks step 300"):
        judge(STEADY, 100, steps=[1, 2, 300])


def test_a_record_has_no_number_that_json_lacks() -> None:
    kept = judge(STEADY, 76, SECANT).record()
    assert kept["decision"] in DECISIONS and kept["method"] == "secant"
    dead = judge(run_of(np.minimum(TIMES, 110.0 - TIMES)), 100, SECANT).record()
    assert dead["decision"] == "no-go" and dead["horizon"] is None
    for one in (kept, dead):
        numbers = [one["strength"], *(x for r in one["reasons"] for x in (r["found"], r["limit"]))]
        assert all(x is None or math.isfinite(x) for x in numbers)


# ---- calibration -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged() -> dict[str, list[tuple[Run, Verdict, float]]]:
    """60 runs of each kind, their verdicts and true horizons."""
    found: dict[str, list[tuple[Run, Verdict, float]]] = {}
    for number, kind in enumerate(KINDS):
        rng = np.random.default_rng([7, number])
        found[kind] = []
        for _ in range(60):
            run = draw(kind, rng, range(1, 76))
            verdict = judge(run.scan, run.target, PINNED, draws=499)
            options = PINNED
            if kind == "jumping":
                options = Case(run.scan, None, PINNED, draws=9).options
            truth = run.horizon(options) if kind not in ("walk", "drift") else run.reach
            found[kind].append((run, verdict, truth))
    return found


def called_go(judged: dict[str, list[tuple[Run, Verdict, float]]], kind: str) -> int:
    return sum(verdict.decision.startswith("go") for _, verdict, _ in judged[kind])


def test_walks_are_not_called_go(judged: dict[str, list[tuple[Run, Verdict, float]]]) -> None:
    """At a rate of one in a hundred, more than 4 of 60 come up once in 2500 times."""
    assert called_go(judged, "walk") <= 4


def test_drifts_are_called_go(judged: dict[str, list[tuple[Run, Verdict, float]]]) -> None:
    assert called_go(judged, "drift") >= 57


@pytest.mark.parametrize(
    ("kind", "least"), [("saturating", 52), ("oscillating", 54), ("jumping", 54)]
)
def test_horizons_are_right_within_a_fifth(
    judged: dict[str, list[tuple[Run, Verdict, float]]], kind: str, least: int
) -> None:
    """Or within a twentieth of the window, where a fifth of the horizon is less."""
    right = 0
    for run, verdict, truth in judged[kind]:
        course = run.steps[-1] if verdict.course is None else verdict.course
        horizon = min(course / run.steps[-1] - 1.0, run.reach)
        right += abs(horizon - truth) <= max(0.05, 0.2 * truth)
    assert right >= least
    methods = {verdict.method for _, verdict, _ in judged[kind]}
    assert methods == ({"two-point"} if kind == "jumping" else {"pinned"})


@pytest.mark.parametrize("count", [8, 30, 75])
@pytest.mark.parametrize(
    ("shape", "starts"),
    [("line", "go, shrunk"), ("still", "no-go: "), ("to and fro", "no-go: "), ("bent", None)],
)
def test_paths_without_any_noise(count: int, shape: str, starts: str | None) -> None:
    """On one line in space, so that what is left of noise is rounding: no warning, no NaN."""
    s = np.arange(1, count + 1.0)
    course = {"line": s, "still": np.ones(count), "to and fro": (-1.0) ** s, "bent": s**1.5}
    path = np.outer(course[shape], np.ones(4))
    found = judge(Scan(tuple(range(1, count + 1)), {"w": path @ path.T}, {}, {}), 1.5 * count)
    assert starts is None or found.sentence.startswith(starts)
    assert 0.0 <= found.strength <= 1.0
    assert not any(math.isnan(reason.found) for reason in found.reasons)
    json.dumps(found.record(), allow_nan=False)
