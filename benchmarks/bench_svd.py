"""The leading singular pair of one tensor's stacked deltas (fp32, in memory), and who finds it how
fast, in how much memory and how exactly.

Every measurement is a child of its own that makes the data, warms the method up on a small matrix
and then runs it once, or a few times if it is short. Memory is what the method adds to the data at
its peak. Peers get the matrix or its transpose, whichever they are faster on. The reference is eigh
of the Gram matrix in float64; ours must be within --tolerance of it, peers show their error.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common
from common import Child, Times

Deltas = NDArray[np.float32]
Pair = tuple[NDArray[np.float64], float]
GIB = 1 << 30
OURS = ("relex gram", "relex power")


def reference(deltas: Deltas) -> Pair:
    """By eigh of G in float64, block by block."""
    gram = np.zeros((len(deltas), len(deltas)))
    for c in range(0, deltas.shape[1], 1 << 18):
        block = deltas[:, c : c + (1 << 18)].astype(np.float64)
        gram += block @ block.T
    values, vectors = np.linalg.eigh(gram)
    return vectors[:, -1], float(np.sqrt(values[-1]))


def ours(solver: str) -> Callable[[Deltas], Pair]:
    def run(deltas: Deltas) -> Pair:
        import relex_ext

        found = relex_ext.rank1(deltas, solver=solver)
        return found.u, found.sigma

    return run


def torch_svd(deltas: Deltas) -> Pair:
    import torch

    _, sigma, uh = torch.linalg.svd(torch.from_numpy(deltas).T, full_matrices=False)
    return uh[0].double().numpy(), float(sigma[0])


def torch_lowrank(deltas: Deltas) -> Pair:
    import torch

    torch.manual_seed(0)
    u, sigma, _ = torch.svd_lowrank(torch.from_numpy(deltas), q=min(6, len(deltas)), niter=2)
    return u[:, 0].double().numpy(), float(sigma[0])


def numpy_svd(deltas: Deltas) -> Pair:
    _, sigma, uh = np.linalg.svd(deltas.T, full_matrices=False)
    return uh[0].astype(np.float64), float(sigma[0])


def scipy_svds(deltas: Deltas) -> Pair:
    from scipy.sparse.linalg import svds

    u, sigma, _ = svds(deltas, k=1, random_state=0)
    return u[:, 0].astype(np.float64), float(sigma[0])


def sklearn_randomized(deltas: Deltas) -> Pair:
    from sklearn.utils.extmath import randomized_svd

    _, sigma, uh = randomized_svd(deltas.T, n_components=1, random_state=0)
    return uh[0].astype(np.float64), float(sigma[0])


METHODS: dict[str, Callable[[Deltas], Pair]] = {
    "relex gram": ours("gram"),
    "relex power": ours("power"),
    "torch.linalg.svd": torch_svd,
    "torch.svd_lowrank": torch_lowrank,
    "numpy.linalg.svd": numpy_svd,
    "scipy svds": scipy_svds,
    "sklearn randomized_svd": sklearn_randomized,
    "reference": reference,
}


def status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def one(job: dict[str, Any]) -> None:
    """The child: prints seconds, bytes, u and σ as JSON."""
    method = METHODS[job["method"]]
    method(common.float32_run(8, 4096))
    deltas = common.float32_run(job["rows"], job["columns"], job["noise"])
    if job["memory"]:
        have = status("VmData")  # private and anonymous: what RLIMIT_DATA counts
        resource.setrlimit(resource.RLIMIT_DATA, (have + job["memory"],) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    before = status("VmRSS")
    start = time.perf_counter()
    u, sigma = method(deltas)
    seconds = time.perf_counter() - start
    peak = max(0, status("VmHWM") - before)
    more: list[float] = []
    while sum(more) < 0.2 and seconds < 0.1 and len(more) < 20:  # too short to be timed once
        start = time.perf_counter()
        method(deltas)
        more.append(time.perf_counter() - start)
    seconds = statistics.median([seconds, *more])
    print(json.dumps({"seconds": seconds, "peak": peak, "sigma": sigma, "u": u.tolist()}))


def child(job: dict[str, Any], limit: float | None) -> tuple[dict[str, Any] | None, Child]:
    """The child's answer, or None where it gave up. Making the data is no part of the limit."""
    done = common.child(common.python(__file__, "--one", json.dumps(job)), limit)
    return (json.loads(done.output) if done.code == 0 else None), done


