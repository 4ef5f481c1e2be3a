"""What a search takes, and what it found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from relex_ext.scores import Score, plain
from relex_ext.searches.strategy import Candidate, Space


@dataclass(frozen=True)
class SearchPlan:
    """What a search will take. ``space``: where it looks; ``coarse``: the forecasts evaluated
    whatever the scores say; ``disk``: bytes of models at their fullest; ``bytes_read``: for one
    pass, and once for the scan, 0 where there is one."""

    space: Space
    coarse: tuple[Candidate, ...]
    evaluations: int
    per_pass: int
    model_bytes: int
    disk: int
    free_space: int
    bytes_read: int
    scan_bytes: int
    backend: str


@dataclass(frozen=True)
class Search:
    """What a search found. ``scores``: every evaluation, in order; ``bar``: the newest
    checkpoint's; ``best``: the best of all, which is the bar where no forecast beats it. A dry run
    has a plan only."""

    out: Path
    plan: SearchPlan
    higher_is_better: bool
    scores: tuple[Score, ...] = ()
    bar: Score | None = None
    best: Score | None = None

    @property
    def gains(self) -> bool:
        """Whether a forecast beats the newest checkpoint."""
        return self.best is not None and self.best != self.bar

    @property
    def at_edge(self) -> bool:
        """Whether a forecast beats the newest checkpoint, and farther ones were not to be tried."""
        assert self.best is not None, "a dry run finds nothing"
        targets = self.plan.space.targets
        return self.gains and len(targets) > 1 and self.best.step == targets[-1]

    def sentence(self) -> str:
        """The result in words."""
        assert self.bar is not None and self.best is not None, "a dry run finds nothing"
        newest = f"the newest checkpoint (step {plain(self.bar.step)})"
        if self.gains:
            found = (
                f"{name_of(self.best)} scores {self.best.score:.6g}, {newest} {self.bar.score:.6g}"
            )
            if self.best.error is not None and self.bar.error is not None:
                error = math.hypot(self.best.error, self.bar.error)
                if abs(self.best.score - self.bar.score) < 2 * error:
                    found += f"; the difference is within two standard errors ({error:.2g})"
            if self.at_edge:
                found += "; no farther target was tried"
            return found
        sign = 1 if self.higher_is_better else -1
        second = max(
            (score for score in self.scores if score.kind != "trained"),
            key=lambda score: sign * score.score,
        )
        return (
            f"no forecast beats {newest}, which scores {self.bar.score:.6g}; "
            f"the best, {name_of(second)}, scores {second.score:.6g}"
        )


def name_of(score: Score) -> str:
    """``forecast of step 300 at strength 0.5``."""
    if score.strength is None:
        return f"checkpoint of step {plain(score.step)}"
    return f"{score.kind} of step {plain(score.step)} at strength {plain(score.strength)}"


def score_text(score: Score) -> str:
    """``0.541 ± 0.008``."""
    return f"{score.score:.6g}" + ("" if score.error is None else f" ± {score.error:.2g}")
