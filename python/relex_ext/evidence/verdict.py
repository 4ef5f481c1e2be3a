"""Whether to believe a forecast, in plain words, and how much of it.

Three questions decide, each answered by a number of the Gram matrices:

1. Is there a drift at all? Straightness ‖Σ d_j‖²/Σ ‖d_j‖² against walks with the same updates.
2. Where does it lead? Its velocity's course says how far a straight line gets ahead of it: a
   forecast twice as far as the drift is no better than the newest checkpoint.
3. How far may one go? Weight space cannot say: noise dominates distances there, drift moves the
   function, and what a model stands is its own. Real runs can: forecasts hold while
   λ‖f‖/‖Σ d_j‖, the movement asked for in units of the movement seen, stays below a limit that
   falls as the drift comes out of the noise (:func:`relex_ext.evidence.cases.strain_limit`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relex_ext.errors import InputError
from relex_ext.evidence import backtest
from relex_ext.evidence.backtest import Backtest
from relex_ext.evidence.cases import CHANCE, Case, strain_limit
from relex_ext.evidence.drift import SHORTEST
from relex_ext.methods import Options
from relex_ext.scans import Scan
from relex_ext.steps import PathLike

DECISIONS = ("go", "go shrunk", "short horizons", "no-go")

MORE, LESS = "at least", "at most"

FULL, LEAST = 0.85, 0.04
"""λ from which on a forecast is given in full, and below which the target is called too far."""

RIVALS = ("pinned", "secant")
"""Methods that are recommended in relex's place where the backtest finds them better aimed, by
``BETTER`` in the mean cosine."""
BETTER = 0.02


@dataclass(frozen=True, slots=True)
class Reason:
    """One of the numbers that decided: what it is, what was found, what it was held against."""

    what: str
    found: float
    needed: str
    """``at least`` or ``at most`` …"""
    limit: float

    def __str__(self) -> str:
        return f"{self.what} {self.found:.3g} ({self.needed} {self.limit:.3g})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``sentence`` is for people: ``no-go: the checkpoints wander like a random walk``."""

    decision: str
    """One of :data:`DECISIONS`."""
    sentence: str
    reasons: tuple[Reason, ...]
    """The three numbers that decided, the most important first."""
    method: str
    strength: float
    """The recommended λ."""
    horizon: float | None
    """The last step that the recommended method should be asked for in full; None: none at all."""
    course: float | None
    """The last step up to which the drift's course carries a straight line, whatever a model
    stands: Inf where no end of it is seen."""
    target: float
    """The step the question was about."""

    def record(self) -> dict[str, Any]:
        """As relex.json keeps it: numbers without an end are null."""

        def plain(value: float | None) -> float | None:
            return value if value is None or math.isfinite(value) else None

        reasons = [
            {"what": r.what, "found": plain(r.found), "needed": r.needed, "limit": r.limit}
            for r in self.reasons
        ]
        return {
            "decision": self.decision, "sentence": self.sentence, "reasons": reasons,
            "method": self.method, "strength": self.strength, "horizon": plain(self.horizon),
        }  # fmt: skip


def judge(
    scan: Scan | PathLike,
    target: float,
    options: Options | None = None,
    steps: Sequence[int] | None = None,
    *,
    until: int | None = None,
    tested: Backtest | None = None,
    draws: int = 999,
    seed: int = 0,
) -> Verdict:
    """A verdict on forecasting step ``target`` from a scan's checkpoints.

    Args:
        scan: with solver gram for every tensor, or its file.
        target: a step after the newest of ``steps``.
        options: the method in question; its strength is not looked at. Of RELEX's plain form, the
            default, the verdict may recommend a variant that a backtest finds better aimed.
        steps: use these checkpoints only.
        until: use the checkpoints up to this step.
        tested: that backtest, where it is at hand.
        draws: random walks behind the drift's p.
        seed: of the draws. The same seed gives the same verdict.

    Raises:
        InputError: a target that is not ahead, a method that does not look ahead, or a tensor with
            power iteration's vectors only.
    """
    return judge_all(
        scan, [target], options, steps, until=until, tested=tested, draws=draws, seed=seed
    )[0]


