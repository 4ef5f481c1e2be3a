"""Whether the verdict's answers are true: on trajectories whose future is known.

Five kinds of them (verdict/trajectories.py): random walks, half of them with momentum; drifts worth
following; drifts that saturate or swing; jumps. Three tables:

- what was decided of each kind, held against two goals: at most 5 % of the walks are called go, at
  least 95 % of the drifts;
- how far the verdict follows the course (``Verdict.course``), in windows and at most to the target,
  against the truth: the forecast's own weights applied to the course without its noise;
- the skill at full strength that the verdict expects, 1 − (1 − x)² where a line is x times as far
  ahead as the drift, against the true one.

Variants: checkpoints ten steps apart, few of them, at irregular steps, many tensors. Verified
first: the truth of a straight drift, and that the verdict knows it.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

import common
from relex_ext.evidence import judge
from relex_ext.evidence.cases import Case
from relex_ext.evidence.verdict import DECISIONS
from relex_ext.methods import Options
from verdict.trajectories import KINDS, Run, draw

Spacing: TypeAlias = Callable[[np.random.Generator], tuple[Sequence[int], int]]

WALKS_GO, DRIFTS_GO = 0.05, 0.95
WITHIN, SHORT = 0.20, 0.05
"""Of the true horizon; of the window, where that is more: a fifth of a horizon of a few checkpoints
is less than one checkpoint."""


def _irregular(rng: np.random.Generator) -> tuple[Sequence[int], int]:
    inner = 1 + rng.choice(74 * 4, size=39, replace=False)
    return (*np.sort(inner).tolist(), 300), 1


SPACINGS: dict[str, Spacing] = {
    "every step": lambda rng: (range(1, 76), 1),
    "every 10 steps": lambda rng: (range(10, 10 * int(rng.integers(20, 76)) + 1, 10), 1),
    "12 checkpoints": lambda rng: (range(1, 13), 1),
    "40 at irregular steps": _irregular,
    "6 tensors": lambda rng: (range(1, 76), 6),
}
"""Name → steps and number of tensors."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One verdict and the truth. Horizons in windows."""

    kind: str
    decision: str
    method: str
    velocity: str
    horizon: float
    truth: float
    expected: float
    skill: float

    @property
    def go(self) -> bool:
        return self.decision.startswith("go")

    def near(self, short: float) -> bool:
        return abs(self.horizon - self.truth) <= max(WITHIN * self.truth, short)


def answer(run: Run, options: Options, draws: int) -> Answer:
    verdict = judge(run.scan, run.target, options, draws=draws)
    # What the verdict does not tell: how the method was set up behind a jump, and the fit's kind.
    case = Case(run.scan, None, options, draws=9)
    used = case.options if case.first else Options(method=verdict.method)
    course = run.steps[-1] if verdict.course is None else verdict.course
    line = verdict.reasons[1].found if verdict.course is not None else 0.0
    return Answer(
        kind=run.kind,
        decision=verdict.decision,
        method=verdict.method,
        velocity="none" if case.drift is None else case.drift.velocity.kind,
        horizon=min(course / run.steps[-1] - 1.0, run.reach),
        truth=run.horizon(used),
        expected=1.0 - (1.0 - line) ** 2,
        skill=run.skill_at_target(used),
    )


def verify() -> None:
    """A straight drift without noise: no end, a skill of 1, and a verdict that says so."""
    run = draw("drift", np.random.default_rng(0), range(1, 76), rho=1e9)
    found = answer(run, Options(method="secant"), 99)
    if not (found.go and found.truth == found.horizon == run.reach and found.skill > 0.999):
        common.fail(f"a straight line: {found}")
    if abs(found.expected - 1.0) > 1e-3:
        common.fail(f"a straight line: expected a skill of 1, found {found.expected}")


