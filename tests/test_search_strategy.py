"""Where a search looks next, and how it reads a score: without a model."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from relex_ext.errors import InputError
from relex_ext.searches.evaluation import parse_score
from relex_ext.searches.strategy import Candidate, Space, coarse_count, grid, next_pass

Score = Callable[[Candidate], float]


def explore(space: Space, score: Score, evaluations: int, size: int) -> dict[Candidate, float]:
    """What a search would evaluate, in order."""
    scored: dict[Candidate, float] = {}
    while found := next_pass(space, scored, evaluations=evaluations, size=size):
        assert len(found) <= size
        for candidate in found:
            assert candidate not in scored, "no evaluation twice"
            scored[candidate] = score(candidate)
    return scored


def peak(step: float, strength: float) -> Score:
    return lambda c: -abs(math.log(c.step / step)) - abs(c.strength - strength)


@pytest.mark.parametrize("size", [1, 3, 4, 10])
@pytest.mark.parametrize("step", [80.0, 130.0, 300.0, 440.0])
@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_the_region_of_the_peak_is_found(size: int, step: float, strength: float) -> None:
    space = Space.of(75, None, (0.5, 1.0))
    score = peak(step, strength)
    scored = explore(space, score, 24, size)
    assert len(scored) <= 23
    best = max(scored, key=lambda c: scored[c])
    assert abs(math.log(best.step / step)) < 0.12
    assert abs(best.strength - strength) < 0.12
    assert all(75 < c.step <= 450 and 0 < c.strength <= 1 for c in scored)
    assert explore(space, score, 24, size) == scored


def test_it_ends_where_nothing_is_left() -> None:
    space = Space.of(50, (60, 100), 1)  # strength is held
    scored = explore(space, peak(80, 0.3), 1000, 4)
    assert {c.strength for c in scored} == {1.0}
    steps = sorted(c.step for c in scored)
    assert steps[0] > 50 and steps[-1] == 100 and min(abs(s - 80) for s in steps) <= 1
    assert len(scored) < 15
    assert explore(Space.of(50, 60, 1), peak(80, 0.3), 10, 4).keys() == {Candidate(60, 1)}


@pytest.mark.parametrize("evaluations", range(2, 40))
def test_half_of_the_budget_is_spread(evaluations: int) -> None:
    space = Space.of(75, None, (0.5, 1.0))
    count = coarse_count(evaluations)
    assert count == 1 or count + 1 <= (evaluations + 1) // 2
    coarse = grid(space, count)
    assert len(set(coarse)) == len(coarse) == min(12, count)
    if count >= 4:
        assert {c.strength for c in coarse} == {0.5, 1.0}
        assert len({c.step for c in coarse}) == min(count, 6) or count > 6
    assert len(explore(space, peak(200, 0.7), evaluations, 4)) <= evaluations - 1


def test_a_larger_budget_continues() -> None:
    space = Space.of(75, None, (0.5, 1.0))
    scored = explore(space, peak(200, 0.7), 8, 4)
    more = dict(scored)
    while found := next_pass(space, more, evaluations=16, size=4):
        assert not more.keys() & set(found)
        more |= {c: peak(200, 0.7)(c) for c in found}
    assert len(more) == 15
    assert list(more)[: len(scored)] == list(scored)


@pytest.mark.parametrize("newest", [1, 2, 3, 75, 10_000])
def test_default_targets(newest: int) -> None:
    targets = Space.of(newest, None, (1,)).targets
    assert all(t > newest and t == int(t) for t in targets)
    assert targets == tuple(sorted(set(targets))) and targets[-1] == 6 * newest


@pytest.mark.parametrize(
    ("targets", "strengths", "message"),
    [
        ((0,), (1,), "above 0, found 0"),
        ((100, 100), (1,), "twice"),
        ((math.nan,), (1,), "finite"),
        (None, (), "strengths: expected finite numbers above 0, found none"),
        (None, (0, 1), "above 0, found 0.0, 1.0"),
        (None, (math.inf,), "finite"),
        (None, (1, 1.0), "twice"),
    ],
)
def test_wrong_space(targets: object, strengths: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Space.of(75, targets, strengths)


def test_names_tell_candidates_apart() -> None:
    assert Candidate(300, 0.5).name == "step_300_strength_0.5"
    assert Candidate(62.5, 1).name == "step_62.5_strength_1"


SCORES = {
    "0.512": (0.512, None),
    "loading 3 shards\naccuracy: 51.2%\n \n": (51.2, None),
    "0.512 ± 0.008": (0.512, 0.008),
    "acc 0.512+-0.008": (0.512, 0.008),
    "0.512 +/- 8e-3": (0.512, 0.008),
    "3/10 = .3": (0.3, None),
    "-3E-4": (-0.0003, None),
    "5-shot: 0.25.": (0.25, None),
    "gsm8k: 0.54": (0.54, None),
    "pass@1=54.1% (541/1000)": (54.1, None),
    "12:30:05 acc:0.54": (0.54, None),
    "54.1% ± 0.8%": (54.1, 0.8),
    "runs/500/checkpoint-200: 0.4943 ± 0.0079": (0.4943, 0.0079),
    '{"score": 0.5, "error": 0.01, "task": "x"}': (0.5, 0.01),
    '{"score": 1, "error": null}': (1.0, None),
}

NONE = (
    "", "\n \n", "done", "step_3 nan", "checkpoint-12: nan", "inf", "0.5s", "v1.2.3", "0.5 ± nan",
    "0.5\nready", '{"accuracy": 1}', '{"score": true}', '{"score": "1"}', '{"score": NaN}',
    '{"score": 1, "error": -1}', '{"score"', '{"score": 1' + "0" * 400 + "}",
)  # fmt: skip


@pytest.mark.parametrize("text", SCORES)
def test_a_score(text: str) -> None:
    assert parse_score(text) == SCORES[text]


@pytest.mark.parametrize("text", NONE)
def test_no_score(text: str) -> None:
    with pytest.raises(ValueError, match=r"^no "):
        parse_score(text)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("run: 0.49 (standard error 0.05)", 2),
        ("0.49 0.05", 2),
        ("0.49,0.05", 2),
        ("step 300: 0.54 ± 0.01", 3),
        ("a 0.1 ± 0.2, b 0.3 ± 0.4", 4),
    ],
)
def test_several_numbers_are_no_score(line: str, count: int) -> None:
    """The last one may be the standard error, which a search would then maximize."""
    with pytest.raises(ValueError) as caught:
        parse_score(f"1 2 3\n{line}\n")
    assert str(caught.value) == (
        f"expected one number on its last line, or 0.541 ± 0.008, found {count}: {line!r}"
    )