def judge_all(
    scan: Scan | PathLike,
    targets: Sequence[float],
    options: Options | None = None,
    steps: Sequence[int] | None = None,
    *,
    until: int | None = None,
    tested: Backtest | None = None,
    draws: int = 999,
    seed: int = 0,
) -> tuple[Verdict, ...]:
    """:func:`judge` for several targets."""
    loaded = Scan.given(scan)
    case = Case(loaded, loaded.chosen(until, steps), options or Options(), draws, seed)
    for target in targets:
        if not target > case.steps[-1]:
            raise InputError(f"target_step: expected more than {case.steps[-1]}, found {target:g}")
    if not case.drifts:
        return tuple(_no_drift(case, target) for target in targets)
    if case.options != Options():
        return tuple(_verdict(case, target) for target in targets)
    tested = tested or backtest.run(loaded, case.steps)
    return tuple(_verdict(_better_aimed(case, target, tested), target) for target in targets)


def auto_strength(
    scan: Scan, steps: Sequence[int], targets: Sequence[float], options: Options
) -> tuple[float, ...]:
    """λ for each target: the most that the drift's course and the strain limit allow, at most 1; 0
    where no drift is found, and for targets that are not ahead 1, where nothing is foretold."""
    case = Case(scan, steps, options, switch=False)
    ahead = [target for target in targets if target > case.steps[-1]]
    found = dict(zip(ahead, case.strengths(ahead), strict=True))
    return tuple(found.get(target, 1.0) for target in targets)


def _better_aimed(case: Case, target: float, tested: Backtest) -> Case:
    """The case of the method whose displacement has pointed best to the true one, over as far,
    among those that have somewhere to go."""
    start = min(0, case.steps[0] - 1)
    reach = (target - case.steps[-1]) / (case.steps[-1] - start)
    aims = {}
    for method in (case.options.method, *RIVALS):
        found = tested.summary(method, reach, start)
        if found is not None:
            rival = method != case.options.method
            aims[method] = found.cosine - (BETTER if rival else 0.0)
    for method in sorted(aims, key=aims.__getitem__, reverse=True):
        other = case.about(Options(method=method))
        if other.strengths([target])[0] > 0.0:
            return other
    return case


def _verdict(case: Case, target: float) -> Verdict:
    drift, newest = case.found, case.steps[-1]
    ahead = case.look_ahead([target])
    strength, lasting, bearable, strain = (
        float(one[0]) for one in (ahead.strengths, ahead.lasting, ahead.bearable, ahead.strain)
    )
    reasons = (
        Reason("straightness of the updates", drift.straightness, MORE, drift.limit),
        Reason(
            "forecast ÷ the drift's course",
            1.0 / lasting if lasting > 0.0 else float("inf"),
            LESS,
            2.0,
        ),
        Reason("movement asked for ÷ seen so far", strain, LESS, strain_limit(drift.ratio)),
    )
    course = case.horizon()
    horizon = None
    if course is not None:  # strain grows with the distance
        horizon = min(course, newest + (target - newest) * bearable)
    if course is None or horizon is None or strength == 0.0:
        decision, sentence = "no-go", "no-go: the drift has stopped or turned back"
        strength, horizon = 0.0, None
    elif target <= course and strength >= FULL:
        decision, sentence, strength = "go", "go", 1.0
    elif target <= course and strength >= LEAST:
        decision, sentence = "go shrunk", f"go, shrunk to λ = {strength:.2g}"
    elif int(horizon) > newest:
        decision = "short horizons"
        sentence = f"short horizons only: up to step {int(horizon)}"
    else:
        decision, sentence = "no-go", "no-go: a straight line leaves this run within a step"
        strength, horizon = 0.0, None
    method = case.options.method
    return Verdict(decision, sentence, reasons, method, strength, horizon, course, target)


def _no_drift(case: Case, target: float) -> Verdict:
    drift = case.drift
    if drift is None:
        count = len(case.steps) - case.first
        where = f" since the jump at step {case.jumps[-1][0]}" if case.jumps else ""
        sentence = f"no-go: {count} checkpoints{where} are too few to tell a drift from chance"
        reasons: tuple[Reason, ...] = (Reason("checkpoints", count, MORE, SHORTEST),)
    else:
        sentence = "no-go: the checkpoints wander like a random walk"
        reasons = (
            Reason("straightness of the updates", drift.straightness, MORE, drift.limit),
            Reason("chance of that in a random walk", drift.p, LESS, CHANCE),
            Reason("drift over noise", drift.over_noise, MORE, 0.0),
        )
    return Verdict("no-go", sentence, reasons, case.options.method, 0.0, None, None, target)
