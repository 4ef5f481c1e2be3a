"""Everything on a GPU against what that GPU can do: kernels, the whole pipeline, dense SVD.

The device's own limits come first: a copy inside its memory (bytes read + written), reading alone
(the best of several reductions), pinned transfers, matrix products. Then every operation of every
backend that runs there, as the pipeline calls it, with its share of those; the pipeline from the
page cache to the published folder; and rank1 against torch.linalg.svd. Every result is verified
before it is timed. What fails, hangs or would take too long says so in its row, and the rest goes
on; a wrong result ends the script with 1, after the rest.
"""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import common
from gpu import report
from gpu.loads import Load
from gpu.worker import Worker, serve

TINY: dict[str, Any] = {
    "rows": [5], "bytes": 80_000, "limit": 240.0, "copy_bytes": 1 << 22, "transfer_bytes": 1 << 22,
    "product": 128, "checkpoints": 2, "scale": 0.05, "device_memory": ["48MiB"], "readers": [2],
    "svd_rows": [20], "svd_columns": 50_000, "runs": 1,
}  # fmt: skip
"""For --device cpu, which only shows that the script works."""


# ---- the command line --------------------------------------------------------------------------


def options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.set_defaults(runs=5)
    sections = ",".join(report.SECTIONS)
    parser.add_argument("--only", type=common.words, default=sections, help="sections")
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument("--limit", type=float, default=60, help="seconds for one kernel or method")
    parser.add_argument("--commit", help="of this tree, where there is no .git")
    parser.add_argument("--backends", type=common.words, default="cuda,triton")
    parser.add_argument("--rows", type=common.numbers, default="75,200,20,500", help="T")
    parser.add_argument("--dtypes", type=common.words, default="bf16,fp32")
    parser.add_argument("--bytes", type=common.number, default="8e9", help="of a tensor's strips")
    parser.add_argument("--copy-bytes", type=common.number, default="8e9", help="read by a copy")
    parser.add_argument("--transfer-bytes", type=common.number, default="2e9", help="pinned")
    parser.add_argument("--product", type=common.number, default=8192, help="n of n³")
    parser.add_argument("--load", type=Path, help="what load.py wrote; made now without it")
    parser.add_argument("--scratch", type=Path, help="a folder for load and outputs (with room)")
    parser.add_argument("--checkpoints", type=int, default=40, help="of the load made now")
    parser.add_argument("--scale", type=float, default=1.0, help="likewise")
    parser.add_argument("--device-memory", type=common.words, default="1GiB", help="that is short")
    parser.add_argument("--readers", type=common.numbers, default="8,16", help="threads")
    parser.add_argument("--svd-rows", type=common.numbers, default="75,200", help="T")
    parser.add_argument("--svd-columns", type=common.number, default="1e7", help="d")
    # To try the script out where there is no GPU.
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cpu":
        if args.json is not None:
            parser.error("--json: a processor's figures are not kept")
        parser.set_defaults(**TINY)
        args = parser.parse_args()
    if not set(args.only) <= set(report.SECTIONS):
        parser.error(f"--only: expected some of {', '.join(report.SECTIONS)}, found {args.only}")
    return args


def answer(kind: str, pipe: int) -> None:
    """The worker."""
    from gpu.kernels import kernels
    from gpu.limits import copy_again, describe, limits, stand_in
    from gpu.pipeline import pipeline
    from gpu.svd import svd

    if kind == "cpu":
        stand_in()
    do = (describe, limits, copy_again, kernels, pipeline, svd)
    serve({work.__name__: work for work in do}, kind, pipe)


def main() -> None:
    args = options()
    if args.serve is not None:
        answer(args.device, args.serve)
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # As relex itself: numpy's own threads would only get in the way of the kernels'.
    env = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if args.device == "cpu":
        env["TRITON_INTERPRET"] = "1"
    with ExitStack() as stack:
        worker = stack.enter_context(Worker(__file__, args.device, env))
        bench = report.Bench(args, worker)
        report.describe(bench)
        report.limits(bench)
        load = Load(args, stack) if "pipeline" in args.only else None  # is made from now on
        bench.section("kernels", report.kernels)
        bench.section("pipeline", report.pipeline, load)
        bench.section("svd", report.svd)
    if bench.wrong:
        common.fail("; ".join(bench.wrong))


if __name__ == "__main__":
    main()
