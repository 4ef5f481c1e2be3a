"""Counts of what happened in a harness's cases, and the table of them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from faults.children import Ending

COLUMNS = (
    "returned", "refused", "interrupted", "unheard", "killed", "not reached", "wrong",
)  # fmt: skip


@dataclass
class Tally:
    """Of one harness over one bench. ``calls``: places where it could have been disturbed;
    ``states``: what cases have left, one as good as another with the same bytes."""

    harness: str
    bench: str
    calls: int
    cases: int = 0
    states: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def add(self, case: str, ending: Ending, problem: str | None) -> None:
        self.cases += 1
        self.counts[ending.how] += 1
        if ending.how != "killed":
            self.slowest = max(self.slowest, ending.seconds)
        self.judge(case, problem)

    def judge(self, case: str, problem: str | None) -> None:
        self.seconds = time.perf_counter() - self.began
        if problem is not None:
            self.counts["wrong"] += 1
            self.failures.append(f"{self.harness} {self.bench}: {case}: {problem}")

    def __str__(self) -> str:
        wrong = len(self.failures)
        return (
            f"{self.harness} {self.bench}: {self.cases} cases, {wrong} wrong, {self.seconds:.0f} s"
        )

    def row(self) -> dict[str, object]:
        counts = {name: self.counts[name] for name in COLUMNS}
        return {
            "harness": self.harness,
            "bench": self.bench,
            "calls": self.calls,
            "cases": self.cases,
            "states": self.states,
            **counts,
            "slowest": round(self.slowest, 2),
            "seconds": round(self.seconds, 1),
        }


def table(rows: list[dict[str, object]]) -> str:
    names = list(rows[0])
    lines = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" if i < 2 else f"{cell:>{w}}" for i, (cell, w) in enumerate(cells))
        for cells in (zip(line, widths, strict=True) for line in lines)
    )
