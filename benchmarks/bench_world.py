"""Two processes against one, each with one thread, on the load of load.py: by torchrun, and as two
tasks of a job array.

Warm: the files are in the page cache, so that arithmetic bounds (write the load with --checkpoints
100). A job that fits into a second is run in the same rounds: what it takes is starting up, which
for torchrun is importing torch three times; ratios are given with it and without. The limit is what
the machine gives to two: jobs of one process each, both at once, to folders of their own.

Cold (--cold, root only): the page cache is dropped before every run, and the limit is the best
plain reader of the same files, as in bench_cold.py.

Verified before anything is timed: all write the same bits.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bench_cold
import common
from load import write

ONE, TWO, TASKS, BOTH = "one process", "two processes", "two tasks", "two jobs at once"
STARTED = ", started only"
GOAL = 1.6


def commands(case: str, load: Path, outs: Sequence[Path], target: float) -> list[list[str]]:
    """What is started at once."""
    both = [
        common.relex("extrapolate", load, out, "--threads", 1, "--target-step", target)
        for out in outs
    ]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    tasks = [[*both[0], "--world-rank", rank, "--world-size", "2"] for rank in ("0", "1")]
    return {
        ONE: both[:1],
        TWO: [common.python(*torchrun, *both[0][1:])],
        TASKS: tasks,
        BOTH: both,
    }[case]


def at_once(commands: Sequence[Sequence[str]]) -> float:
    start = time.perf_counter()
    processes = [subprocess.Popen(argv) for argv in commands]
    if sum(process.wait() != 0 for process in processes):
        common.fail(f"{' '.join(commands[0][1:6])} …: failed")
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

        def ours(case: str, where: Path, label: str) -> float:
            prepare()
            seconds = at_once(commands(case, where, outs, args.target))
            common.say(f"{label}: {seconds:.2f} s")
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
        for case in (ONE, TWO, TASKS):
            ours(case, load, "verifying")
            digests.add(bench_cold.digest(outs[0]))
        if len(digests) != 1:
            common.fail("one process and two write different bits")
        cases: dict[str, Callable[[], float]] = {}
        for case in (ONE, TWO, TASKS):
            cases[case] = partial(ours, case, load, case)
            cases[case + STARTED] = partial(ours, case, small, case + STARTED)
        if args.cold:
            cases |= {f"read(), {n} threads": partial(reading, n) for n in (1, 2, 4, 8)}
        else:
            cases[BOTH] = partial(ours, BOTH, load, BOTH)
        times = common.interleaved(cases, args.runs)
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    for label, seconds in times.items():
        read = 0 if label.endswith(STARTED) else size * (2 if label == BOTH else 1)
        rate = seconds.rate(read / 1e9)
        rows.append([label, seconds.text(), rate.text() if read else ""])
        results[label] = {"seconds": seconds.json(), "gb_per_s": rate.json()}
    notes = [f"{len(paths)} files, {size / 1e9:.2f} GB", *said(times)]
    common.report(args, ["case", "seconds", "GB/s"], rows, results, notes)


def said(times: Mapping[str, common.Times]) -> list[str]:
    """The ratios, with starting up and without."""
    whole = {case: times[case].median for case in (ONE, TWO, TASKS)}
    net = {case: whole[case] - times[case + STARTED].median for case in whole}
    readers = [seconds.median for case, seconds in times.items() if case.startswith("read()")]
    if readers:
        best = min(readers)
        return [
            f"{case}: {best / whole[case]:.0%} of the best reader's rate, {best / net[case]:.0%} "
            "without starting up"
            for case in whole
        ]
    limit = 2 * net[ONE] / (times[BOTH].median - times[ONE + STARTED].median)
    return [
        *(
            f"{case}: {whole[ONE] / whole[case]:.2f} × one, {net[ONE] / net[case]:.2f} × without "
            f"starting up; goal {GOAL}"
            for case in (TWO, TASKS)
        ),
        f"{BOTH}: {limit:.2f} × one's rate, without starting up",
    ]


if __name__ == "__main__":
    main()
