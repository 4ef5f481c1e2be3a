"""Two processes against one, each with one thread, on the load of load.py.

Warm: the files are in the page cache, so that arithmetic bounds (write the load with --checkpoints
100). A job that fits into a second is run in the same rounds: what it takes is starting up, which
for torchrun is importing torch three times, and is taken off in the ratio. The limit is what the
machine gives to two: jobs of one process each, both at once, to folders of their own.

Cold (--cold, root only): the page cache is dropped before every run, and the limit is the best
plain reader of the same files, as in bench_cold.py.

Verified before anything is timed: all write the same bits.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bench_cold
import common
from load import write

ONE, TWO, BOTH = "one process", "two processes", "two jobs at once"
STARTED = ", started only"
GOAL = 1.6


def command(size: int, load: Path, out: Path, *options: object) -> list[str]:
    plain = common.relex("extrapolate", load, out, "--threads", 1, *options)
    if size == 1:
        return plain
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size)
    return common.python(*torchrun, *plain[1:])


def run(argv: Sequence[str]) -> float:
    done = common.child(argv)
    if done.code != 0:
        common.fail(f"{' '.join(argv[1:6])} …: {done.reason}")
    return done.wall


def at_once(commands: Sequence[Sequence[str]]) -> float:
    start = time.perf_counter()
    processes = [subprocess.Popen(argv) for argv in commands]
    if sum(process.wait() != 0 for process in processes):
        common.fail("one of two jobs at once failed")
    return time.perf_counter() - start


def tiny(folder: Path) -> Path:
    """Three checkpoints of nearly nothing."""
    for name, value in {"base": 0, "run/checkpoint-1": 1, "run/checkpoint-2": 2}.items():
        words = np.full(8, 0x3F80 + value, np.uint16)
        write(folder / name, {"w": (words, (8,))})
    return folder


def main() -> None:
    parser = common.parser(__doc__, load=True)
    parser.add_argument("--target", type=float, default=200, help="the step to forecast")
    parser.add_argument("--work", type=Path, help="a folder for outputs (beside the load)")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before every run")
    args = parser.parse_args()
    load = args.load.resolve()
    paths = common.shards(load)
    size = common.total_size(paths)
    with common.scratch_folder(args.work or load.parent) as work:
        small = tiny(work / "tiny")
        outs = [work / "a", work / "b"]

        def prepare() -> None:
            for out in outs:
                common.remove(out)
            if args.cold:
                common.drop_caches()

        def ours(processes: int, where: Path, label: str) -> float:
            prepare()
            seconds = run(command(processes, where, outs[0], "--target-step", args.target))
            common.say(f"{label}: {seconds:.2f} s")
            return seconds

        def both() -> float:
            prepare()
            target = ("--target-step", args.target)
            seconds = at_once([command(1, load, out, *target) for out in outs])
            common.say(f"{BOTH}: {seconds:.2f} s")
            return seconds

        def reading(threads: int) -> float:
            prepare()
            pieces = bench_cold.whole_files(paths)
            seconds, seen = bench_cold.read_all(bench_cold.read_plain, pieces, threads)
            if seen != size:
                common.fail(f"the reader saw {seen} bytes of {size}")
            return seconds

        common.warm(paths)
        digests = set()
        for processes in (1, 2):
            ours(processes, load, "verifying")
            digests.add(bench_cold.digest(outs[0]))
        if len(digests) != 1:
            common.fail("one process and two write different bits")
        cases: dict[str, Callable[[], float]] = {}
        for processes, label in ((1, ONE), (2, TWO)):
            cases[label] = partial(ours, processes, load, label)
            cases[label + STARTED] = partial(ours, processes, small, label + STARTED)
        if args.cold:
            cases |= {f"read(), {n} threads": partial(reading, n) for n in (1, 2, 4, 8)}
        else:
            cases[BOTH] = both
        times = common.interleaved(cases, args.runs)
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    for label, seconds in times.items():
        read = 0 if label.endswith(STARTED) else size * (2 if label == BOTH else 1)
        rate = seconds.rate(read / 1e9)
        rows.append([label, seconds.text(), rate.text() if read else ""])
        results[label] = {"seconds": seconds.json(), "gb_per_s": rate.json()}
    net = {x: times[x].median - times[x + STARTED].median for x in (ONE, TWO)}
    ratio = net[ONE] / net[TWO]
    notes = [f"{len(paths)} files, {size / 1e9:.2f} GB"]
    if args.cold:
        best = min(s.median for x, s in times.items() if x.startswith("read()"))
        notes.append(
            f"without starting up, two processes read at {best / net[TWO]:.0%} of the best "
            f"reader's rate, one at {best / net[ONE]:.0%}"
        )
    else:
        limit = 2 * net[ONE] / (times[BOTH].median - times[ONE + STARTED].median)
        notes.append(
            f"two processes are {ratio:.2f} × one without starting up, "
            f"{times[ONE].median / times[TWO].median:.2f} × with; "
            f"two jobs at once get {limit:.2f} × one's rate; goal {GOAL}: "
            f"{'met' if ratio >= GOAL else 'MISSED'}"
        )
        results["ratio"], results["limit"] = ratio, limit
    common.report(args, ["case", "seconds", "GB/s"], rows, results, notes)


if __name__ == "__main__":
    main()
