"""What bench_gpu.py asks its worker for, section by section, and the tables it prints."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import common
from common import Times
from gpu.loads import Load, medium, roomy
from gpu.svd import drivers, methods
from gpu.worker import Entry, Job, Outcome, Worker, reason

SECTIONS = ("limits", "kernels", "pipeline", "svd")
UNTIL = {"limits": 0.25, "kernels": 0.5, "pipeline": 0.8, "svd": 1.0}
"""The share of the budget that is gone after a section, unless it is the last."""

GIB = 1 << 30
NOTES = {
    "limits": "The best of all rounds is the limit; of the reads, the fastest way's.",
    "kernels": (
        "GB/s: the bytes of all strips (combine: and of its outputs), each counted once, over the "
        "time of a call, by CUDA events around at least five. Of copy: share of the copy's rate, "
        "which counts bytes read + written. Of read: share of the fastest reduction's. TFLOP/s: "
        "T² d useful flops; of product: their share of the matrix product in the same dtype. "
        "Goals: combine and power_step at least 90 % of copy, gram at least 80 % of it at T ≤ 200. "
        "Error: of gram and power_step against float64; of combine, whose bits are the CPU "
        "backend's, the share of outputs that are not the float64 sum's rounding."
    ),
    "pipeline": (
        "In this process, after a first run that loads CUDA and pins memory; outputs written and "
        "synced. GB/s: bytes brought from the shards, all passes, over wall clock. Goal: at least "
        "85 % of the pinned host-to-device rate."
    ),
    "svd": (
        "fp32 deltas on the device, a drift and a random walk; seconds until σ and u are on the "
        "host; errors against float64. Goal: torch.linalg.svd takes at least 100 × ours."
    ),
}


class Bench:
    """The worker, the clock, and what was found so far."""

    def __init__(self, args: argparse.Namespace, worker: Worker) -> None:
        self.args, self.worker = args, worker
        self.start = time.monotonic()
        self.device: Entry = {}
        self.results: dict[str, Any] = {}
        self.wrong: list[str] = []
        self.backends: list[str] = []
        self.limits: dict[str, float] = {}

    def left(self, section: str) -> float:
        """Seconds that this section may still take."""
        last = max((SECTIONS.index(name) for name in self.args.only), default=0)
        share = UNTIL[section] if SECTIONS.index(section) < last else 1.0
        return self.start + share * self.args.budget - time.monotonic()

    def ask(self, section: str, what: str, job: Job, limit: float) -> Outcome:
        left = self.left(section)
        if left < 5:
            return Outcome(failed="skipped: time")
        limit = min(limit, left)
        done = self.worker.run({"runs": self.args.runs, "limit": limit, **job}, limit)
        for text in [done.failed] * done.wrong + [
            entry["failed"] for entry in done.entries if entry.get("wrong")
        ]:
            self.wrong.append(f"{what}: {text}")
        common.say(f"{time.monotonic() - self.start:5.0f} s: {what}{done.failed and ': '}"
                   f"{done.failed}")  # fmt: skip
        return done

    def section(self, name: str, work: Callable[..., None], *given: Any) -> None:
        """If it is wanted; whatever goes wrong in it, the next one follows."""
        if name not in self.args.only:
            return
        try:
            work(self, *given)
        except Exception as error:
            self.results[name] = {"failed": reason(error)}
            self.show(name, ["case", "result"], [["all", lost(reason(error))]])

    def show(self, section: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a section, and keep all there is so far: nobody may be there to start it again."""
        print(f"\n## {section}\n\n{common.table(heads, rows)}\n\n{NOTES[section]}", flush=True)
        if self.args.json is not None:
            hidden = ("json", "load", "scratch", "commit", "serve")
            settings = {k: v for k, v in vars(self.args).items() if k not in hidden}
            kept = {
                "script": "bench_gpu.py", "machine": common.machine(),
                "gpu": self.device, "settings": settings, "notes": NOTES,
                "wrong": self.wrong, "results": self.results,
            }  # fmt: skip
            text = json.dumps(kept, indent=1, default=str, ensure_ascii=False)
            self.args.json.write_text(text + "\n")


def lost(why: str) -> str:
    """What a row without figures says."""
    return why if why.startswith("skipped") else f"failed: {why}"


def share(rate: float, limit: float | None) -> str:
    return f"{rate / limit:.0%}" if limit else "–"


# ---- the device and its limits -----------------------------------------------------------------


