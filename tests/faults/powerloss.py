"""The power goes at any point of a command: then the same command makes the same output."""

from __future__ import annotations

import random
from collections.abc import Iterator

from faults.bench import Bench, content
from faults.model import IGNORED, Disk
from faults.tally import Tally
from faults.trees import Tree, read_tree, write_tree

CHANCES = 3
"""Random states of each kind at every point."""


def cut_power(bench: Bench, every: int, seed: int) -> Tally:
    """After every so many-th call that changes something or makes it durable."""
    bench.reset()
    root = bench.place.root
    disk = Disk({"work": None} if bench.history else read_tree(root))
    for entry in bench.history:
        disk.apply(entry)
    entries = [e for e in bench.record(data=True)[1] if e.op not in IGNORED]
    made = read_tree(root)
    tally = Tally("power loss", bench.name, len(entries))
    for i, entry in enumerate(entries):
        disk.apply(entry)
        last = i == len(entries) - 1
        if i % every != seed % every and not last:
            continue
        for name, tree in _states(disk, random.Random(f"{seed} {i}")):
            write_tree(root, tree)
            problem = bench.wrong_output()
            if last and content(bench.out) != bench.right:
                problem = problem or "lost after the command had returned"
            tally.cases += 1
            tally.judge(f"{name} after {i} {entry.op} {entry.path}", problem or bench.wrong_again())
    if disk.everything() != made:
        tally.judge("the record", "replayed, it is not what the folder holds")
    return tally


def _states(disk: Disk, chance: random.Random) -> Iterator[tuple[str, Tree]]:
    yield "all", disk.everything()
    yield "only what is durable", disk.durable()
    yield "names and zeros", disk.names_only(zeros=True)
    yield "names and cut files", disk.names_only(zeros=False)
    for i in range(CHANCES):
        yield f"first names, some blocks ({i})", disk.by_chance(chance, ordered=True)
        yield f"some names, some blocks ({i})", disk.by_chance(chance, ordered=False)
