"""What the benchmarks share: children and their memory, interleaved runs, tables, test data."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from load import DRIFT, NOISE, to_bf16

HERE = Path(__file__).resolve().parent

# A child's ru_maxrss starts at the memory of the process it was forked from; so a process without
# numpy forks it. Its clock runs from before the fork to after the child's end.
_STUB = """
import os, resource, sys, time
memory = int(sys.argv[2])
if memory:
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[3], sys.argv[3:], os.environ)
_, status, usage = os.wait4(pid, 0)
wall = time.perf_counter() - start
code = os.waitstatus_to_exitcode(status)
os.write(int(sys.argv[1]), f"{wall} {usage.ru_maxrss} {usage.ru_oublock} {code}".encode())
"""


# ---- the command line ------------------------------------------------------------------------


def number(text: str) -> int:
    """``"1e6"`` → 1000000."""
    return int(float(text))


def numbers(text: str) -> list[int]:
    """``"75,1e6"`` → [75, 1000000]."""
    return [number(part) for part in text.split(",")]


def words(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def parser(description: str | None, load: bool = False) -> argparse.ArgumentParser:
    """Every script's own: ``--runs``, ``--json`` and, with ``load``, the folder of load.py."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    if load:
        made.add_argument("load", type=Path, help="the folder that load.py wrote")
    made.add_argument("--runs", type=int, default=3, help="rounds; each round runs every case once")
    made.add_argument("--json", type=Path, help="a file for the results")
    return made


def fail(message: str) -> NoReturn:
    """A result that does not agree: nothing is worth timing."""
    sys.exit(f"{Path(sys.argv[0]).name}: FAILED: {message}")


# ---- timing ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Times:
    """What one case took over all rounds, in seconds (or any other unit)."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, form: str = ".2f") -> str:
        low, high = min(self.values), max(self.values)
        return f"{self.median:{form}} ({low:{form}}–{high:{form}})"

    def rate(self, amount: float) -> Times:
        """``amount`` per unit, of every run."""
        return Times(tuple(amount / value for value in self.values))

    def json(self) -> dict[str, float]:
        return {"median": self.median, "min": min(self.values), "max": max(self.values)}


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """A case for :func:`interleaved`: the seconds ``work`` takes."""

    def case() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return case


def interleaved(
    cases: Mapping[str, Callable[[], float]], runs: int, fewer: Mapping[str, int] | None = None
) -> dict[str, Times]:
    """A B C A B C …: what each case returns, so that a slow minute of the machine hits them all.
    ``fewer``: cases that take part in the first rounds only."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(runs):
        for name, case in cases.items():
            if turn < (fewer or {}).get(name, runs):
                found[name].append(case())
    return {name: Times(tuple(values)) for name, values in found.items()}


# ---- children --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Child:
    """A process that ended. ``peak``: its resident bytes at most, mapped file pages included;
    ``wrote``: bytes it gave the file systems to write."""

    code: int
    wall: float
    peak: int
    wrote: int
    output: str
    error: str

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        lines = self.error.strip().splitlines()
        if lines:
            return lines[-1][:120]
        return "killed" if self.code == -signal.SIGKILL else f"exit status {self.code}"


def python(*args: object) -> list[str]:
    return [sys.executable, *map(str, args)]