def commit() -> str:
    """Of this tree, where git can tell."""

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(common.HERE), *args], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe(bench: Bench) -> None:
    done = bench.ask("limits", "device", {"do": "describe"}, 120)
    if not done.entries:
        common.fail(f"the device cannot be used: {done.failed}")
    found = done.entries[0]
    found["commit"] = bench.args.commit or commit()
    bench.device = found
    bench.backends = [n for n, b in found["backends"].items() if "failed" not in b]
    if bench.args.device == "cpu":
        print("The processor stands in for a GPU: these are NOT a GPU's figures.")
    else:
        print(
            f"{found['name']}, {found['multiprocessors']} multiprocessors, "
            f"{found['memory_bytes'] / GIB:.0f} GiB, driver {found['driver']}, CUDA "
            f"{found['cuda_runtime']}, torch {found['torch']}"
        )
    print(f"{common.machine()}, commit {found['commit']}")
    for name, backend in found["backends"].items():
        print(f"backend {name}: {backend.get('name') or lost(backend['failed'])}", flush=True)


def limits(bench: Bench) -> None:
    args = bench.args
    job = {
        "do": "limits", "bytes": args.copy_bytes, "transfer_bytes": args.transfer_bytes,
        "product": args.product,
    }  # fmt: skip
    done = bench.ask("limits", "limits", job, 120)
    rows = []
    for entry in done.entries:
        rates = Times(tuple(entry["rates"]))
        kind = "read" if entry["case"].startswith("read") else entry["case"]
        bench.limits[kind] = max(bench.limits.get(kind, 0.0), *rates.values)
        rows.append([entry["case"], f"{rates.text('.1f')} {entry['unit']}"])
    if done.failed:
        rows.append(["the others", lost(done.failed)])
    bench.results["limits"] = {"cases": done.entries, "best": bench.limits, "failed": done.failed}
    bench.show("limits", ["limit", "median (min–max)"], rows)


# ---- kernels -----------------------------------------------------------------------------------


def kernel_jobs(bench: Bench) -> Iterator[Job]:
    args = bench.args
    for dtype in args.dtypes:
        for rows in args.rows:
            for backend in args.backends:
                job = {"backend": backend, "rows": rows, "dtype": dtype, "bytes": args.bytes}
                yield {"do": "kernels", **job}


def kernels(bench: Bench) -> None:
    table, kept, hung = [], [], set()
    for job in kernel_jobs(bench):
        backend, rows, dtype = job["backend"], job["rows"], job["dtype"]
        shape = {"backend": backend, "rows": rows, "dtype": dtype}
        if backend not in bench.backends:
            found = bench.device["backends"].get(backend, {"failed": "unknown"})
            done = Outcome(failed=found["failed"])
        elif backend in hung:
            done = Outcome(failed="skipped: it hung before")
        else:
            what = f"{backend}, T = {rows}, {dtype}"
            done = bench.ask("kernels", what, job, bench.args.limit)
            if done.hung and bench.left("kernels") > 5:
                hung.add(backend)
        if done.failed:
            done.entries.append({"case": "all" if not done.entries else "the others", **shape,
                                 "failed": done.failed})  # fmt: skip
        for entry in done.entries:
            table.append(kernel_row(bench, entry))
            kept.append(entry)
    if bench.limits.get("copy"):
        again = bench.ask("kernels", "copy again", {
            "do": "copy_again", "bytes": bench.args.copy_bytes}, 60)  # fmt: skip
        for entry in again.entries:
            rates = Times(tuple(entry["rates"]))
            kept.append(entry)
            table.append(["copy again", "", "", "", rates.text(".0f"),
                          share(rates.median, bench.limits["copy"]), "", "", "", ""])  # fmt: skip
    bench.results["kernels"] = kept
    heads = ["kernel", "backend", "T", "dtype", "GB/s", "of copy", "of read", "TFLOP/s",
             "of product", "error"]  # fmt: skip
    bench.show("kernels", heads, table)
    print(f"\n{missed(kept)}")


def missed(entries: Sequence[Entry]) -> str:
    """Which measured cases are below their goal."""
    goal = {id(e): 0.8 if e["case"] == "gram" else 0.9 for e in entries if e.get("of_copy")
            and (e["case"] != "gram" or e["rows"] <= 200)}  # fmt: skip
    below = [e for e in entries if id(e) in goal and e["of_copy"] < goal[id(e)]]
    names = [
        f"{e['case']} ({e['backend']}, T = {e['rows']}, {e['dtype']}): {e['of_copy']:.0%}"
        for e in below
    ]
    return f"Goals reached in {len(goal) - len(below)} of {len(goal)} cases." + (
        f" Not in {'; '.join(names)}." if names else ""
    )


