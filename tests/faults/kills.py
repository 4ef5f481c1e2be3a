"""SIGKILL at every call, at any time, and while the next run takes up what was left; Ctrl-C."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from functools import partial

from faults.bench import Bench
from faults.shim import MOVES_BYTES, Call
from faults.tally import Tally

PROMPT = 1.0
"""Seconds within which Ctrl-C ends a command."""


def _cases(calls: list[Call]) -> Iterator[tuple[str, Call]]:
    for call in calls:
        for way in ("before", "after", "torn"):
            if way != "torn" or call.op in MOVES_BYTES:
                yield way, call


def kill(bench: Bench, every: int, seed: int) -> Tally:
    """Before, after and in the middle of calls."""
    tally = Tally("kill", bench.name, len(bench.calls))
    for way, call in list(_cases(bench.calls))[seed % every :: every]:
        bench.reset()
        ending = bench.perform(bench.at(call, way, signal.SIGKILL))
        tally.counts["not reached"] += ending.how != "killed"
        tally.add(f"{way} {call}", ending, bench.wrong(ending) or bench.wrong_again())
    return tally


def take_up(bench: Bench) -> Tally:
    """Before the output is published: of the checkpoints' tensors, the next run maps none in."""
    tally = Tally("take up", bench.name, len(bench.calls))
    if bench.io != "mmap":  # headers are read as tensors are then
        return tally
    bench.reset()
    publish = next(call for call in bench.calls if call.op in ("rename", "exchange"))
    ending = bench.perform(bench.at(publish, "before", signal.SIGKILL))
    followed = bench.follow()
    fresh, again = (sum(map(_reads_tensors, calls)) for calls in (bench.calls, followed))
    problem = f"{again} of {fresh} reads again" if again else None
    tally.add(f"before {publish}", ending, problem)
    return tally


def _reads_tensors(call: Call) -> bool:
    return call.path.startswith("in/run") and call.op == "populate"


def kill_twice(bench: Bench, every: int, seed: int) -> Tally:
    """Before a call, and then the run that goes on at a call of its own."""
    tally = Tally("kill twice", bench.name, len(bench.calls))
    chance = random.Random(seed)
    left = bench.place.folder / "left"
    for first in bench.calls[seed % every :: every]:
        bench.reset()
        bench.perform(bench.at(first, "before", signal.SIGKILL))
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(bench.place.work, left, symlinks=True)
        followed = bench.follow()
        if not followed:
            tally.counts["not reached"] += 1  # there is nothing to go on with
            continue
        for second in chance.sample(followed, min(2, len(followed))):
            bench.reset(left)
            ending = bench.perform(bench.at(second, "after", signal.SIGKILL))
            problem = bench.wrong(ending) or bench.wrong_again()
            tally.add(f"before {first}, then after {second}", ending, problem)
    return tally


def kill_at_random(bench: Bench, count: int, seed: int) -> Tally:
    """At random times, as often as chance has it before one command is left alone."""
    tally = Tally("kill at random", bench.name, len(bench.calls))
    chance = random.Random(seed)
    bench.reset()
    usual = bench.perform().seconds
    for case in range(count):
        bench.reset()
        delays: list[float] = []
        while not delays or chance.random() < 0.5:
            delays.append(chance.uniform(0.0, usual))
            ending = bench.perform(partial(bench.place.shim.kill_after, delays[-1]))
            problem = bench.wrong(ending)
            if problem or ending.how != "killed":
                break
        when = ", ".join(f"{1e3 * delay:.2f}" for delay in delays)
        tally.add(f"case {case}: after {when} ms", ending, problem or bench.wrong_again())
    return tally


def interrupt(bench: Bench, every: int, seed: int) -> Tally:
    """Ctrl-C before calls."""
    tally = Tally("Ctrl-C", bench.name, len(bench.calls))
    for call in bench.calls[seed % every :: every]:
        bench.reset()
        ending = bench.perform(bench.at(call, "before", signal.SIGINT))
        if ending.how == "returned" and all("KeyboardInterrupt" in said for said in ending.stray):
            tally.counts["unheard"] += 1  # Python drops what is raised in a destructor
            ending.stray.clear()
        problem = bench.wrong(ending)
        if ending.how == "refused":
            problem = problem or f"Ctrl-C became {ending.said}"
        if ending.seconds > PROMPT:
            problem = problem or f"took {ending.seconds:.1f} s"
        tally.add(f"at {call}", ending, problem or bench.wrong_again())
    return tally
