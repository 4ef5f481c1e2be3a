"""The simulation against the product: the same runs, predicted and timed.

The product's times are the recorded ones of the quiet machine (benchmarks/results), or taken now.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import common
import load as standard
from relex_ext.inputs import open_inputs
from relex_ext.sizes import parse_bytes
from simulate.jobs import Cluster, simulate
from simulate.machines import GB, FileSystem, Node, Rates
from simulate.models import Model

RECORDED = common.HERE / "results"


@dataclass(frozen=True, slots=True)
class Case:
    """One process on this machine. ``disk``: bytes a second, infinite where the page cache has
    everything."""

    io: str
    limit: str
    disk: float = math.inf

    @property
    def name(self) -> str:
        where = "warm" if math.isinf(self.disk) else f"cold at {self.disk / GB:.2f} GB/s"
        return f"{self.io}, {self.limit}, {where}"


def predicted(model: Model, rows: int, case: Case, rates: Rates, cores: int) -> float:
    """Wall seconds."""
    node = Node(cores, parse_bytes(case.limit), 33 * GB, 4 * GB)
    fs = FileSystem(
        "here", case.io, case.disk, 1 * GB, case.disk, 1 * GB, math.inf, 0.0, 5e-5, 1e6, 5e-3, True
    )
    return simulate(model, rows, Cluster(1, node, fs, rates)).seconds


def recorded() -> Iterator[tuple[Case, float]]:
    """What bench_memory.py and bench_cold.py measured, on the standard load."""
    memory = _results("memory")
    for name, found in memory.items():
        limit, io = name.split(", ")
        yield Case(io, limit), found["seconds"]["median"]
    cold = _results("cold")
    best = max(r["gb_per_s"]["median"] for name, r in cold.items() if "relex" not in name)
    for io in ("mmap", "pread"):
        yield Case(io, "4GiB", best * GB), cold[f"relex extrapolate, {io}"]["seconds"]["median"]


def standard_load() -> tuple[Model, int]:
    return Model("130M", standard.shapes(1.0)), 40


def measured(load: Path, limits: list[str], runs: int) -> Mapping[Case, common.Times]:
    """``relex extrapolate`` on a load that lies in the page cache."""
    common.warm(common.shards(load))
    with common.scratch_folder(load.parent) as work:

        def run(case: Case) -> float:
            common.remove(work / "out")
            options = ["--target-step", "1000", "--memory-limit", case.limit, "--io", case.io]
            done = common.child(common.relex("extrapolate", load, work / "out", *options))
            if done.code != 0:
                common.fail(f"{case.name}: {done.reason}")
            return done.wall

        cases = [Case(io, limit) for io in ("mmap", "pread") for limit in limits]
        times = common.interleaved({case.name: partial(run, case) for case in cases}, runs)
    return {case: times[case.name] for case in cases}


def load_model(load: Path) -> tuple[Model, int]:
    found = open_inputs(load / "base", load / "run")
    shapes = {tensor.name: tensor.shape for tensor in found.trained}
    return Model(load.name, shapes), len(found.steps)


def cores_here() -> int:
    return len(os.sched_getaffinity(0))


def _results(name: str) -> dict[str, dict[str, dict[str, float]]]:
    path = RECORDED / f"xeon-2core-{name}.json"
    found: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text())["results"]
    return found