def kernel_row(bench: Bench, entry: Entry) -> list[str]:
    where = [entry["case"], entry["backend"], str(entry["rows"]), entry["dtype"]]
    if "failed" in entry:
        return [*where, lost(entry["failed"]), *[""] * 5]
    seconds = Times(tuple(entry["seconds"]))
    rate = seconds.rate(entry["bytes"] / 1e9)
    entry["gb_per_s"] = rate.json()
    copy, read = bench.limits.get("copy"), bench.limits.get("read")
    entry["of_copy"] = rate.median / copy if copy else None
    cells = [rate.text(".0f"), share(rate.median, copy), share(rate.median, read)]
    if "flops" not in entry:
        return [*where, *cells, "", "", f"{entry['error']:.0e}"]
    flops = seconds.rate(entry["flops"] / 1e12)
    product = bench.limits.get(f"{entry['dtype']} product")
    entry["tflop_per_s"] = flops.json()
    cells += [f"{flops.median:.1f}", share(flops.median, product)]
    return [*where, *cells, f"{entry['error']:.0e}"]


# ---- the pipeline ------------------------------------------------------------------------------


def pipeline(bench: Bench, load: Load) -> None:
    args = bench.args
    load.wait(bench.left("pipeline") - 20)
    done = Outcome(failed=load.failed)
    if not load.failed:
        model = common.total_size(sorted((load.folder / "base").glob("*.safetensors")))
        with ExitStack() as stack:
            place = roomy(3 * model, args.scratch)
            work = stack.enter_context(common.scratch_folder(place))
            load.where += f", outputs on {medium(place)}"
            job = {
                "do": "pipeline", "load": str(load.folder), "work": str(work),
                "backends": bench.backends[:1], "device_memory": args.device_memory,
                "readers": args.readers,
            }  # fmt: skip
            done = bench.ask("pipeline", "pipeline", job, 300)
    bus = bench.limits.get("host to device")
    rows = []
    for entry in done.entries:
        if "failed" in entry:
            rows.append([entry["case"], lost(entry["failed"]), *[""] * 6])
            continue
        seconds = Times(tuple(entry["seconds"]))
        rate = seconds.rate(entry["bytes"] / 1e9)
        entry["gb_per_s"] = rate.json()
        rows.append(
            [entry["case"], seconds.text(".3f"), f"{entry['first']:.2f}", rate.text(".1f"),
             share(rate.median, bus), f"{entry['passes']:.2f}", entry["io"],
             "" if entry["agreement"] is None else f"{entry['agreement']:.4%}"]
        )  # fmt: skip
    if done.failed:
        rows.append(["the others" if rows else "all", lost(done.failed), *[""] * 6])
    bench.results["pipeline"] = {
        "load": load.where, "cases": done.entries, "failed": done.failed,
    }  # fmt: skip
    heads = ["case", "seconds", "first run", "GB/s", "of host to device", "passes", "io",
             "as the CPU"]  # fmt: skip
    bench.show("pipeline", heads, rows)
    print(f"\nThe load is on: {load.where}.")


# ---- dense and randomized SVD ------------------------------------------------------------------


def svd(bench: Bench) -> None:
    args = bench.args
    backends = ["cpu"] if args.device == "cpu" else bench.backends
    jobs = [(method, rows) for rows in args.svd_rows for method in methods(backends)]
    if args.device == "cuda":
        jobs += [(method, rows) for rows in args.svd_rows for method in drivers()]
    kept: list[Entry] = []
    for method, rows in jobs:
        shape = {"method": method, "rows": rows, "columns": args.svd_columns}
        job = {"do": "svd", **shape, "backends": backends}
        done = bench.ask("svd", f"{method}, T = {rows}", job, args.limit)
        kept += done.entries or [{**shape, "failed": done.failed}]
    kept.sort(key=lambda entry: args.svd_rows.index(entry["rows"]))
    table = []
    for entry in kept:
        mates = [e for e in kept if e["rows"] == entry["rows"] and "seconds" in e]
        ours = [Times(tuple(e["seconds"])).median for e in mates if e["method"][:5] == "relex"]
        cells = [entry["method"], str(entry["rows"]), f"{entry['columns']:.0e}"]
        if "failed" in entry:
            table.append([*cells, lost(entry["failed"]), *[""] * 4])
            continue
        seconds = Times(tuple(entry["seconds"]))
        entry["times_ours"] = seconds.median / min(ours) if ours else None
        table.append(
            [*cells, seconds.text(".5f"),
             f"{entry['times_ours']:.1f}×" if ours else "–", f"{entry['peak_bytes'] / GIB:.3f}",
             f"{entry['sigma_error']:.0e}", f"{entry['u_error']:.0e}"]
        )  # fmt: skip
    bench.results["svd"] = kept
    heads = ["method", "T", "d", "seconds", "time / our best", "GiB added", "σ error", "u error"]
    bench.show("svd", heads, table)