def measure(name: str, kinds: Sequence[str], args: argparse.Namespace) -> list[Answer]:
    found = []
    options = Options(method=args.method)
    for kind in kinds:
        rng = np.random.default_rng([args.seed, KINDS.index(kind), list(SPACINGS).index(name)])
        for _ in range(args.draws if name == "every step" else args.draws // 5):
            steps, tensors = SPACINGS[name](rng)
            found.append(answer(draw(kind, rng, tuple(steps), tensors), options, args.walks))
        common.say(f"{name}: {kind}")
    return found


def share(hits: Sequence[bool]) -> str:
    return f"{100.0 * statistics.mean(hits):.1f} %" if hits else "–"


def decided(name: str, answers: Sequence[Answer]) -> list[list[str]]:
    rows = []
    for kind in KINDS:
        some = [a for a in answers if a.kind == kind]
        counts = Counter(a.decision for a in some)
        rows.append([
            f"{name}: {kind}", str(len(some)), *(str(counts[d]) for d in DECISIONS),
            share([a.go for a in some]),
        ])  # fmt: skip
    return rows


def followed(name: str, answers: Sequence[Answer]) -> list[list[str]]:
    rows = []
    for kind in KINDS[1:]:
        some = [a for a in answers if a.kind == kind]
        errors = [abs(a.horizon - a.truth) for a in some]
        relative = [abs(a.horizon - a.truth) / a.truth for a in some if a.truth > 0.0] or [0.0]
        rows.append([
            f"{name}: {kind}", share([a.near(SHORT) for a in some]),
            share([a.near(0.0) for a in some]),
            f"{statistics.median(errors):.3f}", f"{100 * statistics.median(relative):.1f} %",
            share([a.velocity == _fitting(kind) for a in some]),
        ])  # fmt: skip
    return rows


def _fitting(kind: str) -> str:
    return {"saturating": "decaying", "oscillating": "turning"}.get(kind, "constant")


def expected(name: str, answers: Sequence[Answer]) -> list[list[str]]:
    """Of trajectories that were found to drift."""
    rows = []
    for kind in KINDS[1:]:
        some = [a for a in answers if a.kind == kind and a.velocity != "none" and a.expected]
        if not some:
            continue
        # Skill has no lower bound, and of a forecast that is useless nobody asks how useless.
        told, true = np.clip(np.array([[a.expected, a.skill] for a in some]), -1.0, 1.0).T
        off = np.abs(told - true)
        rows.append([
            f"{name}: {kind}", str(len(some)), f"{np.median(told):.2f}", f"{np.median(true):.2f}",
            f"{np.median(told - true):+.3f}", f"{np.median(off):.3f}",
            share((off <= 0.1).tolist()), share(((told > 0.0) == (true > 0.0)).tolist()),
        ])  # fmt: skip
    return rows


def goals(answers: Sequence[Answer]) -> list[str]:
    walks = [a.go for a in answers if a.kind == "walk"]
    drifts = [a.go for a in answers if a.kind == "drift"]
    curved = [a.near(SHORT) for a in answers if a.kind in KINDS[2:]]
    lines = []
    for what, hits, goal, met in (
        ("walks called go", walks, "at most 5 %", statistics.mean(walks) <= WALKS_GO),
        ("drifts called go", drifts, "at least 95 %", statistics.mean(drifts) >= DRIFTS_GO),
    ):
        lines.append(f"{what}: {share(hits)}; goal {goal}: {'met' if met else 'MISSED'}.")
    lines.append(f"Horizons within 20 %, of saturating, oscillating and jumping: {share(curved)}.")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=500, help="of each kind; of variants a fifth")
    parser.add_argument("--walks", type=int, default=999, help="behind each p")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--method", default="pinned")
    parser.add_argument("--spacings", type=common.words, default=list(SPACINGS))
    parser.add_argument("--json", type=common.Path, help="a file for the results")
    args = parser.parse_args()
    verify()
    answers = {name: measure(name, KINDS, args) for name in args.spacings}
    tables = {
        "decided": (["kind", "draws", *DECISIONS, "called go"], decided),
        "followed": (
            ["kind", "within 20 %", "strictly", "median error, windows", "median error", "fitted"],
            followed,
        ),
        "expected": (
            ["kind", "drifts", "expected", "true", "bias", "median error", "within 0.1", "sign"],
            expected,
        ),
    }
    rows = {
        what: [row for name, some in answers.items() for row in make(name, some)]
        for what, (_, make) in tables.items()
    }
    first = next(iter(answers.values()))
    note = (
        f"within 20 %: of the true horizon, or within {SHORT:.0%} of the window where that is more "
        "(horizons below a quarter of a window); strictly: of the true horizon alone."
    )
    heads = {what: heads for what, (heads, _) in tables.items()}
    common.report(
        args,
        heads["decided"],
        rows["decided"],
        {
            what: [dict(zip(heads[what], row, strict=True)) for row in found]
            for what, found in rows.items()
        },
        [common.table(heads[what], rows[what]) for what in ("followed", "expected")]
        + [note, *goals(first)],
    )


if __name__ == "__main__":
    main()