def errors(found: dict[str, Any], expected: dict[str, Any]) -> tuple[float, float]:
    """|σ − σ_ref| / σ_ref and ‖u − u_ref‖, whichever sign of u is nearer."""
    u, u_ref = np.array(found["u"]), np.array(expected["u"])
    distance = min(np.linalg.norm(u - u_ref), np.linalg.norm(u + u_ref))
    return abs(found["sigma"] / expected["sigma"] - 1), float(distance)


def measure(args: argparse.Namespace, rows: int, columns: int) -> list[dict[str, Any]]:
    """All methods on one shape."""
    job = {"rows": rows, "columns": columns, "noise": args.noise, "memory": 0}
    expected, done = child({**job, "method": "reference"}, None)
    if expected is None:
        common.fail(f"reference, {rows} × {columns}: {done.reason}")
    job["memory"] = args.memory_limit
    making = done.wall - expected["seconds"]
    entries: dict[str, dict[str, Any]] = {}
    for turn in range(args.runs):
        for method in args.methods:
            entry = entries.setdefault(
                method, {"method": method, "rows": rows, "columns": columns, "runs": []}
            )
            if "gave_up" in entry:
                continue
            found, done = child({**job, "method": method}, args.time_limit + 2 * making + 10)
            if found is not None and found["seconds"] > args.time_limit:
                found, entry["gave_up"] = None, f"over {args.time_limit:g} s"
            if found is None:
                memory = "alloc" in done.reason.lower() or "memory" in done.reason.lower()
                late = done.reason.startswith("over ")
                entry.setdefault(
                    "gave_up",
                    "memory" if memory else f"over {args.time_limit:g} s" if late else done.reason,
                )
                common.say(f"{method}, {rows} × {columns}: gave up: {entry['gave_up']}")
                if method in OURS:
                    common.fail(f"{method}, {rows} × {columns}: {entry['gave_up']}")
                continue
            entry["sigma_error"], entry["u_error"] = errors(found, expected)
            entry["runs"].append((found["seconds"], found["peak"]))
            common.say(f"{turn}: {method}, {rows} × {columns}: {found['seconds']:.3f} s")
            worst = max(entry["sigma_error"], entry["u_error"])
            if method in OURS and worst > args.tolerance:
                common.fail(f"{method}, {rows} × {columns}: off by {worst:.1e}")
    return list(entries.values())


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=common.numbers, default="10,40,75,200", help="T")
    parser.add_argument("--columns", type=common.numbers, default="1e4,1e6,1e7", help="d")
    parser.add_argument("--noise", choices=("walk", "white"), default="walk", help="of the data")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of ours, in σ and u")
    parser.add_argument("--time-limit", type=float, default=120, help="seconds; then: gave up")
    parser.add_argument(
        "--memory-limit", type=common.number, default=0, help="bytes beyond the data; 0: no limit"
    )
    names = [name for name in METHODS if name != "reference"]
    parser.add_argument("--methods", type=common.words, default=",".join(names))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(json.loads(args.one))
        return
    table, results = [], []
    for rows in args.rows:
        for columns in args.columns:
            entries = measure(args, rows, columns)
            finished = [e for e in entries if e["method"] in OURS and "gave_up" not in e]
            best = min((Times(tuple(r[0] for r in e["runs"])).median for e in finished), default=0)
            for entry in entries:
                cells = [entry["method"], str(rows), f"{columns:.0e}"]
                results.append(entry)
                if "gave_up" in entry:
                    table.append([*cells, f"gave up: {entry['gave_up']}", "", "", "", "", ""])
                    continue
                seconds = Times(tuple(run[0] for run in entry["runs"]))
                peak = max(run[1] for run in entry.pop("runs"))
                rate = 4 * rows * columns / seconds.median / 1e9
                entry |= {"seconds": seconds.json(), "peak_bytes": peak, "gb_per_s": rate}
                table.append(
                    [*cells, seconds.text(".4f"), f"{rate:.2f}",
                     f"{seconds.median / best:.1f}×" if best else "–", f"{peak / GIB:.3f}",
                     f"{entry['sigma_error']:.0e}", f"{entry['u_error']:.0e}"]
                )  # fmt: skip
    heads = ["method", "T", "d", "seconds", "GB/s of deltas", "time / our best", "GiB added",
             "σ error", "u error"]  # fmt: skip
    common.report(args, heads, table, results)


if __name__ == "__main__":
    main()
