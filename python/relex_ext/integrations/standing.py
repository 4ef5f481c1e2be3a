"""Where a run stands: is it linear yet, and which step would a forecast reach?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from relex_ext.evidence import backtest
from relex_ext.evidence.backtest import Backtest
from relex_ext.evidence.cases import FARTHEST
from relex_ext.evidence.drift import SHORTEST
from relex_ext.evidence.measures import line_r2
from relex_ext.evidence.verdict import Verdict, judge_all
from relex_ext.scans import Scan

STRAIGHTNESS = "straightness of the updates"
"""What the verdict calls it."""

LADDER = 24
"""Steps that are judged at once, in the search for the furthest."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a scan says about its run so far. Steps are the trainer's."""

    step: int
    """The newest."""
    checkpoints: int
    ev: float
    """Explained variance of rank 1, all tensors as one vector."""
    r2: float | None
    """Of the line through its coefficient; None for a single checkpoint."""
    verdict: Verdict | None
    """On the step asked about, or on the next one; None for a single checkpoint."""
    reach: int | None
    """The furthest step that the verdict is ``go`` for; None: no step."""
    go: bool
    """The verdict on the step asked about is ``go``; where none was asked about, on any."""

    @property
    def straightness(self) -> float | None:
        """None of checkpoints too few to tell."""
        reasons = self.verdict.reasons if self.verdict is not None else ()
        return next((r.found for r in reasons if r.what == STRAIGHTNESS), None)

    def logs(self) -> dict[str, float]:
        """As trainers log it; ``relex/reach`` is the newest step where there is none beyond it."""
        found = {
            "relex/step": float(self.step),
            "relex/ev": self.ev,
            "relex/verdict_go": float(self.go),
            "relex/reach": float(self.step if self.reach is None else self.reach),
        }
        rest = {"relex/r2": self.r2, "relex/straightness": self.straightness}
        return found | {name: value for name, value in rest.items() if value is not None}

    def __str__(self) -> str:
        count = f"{self.checkpoints} checkpoint{'' if self.checkpoints == 1 else 's'}"
        line = f"step {self.step}, {count}: "
        if self.verdict is None or self.r2 is None:
            return f"{line}too few to judge"
        reach = "no step ahead" if self.reach is None else f"step {self.reach}"
        numbers = "; ".join(map(str, self.verdict.reasons))
        return (
            f"{line}a forecast reaches {reach}; step {self.verdict.target:g}: "
            f"{self.verdict.sentence} [{numbers}]; explained variance {self.ev:.3f}, "
            f"R² {self.r2:.3f}"
        )


def standing_of(scan: Scan, target: float | None = None, after: int = 0) -> Standing:
    """What to say about a scan whose step 0 is the trainer's step ``after``, and whether ``target``
    may be forecast, a step of the trainer's ahead of the newest."""
    steps = scan.steps
    newest, ev, r2 = steps[-1] + after, *_rank1(scan)
    if len(steps) < 2:
        return Standing(newest, len(steps), ev, r2, None, None, False)
    tested = backtest.run(scan, steps) if len(steps) >= SHORTEST else None
    reach = furthest(scan, tested)
    asked = steps[-1] + 1 if target is None else target - after
    if reach is not None and target is None:
        asked = reach
    ahead = judge_all(scan, [asked], tested=tested)[0] if asked > steps[-1] else None
    go = reach is not None if target is None else ahead is not None and ahead.decision == "go"
    if ahead is not None:
        ahead = shifted(ahead, after)
    return Standing(newest, len(steps), ev, r2, ahead, None if reach is None else reach + after, go)


def shifted(verdict: Verdict, after: int) -> Verdict:
    """A verdict on steps that are counted from step ``after``, in the trainer's steps."""
    if after == 0:
        return verdict
    sentence = re.sub(r"(?<=step )\d+", lambda step: str(int(step[0]) + after), verdict.sentence)
    horizon, course = (None if s is None else s + after for s in (verdict.horizon, verdict.course))
    return replace(
        verdict, sentence=sentence, horizon=horizon, course=course, target=verdict.target + after
    )


def furthest(scan: Scan, tested: Backtest | None = None) -> int | None:
    """The furthest whole step that :func:`judge` says ``go`` to; None: to no step.

    ``tested``: a backtest of all steps, where it is at hand.
    """
    steps = scan.steps
    if len(steps) < SHORTEST:
        return None
    newest, span = steps[-1], steps[-1] - min(0, steps[0] - 1)
    tested = tested or backtest.run(scan, steps)
    found = None
    ends = _whole(newest + np.geomspace(1.0, FARTHEST * span, LADDER))
    while True:
        verdicts = judge_all(scan, ends, tested=tested)
        go = [i for i, verdict in enumerate(verdicts) if verdict.decision == "go"]
        if go:
            found = ends[go[-1]]
        elif found is None:
            return None
        beyond = [end for end in ends if end > found]
        if not beyond or beyond[0] == found + 1:
            return found
        ends = _whole(np.linspace(found + 1, beyond[0] - 1, LADDER))


def _whole(ends: Iterable[float]) -> list[int]:
    return sorted({round(float(end)) for end in ends})


def _rank1(scan: Scan) -> tuple[float, float | None]:
    total = np.zeros((len(scan.steps),) * 2)
    for name in scan.names:
        total += scan.source(name).gram
    values, vectors = np.linalg.eigh(total)
    energy = float(np.trace(total))
    ev = float(values[-1]) / energy if energy > 0.0 else 0.0
    if len(scan.steps) < 2:
        return ev, None
    r2 = line_r2(np.array(scan.steps, np.float64), vectors[None, :, -1])
    return ev, float(r2[0])
