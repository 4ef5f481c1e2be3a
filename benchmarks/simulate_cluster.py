"""How 8B × 100, 70B × 100 and 700B × 200 would run on 1 to 64 nodes: a simulation.

Event by event, from this machine's measured rates and stated limits of nodes and file systems
(simulate/machines.py), with the product's own plans. docs/scaling.md says what it is worth.

    python benchmarks/simulate_cluster.py                      # the tables of docs/scaling.md
    python benchmarks/simulate_cluster.py --calibrate FILE     # measure this machine's rates
    python benchmarks/simulate_cluster.py --validate [LOAD]    # predicted against timed
    python benchmarks/simulate_cluster.py --passes             # what memory saves a second reading
    python benchmarks/simulate_cluster.py --death 60           # a rank dies, the job is run again
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import common
from relex_ext.sizes import human, parse_bytes
from simulate import validate
from simulate.calibrate import calibrate
from simulate.figure import draw
from simulate.jobs import CHUNKS, Cluster, Outcome, resumed, simulate
from simulate.machines import FILE_SYSTEMS, NODE, Rates
from simulate.models import models
from simulate.workload import loads

RUNS = {"8B": 100, "70B": 100, "700B": 200}
"""Model → checkpoints."""

Case = tuple[str, str, Cluster]
"""A model, the key of a file system, and the cluster on it."""

ROWS = [40, 100, 200]
"""T to calibrate at."""


def main() -> None:
    args = _arguments()
    if args.calibrate is not None:
        rates = calibrate(ROWS, args.calibrate.absolute().parent)
        kept = {"machine": common.machine(), "results": rates.record()}
        args.calibrate.write_text(json.dumps(kept, indent=1) + "\n")
        return
    rates = Rates.load(args.rates or validate.RECORDED / "xeon-2core-rates.json")
    if args.validate is not None:
        _validate(args, rates)
    elif args.passes:
        _passes(args, rates)
    elif args.death is not None:
        _death(args, rates)
    else:
        _grid(args, rates)


def _arguments() -> Any:
    parser = common.parser(__doc__)
    parser.add_argument("--rates", type=Path, help="what --calibrate wrote (the recorded ones)")
    parser.add_argument("--calibrate", type=Path, help="a file for this machine's rates (15 s)")
    parser.add_argument(
        "--validate", nargs="?", const="", help="against recorded times, or on this load's folder"
    )
    parser.add_argument("--passes", action="store_true", help="disk passes by memory limit, only")
    parser.add_argument("--limits", type=common.words, help="memory limits of the two before")
    parser.add_argument("--models", type=common.words, default=",".join(RUNS))
    parser.add_argument("--nodes", type=common.numbers, default="1,2,4,8,16,32,64")
    parser.add_argument("--processes", type=common.numbers, default="1", help="of each node")
    parser.add_argument(
        "--systems", type=common.words, default=",".join(FILE_SYSTEMS), help="file systems"
    )
    parser.add_argument("--memory-limit", default=human(NODE.memory_limit), help="of a node")
    parser.add_argument("--spread", type=float, default=0.0, help="σ of ln of the ranks' paces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--death", type=float, help="seconds of streaming until a rank dies")
    parser.add_argument("--figure", type=Path, help="an SVG of time against nodes")
    return parser.parse_args()


def _grid(args: Any, rates: Rates) -> None:
    rows, results = [], []
    found: dict[tuple[str, str, int], Outcome] = {}
    cases = list(_clusters(args, rates))
    with ProcessPoolExecutor(validate.cores_here()) as pool:
        outcomes = pool.map(partial(_simulated, args), cases)
        for (name, system, cluster), done in zip(cases, outcomes, strict=True):
            run, label = f"{name} × {RUNS[name]}", cluster.fs.name + _several(cluster)
            found[run, label, cluster.nodes] = done
            one = found.get((run, label, 1))
            share = "" if one is None else f"{one.seconds / done.seconds / cluster.nodes:.0%}"
            rows.append([
                run, str(cluster.nodes), label, f"{done.passes:.2f}", _time(done.seconds),
                done.bound, share, human(done.read / cluster.nodes), human(done.peak),
            ])  # fmt: skip
            results.append({
                "model": name, "checkpoints": RUNS[name], "nodes": cluster.nodes,
                "processes": cluster.processes, "file_system": system, **asdict(done),
            })  # fmt: skip
            common.say(" ".join(rows[-1]))
    heads = [
        "run", "nodes", "file system", "passes", "time", "bound by", "efficiency",
        "read by a node", "peak memory of a node",
    ]  # fmt: skip
    common.report(args, heads, rows, results)
    if args.figure is not None:
        draw(found, args.figure)


def _passes(args: Any, rates: Rates) -> None:
    limits = args.limits or ["16GiB", "64GiB", "128GiB", "256GiB", "512GiB"]
    rows, results = [], []
    for name, system, cluster in _clusters(args, rates):
        model, count, passes = models()[name], RUNS[name], []
        for limit in limits:
            limited = replace(cluster, node=replace(cluster.node, memory_limit=parse_bytes(limit)))
            process = limited.process
            items = [
                item
                for load in loads(model, count, cluster.ranks, *process, rates, CHUNKS)
                for item in load.items
            ]
            read = sum(item.bytes_read for item in items)
            passes.append(read / sum(item.nbytes for item in items))
        rows.append([f"{name} × {count}", str(cluster.nodes), *(f"{p:.2f}" for p in passes)])
        results.append({
            "model": name, "checkpoints": count, "nodes": cluster.nodes, "file_system": system,
            "passes": dict(zip(limits, passes, strict=True)),
        })  # fmt: skip
    common.report(args, ["run", "nodes", *limits], rows, results)


def _simulated(args: Any, case: Case) -> Outcome:
    name, _, cluster = case
    return simulate(models()[name], RUNS[name], cluster, _paces(args, cluster))


def _death(args: Any, rates: Rates) -> None:
    rows, results = [], []
    for name, system, cluster in _clusters(args, rates):
        model, count, paces = models()[name], RUNS[name], _paces(args, cluster)
        whole = simulate(model, count, cluster, paces)
        broken, first, second = resumed(model, count, cluster, args.death, paces)
        rows.append([
            f"{name} × {count}", str(cluster.nodes), cluster.fs.name, _time(whole.seconds),
            _time(broken.seconds), f"{broken.read / whole.read - 1:+.1%}",
        ])  # fmt: skip
        results.append({
            "model": name, "nodes": cluster.nodes, "file_system": system,
            "undisturbed": asdict(whole), "resumed": asdict(broken),
            "finished_before": len(first.finished), "finished_after": len(second.finished),
        })  # fmt: skip
    heads = ["run", "nodes", "file system", "undisturbed", "with a death", "read more"]
    common.report(args, heads, rows, results)


def _validate(args: Any, rates: Rates) -> None:
    cores = validate.cores_here()
    if args.validate:
        load = Path(args.validate).resolve()
        model, count = validate.load_model(load)
        timed = validate.measured(load, args.limits or ["256MiB", "1GiB"], args.runs).items()
        pairs = [(case, times.median) for case, times in timed]
    else:
        (model, count), pairs = validate.standard_load(), list(validate.recorded())
    rows, results = [], []
    for case, seconds in pairs:
        guess = validate.predicted(model, count, case, rates, cores)
        rows.append([case.name, f"{seconds:.2f}", f"{guess:.2f}", f"{guess / seconds - 1:+.0%}"])
        results.append({"case": case.name, "seconds": seconds, "predicted": guess})
    heads = ["one process", "timed s", "predicted s", "off by"]
    common.report(args, heads, rows, results)


def _clusters(args: Any, rates: Rates) -> Iterator[Case]:
    node = replace(NODE, memory_limit=parse_bytes(args.memory_limit))
    for name in args.models:
        for system in args.systems:
            for processes in args.processes:
                for nodes in args.nodes:
                    yield name, system, Cluster(nodes, node, FILE_SYSTEMS[system], rates, processes)


def _paces(args: Any, cluster: Cluster) -> list[float]:
    rng = np.random.default_rng(args.seed)
    return np.exp(-np.abs(rng.normal(0.0, args.spread, cluster.ranks))).tolist()


def _several(cluster: Cluster) -> str:
    return "" if cluster.processes == 1 else f", {cluster.processes} processes a node"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
