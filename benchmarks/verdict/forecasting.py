"""A run in memory: its checkpoints, its scan, and the accuracy of any forecast from a prefix."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import relex_ext
from relex_ext.evidence.cases import Case
from relex_ext.methods import Options, weigh_scan
from verdict.runs import EXAMPLE, Regime

sys.path.insert(0, str(EXAMPLE))
from score import Scorer

PREFIXES = (15, 30, 50, 80)
REACHES = (0.125, 0.25, 0.5, 1.0, 2.0, 3.0)
"""How far ahead, in prefixes. pinned and secant move in proportion to it, so that a strength λ at
reach r is full strength at reach λr: the one is measured with the other."""
ASKED = (0.5, 1.0, 2.0, 3.0)
"""Those a user asks for."""


@dataclass(frozen=True)
class Scored:
    """A forecast of step ``target`` from a prefix: its accuracy, the newest checkpoint's, and that
    of the step really trained (None beyond the run)."""

    run: str
    fitted: bool
    prefix: int
    target: int
    method: str
    strength: float
    strain: float
    """How much of the movement seen it adds: λ‖f‖/‖Δ_T‖."""
    ratio: float
    """Of the drift to the noise, in the prefix."""
    p: float
    accuracy: float
    newest: float
    trained: float | None
    error: float
    """Standard error of ``newest``."""
    lasting: float = 1.0
    """λ at which the forecast meets the drift, by the drift's course."""
    skill: float | None = None
    """1 − SSE/SSE(newest) in weight space, with hindsight; None beyond the run."""

    @property
    def gain(self) -> float:
        """Over the newest checkpoint, in its standard errors."""
        return (self.accuracy - self.newest) / self.error


class Run:
    """One regime's checkpoints."""

    def __init__(self, regime: Regime, folder: Path, problems: int) -> None:
        self.regime, self.folder, self.problems = regime, folder / regime.name, problems
        place = self.folder / "run.scan"
        if not place.exists():
            relex_ext.scan(self.folder / "base", self.folder, out=place, progress=False)
        self.scan = relex_ext.Scan.load(place)
        self._base = load_file(self.folder / "base" / "model.safetensors")
        self._steps = {
            step: load_file(self.folder / f"checkpoint-{step}" / "model.safetensors")
            for step in self.scan.steps
        }
        self._scorer = Scorer(self.folder / "base", problems)
        self._trained: dict[int, float] = {}

    @property
    def last(self) -> int:
        return self.scan.steps[-1]

    def trained(self, step: int) -> float:
        """Accuracy of a checkpoint."""
        if step not in self._trained:
            self._trained[step] = self._scorer.score(self._steps[step])
        return self._trained[step]

    def score(self, prefix: int, target: int, options: Options, case: Case) -> Scored:
        """Write a forecast, in memory as the library would to disk, and score it."""
        steps = tuple(range(1, prefix + 1))
        weights = weigh_scan(self.scan, steps, (float(target),), options)
        made = {}
        for name, base in self._base.items():
            rows = [self._steps[step][name] for step in steps]
            if name in weights.tensors:
                table = torch.from_numpy(weights.tensors[name])
                made[name] = relex_ext.combine_tensors(rows, table, base)[0]
        newest = self.trained(prefix)
        strength = weights.strengths[0]
        full = float(case.look_ahead([float(target)]).strain[0])
        return Scored(
            self.regime.name, self.regime.fitted, prefix, target, options.method, strength,
            strength * full, case.found.ratio, case.found.p, self._scorer.score(made), newest,
            self.trained(target) if target <= self.last else None,
            math.sqrt(newest * (1.0 - newest) / self.problems),
        )  # fmt: skip

    def prefixes(self) -> list[int]:
        return [p for p in PREFIXES if p * (1 + ASKED[0]) <= self.last]

    def grid(self) -> list[Scored]:
        """What the limits are fitted to, and RELEX's plain form where a user asks for it."""
        found = []
        for prefix in self.prefixes():
            case = Case(self.scan, range(1, prefix + 1), Options())
            for method, reaches in (("pinned", REACHES), ("secant", REACHES), ("relex", ASKED)):
                options = Options(method=method)
                about = case.about(options)
                for reach in reaches:
                    target = prefix + max(1, round(reach * prefix))
                    found.append(self.score(prefix, target, options, about))
        return found


def kept(place: Path, make: object) -> list[Scored]:
    """``make()``'s results, read from ``place`` if they are there and written there if not."""
    if not place.is_file():
        assert callable(make)
        text = json.dumps([asdict(one) for one in make()])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return [Scored(**one) for one in json.loads(place.read_text())]


def _as_seen_now(scored: Sequence[Scored], regime: Regime, folder: Path) -> list[Scored]:
    """With the drift that the library finds today: accuracies stay what they are."""
    scan = relex_ext.Scan.load(folder / regime.name / "run.scan")
    found = []
    for prefix in sorted({one.prefix for one in scored}):
        case = Case(scan, range(1, prefix + 1), Options())
        for method in sorted({one.method for one in scored}):
            ours = [one for one in scored if (one.prefix, one.method) == (prefix, method)]
            options = Options(method=method)
            ahead = case.about(options).look_ahead([one.target for one in ours])
            found += [
                replace(
                    one, ratio=case.found.ratio, p=case.found.p, lasting=float(lasting),
                    skill=skill_of(scan, one, options),
                )
                for one, lasting in zip(ours, ahead.lasting, strict=True)
            ]  # fmt: skip
    return found


def skill_of(scan: relex_ext.Scan, one: Scored, options: Options) -> float | None:
    """Of a forecast in full, against the checkpoint that was trained."""
    if one.target > scan.steps[-1]:
        return None
    steps = tuple(range(1, one.prefix + 1))
    weights = weigh_scan(scan, steps, (float(one.target),), options)
    missed, stood = 0.0, 0.0
    for name, table in weights.tensors.items():
        error = np.zeros(len(scan.steps))
        error[: one.prefix] = table[0]
        error[one.target - 1] -= 1.0
        still = np.zeros(len(scan.steps))
        still[[one.prefix - 1, one.target - 1]] = 1.0, -1.0
        missed += float(error @ scan.grams[name] @ error)
        stood += float(still @ scan.grams[name] @ still)
    return 1.0 - missed / stood


def grid_of(regimes: Sequence[Regime], folder: Path, problems: int) -> list[Scored]:
    found: list[Scored] = []
    for regime in regimes:
        place = folder / "scores" / f"{regime.name}_{problems}.json"
        scored = kept(place, lambda regime=regime: Run(regime, folder, problems).grid())
        found += _as_seen_now(scored, regime, folder)
        print(f"{regime.name}: {len(found)} forecasts scored in all", flush=True)
    return found
