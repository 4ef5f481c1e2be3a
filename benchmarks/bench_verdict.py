"""The verdict against real GRPO runs: hundreds of forecasts, scored on held-out problems.

    python benchmarks/bench_verdict.py RUNS [--train] [--json FILE]

RUNS holds one folder per regime of verdict/runs.py (``--train`` makes what is missing: 24 runs, 3
minutes each on one core; needs the extra ``train``). Every forecast is written as the library would
write it, in memory, and scored greedily (examples/tiny_grpo). Then

1. the limits of relex_ext.evidence.cases are fitted to the runs of seed 0,
2. with those that cases.py has now, the verdict is asked about every prefix and target of the runs
   of seeds 1 and 2, and what it recommends is scored.

What is scored is kept in RUNS/scores and not scored again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import common
from relex_ext.evidence import cases
from verdict.deciding import Decision, decide
from verdict.fitting import UNLIMITED, Limit, courses, fit, outcome
from verdict.forecasting import Run, Scored, grid_of
from verdict.runs import REGIMES, UNSEEN, train

NOW = Limit(cases.STRAIN, cases.EXPONENT, cases.FLOOR, cases.CAP)


def share(values: Sequence[bool]) -> str:
    return f"{np.mean(values):.1%} of {len(values)}" if values else "none"


def fitting(scored: Sequence[Scored]) -> dict[str, Any]:
    """Fit on some runs, look at all with what was fitted and with what cases.py has."""
    ours = courses([one for one in scored if one.fitted])
    others = courses([one for one in scored if not one.fitted])
    best, _ = fit(ours)
    rows, found = [], {}
    for name, limit in (("fitted", best), ("cases.py", NOW), ("no limit", UNLIMITED)):
        inside, outside = outcome(ours, limit), outcome(others, limit)
        values = " ".join(f"{value:.3g}" for value in limit) if limit != UNLIMITED else ""
        rows.append([name, values, f"{inside.gain:+.3f}", f"{inside.worse:.1%}",
                     f"{outside.gain:+.3f}", f"{outside.worse:.1%}"])  # fmt: skip
        found[name] = {"limit": limit._asdict(), "fitted": inside._asdict(),
                       "held_out": outside._asdict()}  # fmt: skip
    heads = ["limit", "strain exponent floor cap", "gain, fitted runs", "worse", "gain, held out",
             "worse"]  # fmt: skip
    print(common.table(heads, rows))
    return found


def tells(scored: Sequence[Scored]) -> dict[str, float]:
    """How well a number tells forecasts that hold from those that do not (at least as good as the
    newest checkpoint within its standard error): the chance that of one each it ranks them right,
    the area under the ROC curve. Held-out runs, full forecasts of steps that were trained."""
    judged = [o for o in scored if not o.fitted and o.skill is not None and o.p <= cases.CHANCE]
    good = np.array([one.gain >= -1.0 for one in judged])
    numbers = {
        "skill in weight space, with hindsight": [one.skill for one in judged],
        "room below the strain limit": [cases.strain_limit(o.ratio) / o.strain for o in judged],
    }
    found = {}
    for what, values in numbers.items():
        x = np.array(values, np.float64)
        pairs = x[good][:, None] - x[~good][None, :]
        found[what] = float(np.mean(pairs > 0.0) + 0.5 * np.mean(pairs == 0.0))
        print(f"{what}: ranks {found[what]:.1%} of pairs right ({len(judged)} forecasts)")
    return found


def verdicts(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Agreement, and what following the verdict brings."""
    rows = []
    for run in dict.fromkeys(one.run for one in decisions):
        ours = [one for one in decisions if one.run == run]
        counts = {d: sum(o.decision == d for o in ours) for d in {o.decision for o in ours}}
        said = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        rows.append([
            run, said, f"{sum(o.agrees for o in ours)}/{len(ours)}",
            f"{np.mean([o.plain - o.newest for o in ours]):+.3f}",
            f"{np.mean([o.auto - o.newest for o in ours]):+.3f}",
            f"{np.mean([(o.followed or o.newest) - o.newest for o in ours]):+.3f}",
        ])  # fmt: skip
    print(common.table(
        ["held-out run", "verdicts", "agree", "plain form", "strength auto", "followed"], rows
    ))  # fmt: skip
    collapsed = [one for one in decisions if one.collapsed]
    worst = min((one.auto - one.newest) / one.error for one in decisions)
    say = {
        "verdict agrees": share([one.agrees for one in decisions]),
        "plain form collapses": share([one.collapsed for one in decisions]),
        "auto holds there": share([one.auto_holds for one in collapsed]),
        "auto holds everywhere": share([one.auto_holds for one in decisions]),
        "worst auto, in standard errors": f"{worst:.1f}",
    }
    for what, value in say.items():
        print(f"{what}: {value}")
    return say


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("folder", metavar="RUNS", type=Path)
    parser.add_argument("--train", action="store_true", help="train the runs that are not there")
    parser.add_argument("--unseen", action="store_true", help="the verdict on verdict.runs.UNSEEN")
    parser.add_argument("--problems", type=int, default=4000)
    parser.add_argument("--csv", type=Path, help="a file for every scored forecast")
    args = parser.parse_args()
    regimes = UNSEEN if args.unseen else REGIMES
    if args.train:
        train(regimes, args.folder)
    missing = [r.name for r in regimes if not (args.folder / r.name / "record.json").is_file()]
    if missing:
        sys.exit(f"{args.folder}: expected {missing[0]} and all other runs; --train makes them")
    scored = grid_of(regimes, args.folder, args.problems)
    limits = {} if args.unseen else fitting(scored)
    ranked = {} if args.unseen else tells(scored)
    decisions: list[Decision] = []
    for regime in regimes:
        if not regime.fitted:
            decisions += decide(Run(regime, args.folder, args.problems), scored)
            common.say(f"{regime.name}: {len(decisions)} verdicts in all")
    summary = verdicts(decisions)
    if args.csv is not None:
        heads = list(asdict(scored[0]))
        lines = [",".join("" if v is None else f"{v:.6g}" if isinstance(v, float) else str(v)
                          for v in asdict(one).values()) for one in scored]  # fmt: skip
        args.csv.write_text("\n".join([",".join(heads), *lines]) + "\n")
    if args.json is not None:
        found = {"machine": common.machine(), "problems": args.problems, "forecasts": len(scored),
                 "limits": limits, "ranked": ranked, "summary": summary,
                 "decisions": [asdict(o) | {"agrees": o.agrees} for o in decisions]}  # fmt: skip
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