def child(
    argv: Sequence[str],
    limit: float | None = None,
    env: Mapping[str, str] | None = None,
    memory: int = 0,
) -> Child:
    """Run a process to its end, or for ``limit`` seconds, in ``memory`` bytes of its own (0: any
    number)."""
    ours, theirs = os.pipe()
    stub = [sys.executable, "-S", "-E", "-c", _STUB, str(theirs), str(memory), *argv]
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, **(env or {})}
    with subprocess.Popen(
        stub, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables,
        pass_fds=[theirs], start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            output, error = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            os.close(ours)
            return Child(-signal.SIGKILL, float(limit or 0), 0, 0, "", f"over {limit:g} s")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    with os.fdopen(ours) as pipe:
        wall, peak, blocks, code = pipe.read().split()
    return Child(int(code), float(wall), int(peak) * 1024, int(blocks) * 512, output, error)


def relex(verb: str, load: Path, out: Path, *options: object) -> list[str]:
    """The command line of ``relex`` on a generated load."""
    places = ["--base", load / "base", "--checkpoints", load / "run", "--out", out]
    return python("-m", "relex_ext", verb, *places, "--quiet", *options)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---- files -----------------------------------------------------------------------------------


def shards(load: Path) -> list[Path]:
    """Every safetensors file of the base and the run."""
    return sorted((load / "base").glob("*.safetensors")) + sorted(
        (load / "run").glob("*/*.safetensors")
    )


def total_size(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def warm(paths: Sequence[Path]) -> None:
    """Read files into the page cache."""
    buffer = bytearray(4 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop_caches() -> None:
    """Write back and forget every cached page of the machine."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError as error:
        sys.exit(f"the page cache can only be dropped by root: {error}")


def tensor_words(path: Path) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """Every 16-bit tensor of a safetensors file, as raw words, mapped."""
    with path.open("rb") as file:
        header = json.loads(file.read(size := int.from_bytes(file.read(8), "little")))
    start = 8 + size
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            count = (end - begin) // 2
            yield name, np.memmap(path, np.uint16, "r", start + begin, (count,))


def agreement(ours: Path, theirs: Path) -> float:
    """The share of 16-bit elements that are the same bits in two safetensors files."""
    other = dict(tensor_words(theirs))
    same = total = 0
    for name, words in tensor_words(ours):
        if name not in other or other[name].size != words.size:
            fail(f"{theirs}: tensor {name} is missing or has another size")
        same += int(np.count_nonzero(words == other[name]))
        total += words.size
    return same / total


# ---- data ------------------------------------------------------------------------------------


def delta_rows(rows: int, columns: int, noise: str) -> Iterator[NDArray[np.float32]]:
    """Row by row the deltas of a made-up run: a straight drift and white noise, or a drift and a
    random walk, which has σ₂/σ₁ near 1/3 however long the run is. A row is valid until the next."""
    rng = np.random.default_rng(0)
    drift = rng.standard_normal(columns, np.float32) * np.float32(DRIFT)
    source = rng.standard_normal(columns + 7919 * (rows + 1), np.float32) * np.float32(NOISE)
    walked = np.zeros(columns, np.float32)
    for t in range(1, rows + 1):
        fresh = source[7919 * t : 7919 * t + columns]
        if noise == "walk":
            walked += fresh
        yield np.float32(t / rows) * drift + (walked if noise == "walk" else fresh)


def bf16_run(
    rows: int, columns: int, noise: str = "white"
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Stacked bf16 checkpoints (T, d) and their base (d,), as raw words."""
    base = np.random.default_rng(1).standard_normal(columns, np.float32) * np.float32(0.02)
    stacked = np.empty((rows, columns), np.uint16)
    for row, delta in zip(stacked, delta_rows(rows, columns, noise), strict=True):
        row[:] = to_bf16(base + delta)
    return stacked, to_bf16(base)


def float32_run(rows: int, columns: int, noise: str = "walk") -> NDArray[np.float32]:
    """Stacked deltas (T, d)."""
    stacked = np.empty((rows, columns), np.float32)
    for row, delta in zip(stacked, delta_rows(rows, columns, noise), strict=True):
        row[:] = delta
    return stacked


# ---- reports ---------------------------------------------------------------------------------


def machine() -> str:
    """The processor, its memory, the kernel and the versions, in one line."""
    model, memory = platform.machine(), 0
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            memory = int(line.split()[1]) >> 20
    versions = ", ".join(f"{name} {version(name)}" for name in ("relex_ext", "numpy", "torch"))
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, {versions}"
    )


def version(package: str) -> str:
    """From the metadata, or of a package run from its sources; importing torch takes long."""
    import importlib
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module(package).__version__)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first column to the left and the others to the right."""
    widths = [max(len(str(row[i])) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = [("-" * width) if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(heads), line(rule), *map(line, rows)])


def report(
    args: argparse.Namespace,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    results: Any,
    notes: Sequence[str] = (),
) -> None:
    """Print the table and keep the numbers."""
    print(f"\n{machine()}\n")
    print(table(heads, rows))
    for note in notes:
        print(f"\n{note}")
    if args.json is not None:
        settings = {k: v for k, v in vars(args).items() if k not in ("json", "load")}
        kept = {
            "script": Path(sys.argv[0]).name, "machine": machine(), "settings": settings,
            "notes": list(notes), "results": results,
        }  # fmt: skip
        args.json.write_text(json.dumps(kept, indent=1, default=str, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A folder on the same file system, gone afterwards."""
    import tempfile

    made = Path(tempfile.mkdtemp(prefix="relex-bench-", dir=beside))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
