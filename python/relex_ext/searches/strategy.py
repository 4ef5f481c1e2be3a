"""Which forecasts to evaluate next: a function of the scores so far, and of nothing else.

1. The newest checkpoint is evaluated first. It is the bar to beat, and one of the evaluations.
2. Half of the budget goes to grid points of targets × strengths, evenly spaced along a snake
   through the grid.
3. Then, pass by pass, around the best forecast: on each of its four sides (nearer and farther
   target, weaker and stronger) the gap to the nearest forecast scored on the same line is halved,
   in log(target) and in strength. The newest checkpoint, which is every target at strength 0,
   bounds the lower sides; where nothing is scored on a side, the grid's next value is taken.
4. Widest gaps first, as many as a pass holds; none below 2 % of the target or 0.02 of strength.
5. It ends when the budget is spent or no such gap is left. It never leaves the range given, and an
   axis with a single value is held there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from relex_ext.errors import InputError
from relex_ext.forecasts import check_targets
from relex_ext.output import target_name
from relex_ext.scores import plain

LADDER = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Targets of a search that names none, as multiples of the newest step."""

STRENGTHS = (0.5, 1.0)

LEAST_RATIO = 1.02
LEAST_STRENGTH = 0.02


@dataclass(frozen=True, slots=True)
class Candidate:
    """A forecast: its target and its strength."""

    step: float
    strength: float

    @property
    def name(self) -> str:
        """Of its folder: ``step_300_strength_0.5``."""
        return f"{target_name(self.step)}_strength_{plain(self.strength)}"


@dataclass(frozen=True, slots=True)
class Space:
    """Where to search: increasing ``targets`` and ``strengths`` beyond the ``newest`` step."""

    newest: int
    targets: tuple[float, ...]
    strengths: tuple[float, ...]

    @classmethod
    def of(
        cls,
        newest: int,
        targets: Iterable[float] | float | None,
        strengths: Iterable[float] | float,
    ) -> Space:
        """Checked and sorted; ``targets`` None is the ladder."""
        if targets is None:
            targets = sorted({float(round(newest * f)) for f in LADDER} - {float(newest)})
        chosen = sorted(check_targets(targets))
        if chosen[0] <= 0:
            raise InputError(f"target_steps: expected steps above 0, found {plain(chosen[0])}")
        given = strengths if isinstance(strengths, Iterable) else [strengths]
        powers = sorted(float(strength) for strength in given)
        if not powers or not all(math.isfinite(s) and s > 0 for s in powers):
            found = ", ".join(map(str, powers)) or "none"
            raise InputError(f"strengths: expected finite numbers above 0, found {found}")
        if len(set(powers)) != len(powers):
            raise InputError("strengths: expected each once, found one twice")
        return cls(newest, tuple(chosen), tuple(powers))


def next_pass(
    space: Space, scored: Mapping[Candidate, float], *, evaluations: int, size: int
) -> list[Candidate]:
    """The forecasts to write and evaluate next; none when the search is over.

    Args:
        scored: what has been evaluated, in that order; the higher the better.
        evaluations: the whole budget, the bar's included.
        size: how many forecasts one pass may have.
    """
    left = evaluations - 1 - len(scored)
    coarse = grid(space, coarse_count(evaluations))
    found = [candidate for candidate in coarse if candidate not in scored]
    if not found and scored:
        found = around(space, scored)
    return found[: max(0, min(left, size))]


def coarse_count(evaluations: int) -> int:
    """How many forecasts half of the budget leaves, beside the bar."""
    return max(1, (evaluations + 1) // 2 - 1)


def grid(space: Space, count: int) -> list[Candidate]:
    """At most ``count`` grid points, evenly spaced along a snake that visits all of them."""
    snake = [
        Candidate(step, strength)
        for i, step in enumerate(space.targets)
        for strength in (space.strengths if i % 2 else space.strengths[::-1])
    ]
    if count >= len(snake):
        return snake
    return [snake[(2 * i + 1) * len(snake) // (2 * count)] for i in range(count)]


def around(space: Space, scored: Mapping[Candidate, float]) -> list[Candidate]:
    """What halves the gaps around the best forecast, the widest first."""
    best = max(scored, key=lambda candidate: scored[candidate])  # the first among equals
    sides: list[tuple[float, Candidate]] = []
    if len(space.targets) > 1:
        line = {c.step for c in scored if c.strength == best.strength}
        if space.newest < space.targets[0]:
            line.add(space.newest)
        for step in _sides(best.step, line, space.targets, _middle_step):
            width = abs(math.log(step / best.step)) / math.log(LEAST_RATIO)
            sides.append((width, Candidate(step, best.strength)))
    if len(space.strengths) > 1:
        line = {0.0, *(c.strength for c in scored if c.step == best.step)}
        for strength in _sides(best.strength, line, space.strengths, _middle_strength):
            width = abs(strength - best.strength) / LEAST_STRENGTH
            sides.append((width, Candidate(best.step, strength)))
    sides.sort(key=lambda side: -side[0])
    return [candidate for width, candidate in sides if width >= 1]


def _middle_step(a: float, b: float) -> float:
    return float(round(math.sqrt(a * b)))  # no training ends between two steps


def _middle_strength(a: float, b: float) -> float:
    return float(f"{(a + b) / 2:.3g}")


def _sides(
    here: float,
    line: Iterable[float],
    values: Sequence[float],
    middle: Callable[[float, float], float],
) -> list[float]:
    """Below and above ``here``: the middle of the gap, or the grid's next value beyond the line."""
    found = []
    for sign in (-1, 1):
        known = [v for v in line if (v - here) * sign > 0]
        beyond = [v for v in values if (v - here) * sign > 0]
        if known:
            end = min(known, key=lambda v: abs(v - here))
            value = middle(here, end)
            if min(here, end) < value < max(here, end):
                found.append(value)
        elif beyond:
            found.append(min(beyond, key=lambda v: abs(v - here)))
    return found
