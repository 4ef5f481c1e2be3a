"""Disturb the package in every way there is, and say what came of it.

    python -m faults                     every harness, every scenario, every call: an hour
    python -m faults inject kill         these harnesses
    python -m faults --scenario resume --io pread --every 10 --seed 3

Prints a line for each case that ended as it must not (then the exit code is 1), and a table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from faults.shim import build, preload

if TYPE_CHECKING:
    from faults.bench import Bench

HARNESSES = (
    "inject", "kill", "take-up", "kill-twice", "kill-at-random", "interrupt", "power-loss",
)  # fmt: skip

LOADED = "RELEX_FAULTS_FOLDER"
"""Set in the process that has the library."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m faults", description=__doc__.splitlines()[0],
    )  # fmt: skip
    parser.add_argument("harness", nargs="*", choices=[[], *HARNESSES])
    parser.add_argument("--scenario", action="append", help="only these; all by default")
    parser.add_argument("--io", choices=("mmap", "pread"), help="only this; both by default")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th case")
    parser.add_argument("--count", type=int, default=100, help="random kills of each scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; a memory file system is fast")
    parser.add_argument("--rows", type=Path, help="a file for the table as JSON")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if LOADED not in os.environ:
        return _begin(options.folder)
    return _go_on(options, Path(os.environ[LOADED]))


def _begin(parent: Path | None) -> int:
    """Run this command again with the library loaded, in a folder of its own."""
    import subprocess

    memory = Path("/dev/shm")
    if parent is None and os.access(memory, os.W_OK):
        parent = memory
    with tempfile.TemporaryDirectory(prefix="relex-faults-", dir=parent) as folder:
        one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL")}
        loaded = {**preload(build(Path(folder))), LOADED: folder}
        environment = {**os.environ, **one_thread, **loaded}
        command = [sys.executable, "-m", "faults", *sys.argv[1:]]
        return subprocess.run(command, env=environment).returncode


def _go_on(options: argparse.Namespace, folder: Path) -> int:
    from faults import inject, kills, powerloss
    from faults.bench import Bench
    from faults.place import Place
    from faults.scenarios import BENCHES
    from faults.tally import Tally, table

    every, seed = options.every, options.seed
    harnesses: dict[str, Callable[[Bench], Tally]] = {
        "inject": lambda bench: inject.inject(bench, every, seed),
        "kill": lambda bench: kills.kill(bench, every, seed),
        "take-up": kills.take_up,
        "kill-twice": lambda bench: kills.kill_twice(bench, every, seed),
        "kill-at-random": lambda bench: kills.kill_at_random(bench, options.count, seed),
        "interrupt": lambda bench: kills.interrupt(bench, every, seed),
        "power-loss": lambda bench: powerloss.cut_power(bench, every, seed),
    }
    place = Place(folder)
    gc.collect()
    gc.freeze()
    tallies = []
    for scenario, io in BENCHES:
        if options.io not in (None, io) or scenario.name not in (
            options.scenario or [scenario.name]
        ):
            continue
        bench = Bench(place, scenario, io)
        for name in options.harness or HARNESSES:
            before = bench.states
            tally = harnesses[name](bench)
            tally.states = bench.states - before
            print(*tally.failures, str(tally), sep="\n", flush=True)
            tallies.append(tally)
    place.check_inputs()
    rows = [tally.row() for tally in tallies]
    print(table(rows))
    if options.rows:
        options.rows.write_text(json.dumps(rows, indent=1))
    return int(any(tally.failures for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
