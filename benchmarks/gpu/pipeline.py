"""The whole pipeline, from shards in the page cache to the published folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import common
from gpu.worker import Device, Entry, Job, Wrong, reason

AGREE = 0.9999
"""Share of 16-bit outputs that are the same on the GPU as on the processor."""

TARGET = 60
CHUNK = 16 << 20


class Case:
    """One way through the pipeline. Called once untimed, then by common.interleaved."""

    def __init__(self, work: Callable[[Path], Any], out: Path) -> None:
        self._work = work
        self.out = out
        self.bytes = 0
        self.plan: Any = None
        self.same: float | None = None

    def __call__(self) -> float:
        common.remove(self.out)
        start = time.perf_counter()
        done = self._work(self.out)
        seconds = time.perf_counter() - start
        self.plan = getattr(done, "plan", None)
        if self.plan is not None:
            self.bytes = self.plan.bytes_read
        return seconds


def pipeline(device: Device, job: Job) -> Iterator[Entry]:
    """Bytes brought in per second of wall clock, in this process: torch and CUDA are loaded, and
    memory has been pinned, before the timed runs; the first run is kept apart."""
    import relex_ext

    start = time.monotonic()
    load, work = Path(job["load"]), Path(job["work"])
    paths = common.shards(load)
    size = common.total_size(paths)
    common.warm(paths)
    extrapolate = partial(
        relex_ext.extrapolate, load / "base", load / "run", TARGET, progress=False
    )
    scan = partial(relex_ext.scan, load / "base", load / "run", progress=False)
    backends = job["backends"]
    known: dict[str, Callable[[Path], Any]] = {
        "extrapolate, cpu": lambda out: extrapolate(out, backend="cpu")
    }
    for name in backends:
        known[f"extrapolate, {name}"] = partial(into, extrapolate, backend=name)
        for memory in job["device_memory"]:
            limited = partial(into, extrapolate, backend=name, device_memory=memory)
            known[f"extrapolate, {name}, device memory {memory}"] = limited
        known[f"scan, {name}"] = partial(without, scan, backend=name)
    for threads in job["readers"]:
        known[f"read() into pinned memory × {threads}"] = partial(plain, device, paths, threads)
    cases: dict[str, Case] = {}
    first: dict[str, float] = {}
    model = Path(f"step_{TARGET}") / "model.safetensors"
    for i, (name, run) in enumerate(known.items()):
        if time.monotonic() - start > job["limit"] / 2:
            yield {"case": name, "failed": "skipped: time"}
            continue
        case = Case(run, work / f"out{i}")
        case.bytes = size
        try:
            first[name] = case()
            reference = work / "out0" / model
            if i and name.startswith("extrapolate") and reference.exists():
                case.same = common.agreement(case.out / model, reference)
                if case.same < AGREE:
                    raise Wrong(f"{name}: {case.same:.4%} of the outputs are the processor's")
            cases[name] = case
        except (Exception, SystemExit) as error:
            wrong = isinstance(error, (Wrong, SystemExit))
            yield {"case": name, "failed": reason(error), "wrong": wrong}
            device.wait()
        if i:
            common.remove(case.out)
    left = 0.9 * job["limit"] - (time.monotonic() - start)
    rounds = min(job["runs"], int(left / sum(first[name] for name in cases))) if cases else 0
    found = common.interleaved(cases, rounds)
    for name, case in cases.items():
        seconds = found[name].values or (first[name],)
        yield {
            "case": name, "seconds": seconds, "first": first[name], "bytes": case.bytes,
            "passes": getattr(case.plan, "passes", 1.0), "io": getattr(case.plan, "io", ""),
            "agreement": case.same,
        }  # fmt: skip


def into(extrapolate: Callable[..., Any], out: Path, **options: Any) -> Any:
    return extrapolate(out, **options)


def without(scan: Callable[..., Any], out: Path, **options: Any) -> Any:
    """Kept in memory: nothing is written."""
    return scan(**options)


def plain(device: Device, paths: list[Path], threads: int, out: Path) -> None:
    """What reading alone takes: each thread reads files into a pinned buffer of its own."""
    buffers = [device.pinned(CHUNK).numpy().data for _ in range(threads)]

    def read(number: int) -> None:
        for path in paths[number::threads]:
            file = os.open(path, os.O_RDONLY)
            try:
                while os.readv(file, [buffers[number]]):
                    pass
            finally:
                os.close(file)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))
