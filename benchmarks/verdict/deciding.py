"""What the verdict says about held-out runs, held against what the forecasts score."""

from __future__ import annotations

from dataclasses import dataclass

from relex_ext.evidence.cases import Case
from relex_ext.evidence.verdict import judge
from relex_ext.methods import Options
from verdict.forecasting import ASKED, Run, Scored

RUINED = 2.0
"""Standard errors below the newest checkpoint from which on a forecast counts as collapsed."""


@dataclass(frozen=True)
class Decision:
    """One question, as a user asks it: RELEX's plain form of step ``target`` from ``prefix``."""

    run: str
    prefix: int
    target: int
    decision: str
    sentence: str
    method: str
    strength: float
    ratio: float
    newest: float
    error: float
    trained: float | None
    plain: float
    """Accuracy of the plain form in full."""
    auto: float
    """Of the plain form with ``strength="auto"``."""
    auto_strength: float
    followed: float | None
    """Of what the verdict recommends: the forecast, or where it calls only shorter horizons, the
    one at that horizon; None where it advises against any."""

    @property
    def agrees(self) -> bool:
        """A forecast that is recommended is at least as good as the newest checkpoint, one that is
        advised against in its plain form is worse; within the standard error."""
        if self.decision in ("go", "go shrunk"):
            return self.followed is not None and self.followed >= self.newest - self.error
        return self.plain < self.newest - self.error

    @property
    def collapsed(self) -> bool:
        return self.plain < self.newest - RUINED * self.error

    @property
    def auto_holds(self) -> bool:
        return self.auto >= self.newest - self.error


def decide(run: Run, grid: list[Scored]) -> list[Decision]:
    found = []
    for prefix in run.prefixes():
        steps = range(1, prefix + 1)
        case = Case(run.scan, steps, Options())
        for reach in ASKED:
            target = prefix + round(reach * prefix)
            plain = next(
                o for o in grid
                if (o.run, o.prefix, o.target, o.method)
                == (run.regime.name, prefix, target, "relex")
            )  # fmt: skip
            auto = run.score(prefix, target, Options(strength="auto"), case)
            verdict = judge(run.scan, target, steps=steps)
            followed = None
            if verdict.strength > 0.0 and verdict.horizon is not None:
                step = min(target, max(prefix + 1, int(verdict.horizon)))
                best = Options(method=verdict.method)
                about = case.about(best)
                strength = about.strengths([float(step)])[0]
                if step == target:
                    strength = verdict.strength
                options = Options(method=verdict.method, strength=strength)
                followed = run.score(prefix, step, options, about).accuracy
            found.append(
                Decision(
                    run.regime.name,
                    prefix,
                    target,
                    verdict.decision,
                    verdict.sentence,
                    verdict.method,
                    verdict.strength,
                    case.found.ratio,
                    plain.newest,
                    plain.error,
                    plain.trained,
                    plain.accuracy,
                    auto.accuracy,
                    auto.strength,
                    followed,
                )
            )
    return found
