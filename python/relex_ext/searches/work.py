"""The work of a search: forecasts written pass by pass, evaluated, the best one kept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relex_ext.forecasts import Source
from relex_ext.methods import Options, weigh_all
from relex_ext.pipeline import combine
from relex_ext.scans import Scan
from relex_ext.scores import Score
from relex_ext.searches.evaluation import Evaluation
from relex_ext.searches.folder import SearchFolder, candidate_of
from relex_ext.searches.found import Search, SearchPlan, name_of, score_text
from relex_ext.searches.place import BEST, PASS
from relex_ext.searches.strategy import Candidate, Space, next_pass
from relex_ext.steps import Checkpoints, PathLike
from relex_ext.trajectory import Trajectory


@dataclass(frozen=True)
class Forecasts:
    """How to write some: the inputs, the scan, the method and the machine's options."""

    base: PathLike
    checkpoints: Checkpoints
    trajectory: Trajectory
    scan: Scan | None
    """None for a method that asks for no spectrum."""
    options: Options
    settings: dict[str, Any]

    def write(self, candidates: Sequence[Candidate], out: Path) -> None:
        """All of them in one pass over the shards, each in a folder of its name."""
        steps = self.trajectory.steps
        if self.scan is None:
            sources = [Source(tensor.name, None) for tensor in self.trajectory.trained]
        else:
            sources = [self.scan.source(name, steps) for name in self.scan.names]
        targets, strengths = [c.step for c in candidates], [c.strength for c in candidates]
        weights = weigh_all(sources, steps, targets, self.options, strengths)
        names = [candidate.name for candidate in candidates]
        combine(self.base, self.checkpoints, weights, out, names=names, **self.settings)


@dataclass(frozen=True)
class Work:
    """A search under way."""

    folder: SearchFolder
    forecasts: Forecasts
    evaluation: Evaluation
    plan: SearchPlan
    talks: bool

    def run(self, space: Space) -> Search:
        """From wherever the folder is to the end."""
        folder, prefix = self.folder, space.newest
        if folder.bar is None:
            model = self.forecasts.trajectory.newest.folder.absolute()
            row: dict[str, Any] = {
                "kind": "trained",
                "prefix": None,
                "method": None,
                "strength": None,
            }
            self._evaluate(model, f"step_{prefix}", {**row, "step": float(prefix)})
        while candidates := self._next(space):
            self._write(candidates)
            for candidate in candidates:
                row = {
                    "kind": "forecast" if candidate.step > prefix else "reconstruction",
                    "prefix": prefix, "step": candidate.step,
                    "method": self.forecasts.options.method, "strength": candidate.strength,
                }  # fmt: skip
                self._evaluate(folder.out / PASS / candidate.name, candidate.name, row)
        bar, best = folder.bar, folder.best
        assert bar is not None and best is not None, "both were evaluated"
        if best.kind != "trained" and not (folder.out / BEST).exists():  # somebody removed it
            self._write([candidate_of(best)])
            folder.settle()
        folder.finish(bar, best)
        return Search(folder.out, self.plan, folder.sign > 0, folder.scores, bar, best)

    def _next(self, space: Space) -> list[Candidate]:
        """The rest of the pass under way, or a new one."""
        folder, total, size = self.folder, self.plan.evaluations, self.plan.per_pass
        left = max(0, total - len(folder.scores))
        rest = [candidate for candidate in folder.planned if candidate not in folder.scored]
        if not rest and left:
            rest = next_pass(space, folder.scored, evaluations=total, size=size)
            if rest:
                folder.plan(rest)
        return rest[:left]

    def _write(self, candidates: Sequence[Candidate]) -> None:
        place = self.folder.out / PASS
        if not all((place / candidate.name).is_dir() for candidate in candidates):
            self.folder.clear_pass()
            self.forecasts.write(candidates, place)

    def _evaluate(self, model: Path, name: str, row: dict[str, Any]) -> None:
        score, error = self.evaluation(model, name)
        self.folder.add(Score(**row, score=score, error=error, model=str(model)))
        if self.talks:
            scores = self.folder.scores
            place = f"{len(scores)} of {self.plan.evaluations}"
            text = f"{name_of(scores[-1])}: {score_text(scores[-1])}"
            print(f"{text} ({place})", file=sys.stderr, flush=True)
