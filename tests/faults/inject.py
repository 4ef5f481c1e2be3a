"""Every call of a command fails, is cut short or interrupted, or finds the disk full."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from faults.bench import Bench
from faults.shim import MOVES_BYTES, Call
from faults.tally import Tally

FAULTS = {
    "short": ("short", 0),
    "EINTR": ("fail", errno.EINTR),
    "EIO": ("fail", errno.EIO),
    "ENOSPC": ("fail", errno.ENOSPC),
    "full": ("full", 0),
}
"""Name → the way and its errno. ``full``: nothing is written or made from there on."""


REMOVES = frozenset({"rmdir", "unlink"})
"""What cannot be removed stays."""


def cases(calls: list[Call]) -> Iterator[tuple[str, Call]]:
    for call in calls:
        for fault in FAULTS:
            if fault != "short" or call.op in MOVES_BYTES:
                yield fault, call


def inject(bench: Bench, every: int, seed: int) -> Tally:
    """Every so many-th case, from one that the seed says."""
    tally = Tally("inject", bench.name, len(bench.calls))
    for fault, call in list(cases(bench.calls))[seed % every :: every]:
        bench.reset()
        ending = bench.perform(bench.at(call, *FAULTS[fault]))
        if ending.last is not None and ending.last.fired == 0:
            tally.counts["not reached"] += 1
        kept = call.op in REMOVES
        problem = bench.wrong(ending, kept) or bench.wrong_again(kept)
        tally.add(f"{fault} at {call}", ending, problem)
    return tally
