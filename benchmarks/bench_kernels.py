"""The compiled kernels against what the processor can do: share of its arithmetic, of its memory.

Arithmetic peaks (fp32 FMA, vdpbf16ps) and a bare sum's bandwidth come from peaks.cpp, compiled
now and run in every round beside the kernels. gram counts T(T+1)d flops with its packing in the
time; power_step and combine count the bytes they read and write. Verified first against float64.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common
from common import Times, timed
from relex_ext import _core, dtypes

BF16 = dtypes.CODES["BF16"]
GRAM_TOLERANCE = 1e-5
"""Of ‖G − G_ref‖ / ‖G_ref‖ (Frobenius), and of power_step's Y: products are summed in fp32 over a
block of at most 2048 columns."""


@dataclass
class Data:
    """A made-up bf16 run in memory, and the kernels on it."""

    rows: NDArray[np.uint16]
    base: NDArray[np.uint16]

    def __post_init__(self) -> None:
        self.count, self.columns = self.rows.shape
        self.addresses = self.rows.ctypes.data + np.arange(self.count, dtype=np.uint64) * np.uint64(
            self.rows.strides[0]
        )
        self.dtypes = np.full(self.count, BF16, np.uint8)
        self.bytes = self.rows.nbytes + self.base.nbytes
        self.u = np.random.default_rng(2).standard_normal((self.count, 4)).astype(np.float32)
        self.w = np.random.default_rng(3).standard_normal((4, self.count)) / self.count
        self.out = np.empty((4, self.columns), np.uint16)

    def gram(self, threads: int, isa: str) -> NDArray[np.float64]:
        g = np.zeros((self.count, self.count))
        _core.gram(
            self.addresses, self.dtypes, self.base.ctypes.data, BF16, self.columns, g, threads, isa
        )
        return g

    def power(self, k: int, threads: int, isa: str) -> NDArray[np.float64]:
        y = np.zeros((self.count, k))
        u = np.ascontiguousarray(self.u[:, :k])
        _core.power_step(
            self.addresses, self.dtypes, self.base.ctypes.data, BF16, self.columns,
            u, y, None, threads, isa,
        )  # fmt: skip
        return y

    def combine(self, targets: int, threads: int, isa: str) -> NDArray[np.uint16]:
        out = np.array([row.ctypes.data for row in self.out[:targets]], np.uint64)
        _core.combine(
            self.addresses, self.dtypes, self.base.ctypes.data, BF16, self.columns,
            np.ascontiguousarray(self.w[:targets]), out, BF16, threads, isa,
        )  # fmt: skip
        return self.out[:targets]


def relative(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def verify(rows: int, columns: int, threads: int) -> None:
    """Every kernel of every ISA against float64, on a width that is no multiple of anything."""
    data = Data(*common.bf16_run(rows, columns))
    base = dtypes.to_float32(data.base, "BF16").astype(np.float64)
    delta = dtypes.to_float32(data.rows, "BF16") - base
    gram = delta @ delta.T
    forecast = dtypes.from_float64(base + data.w @ delta, "BF16")
    for isa in _core.isas():
        errors = [relative(np.tril(data.gram(threads, isa)), np.tril(gram))]
        for k in (1, 4):
            y = data.power(k, threads, isa)
            errors.append(relative(y, gram @ data.u[:, :k].astype(np.float64)))
        if max(errors) > GRAM_TOLERANCE:
            common.fail(f"{isa}: relative errors {errors}, expected {GRAM_TOLERANCE:.0e}")
        for targets in (1, 4):
            found = data.combine(targets, threads, isa).astype(np.int64)
            off = np.abs(found - forecast[:targets].astype(np.int64))
            share = np.count_nonzero(off) / off.size
            # A difference of signs is one of words too: 0 and −0, or two numbers beside zero.
            if share > 1e-3 or np.count_nonzero(off > 1) > 1e-5 * off.size:
                common.fail(f"{isa}: combine differs from float64 in {share:.4%} of elements")
        common.say(f"verified {isa}, T = {rows}: relative error at most {max(errors):.1e}")


def compiled_peaks(folder: str) -> Path:
    program = Path(folder) / "peaks"
    compiler = os.environ.get("CXX", "c++")
    source = common.HERE / "peaks.cpp"
    flags = ["-O3", "-std=c++17", "-pthread"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    return program


class Peaks:
    """Runs peaks.cpp and keeps what it found for a number of threads."""

    def __init__(self, program: Path, threads: int, size: int, seconds: float) -> None:
        self.argv = [str(program), str(threads), str(size), str(seconds)]
        self.found: list[dict[str, float | None]] = []

    def __call__(self) -> float:
        start = time.perf_counter()
        done = subprocess.run(self.argv, check=True, capture_output=True, text=True)
        self.found.append(json.loads(done.stdout))
        return time.perf_counter() - start

    def best(self, name: str) -> float | None:
        """A peak is the fastest of all rounds."""
        values = [rates[name] for rates in self.found]
        return max(v for v in values if v is not None) if None not in values else None


def share(rate: Times, peak: float | None) -> str:
    return "–" if peak is None else f"{rate.median / peak:.0%}"


def kernel_cases(data: Data, threads: int, isas: list[str]) -> dict[str, Callable[[], float]]:
    cases: dict[str, Callable[[], float]] = {}
    for isa in isas:
        cases[f"gram {isa}"] = timed(partial(data.gram, threads, isa))
        for k in (1, 4):
            cases[f"power_step k={k} {isa}"] = timed(partial(data.power, k, threads, isa))
        for targets in (1, 4):
            cases[f"combine ×{targets} {isa}"] = timed(partial(data.combine, targets, threads, isa))
    return cases


def measure(
    data: Data, threads: int, isas: list[str], runs: int, peaks: Peaks
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """The table's rows and the JSON's entries for one run and one number of threads."""
    times = common.interleaved({"peaks": peaks, **kernel_cases(data, threads, isas)}, runs)
    del times["peaks"]
    fma, bf16, bare = (peaks.best(x) for x in ("fma_gflops", "bf16_gflops", "sum_gbps"))
    shape = {"rows": data.count, "columns": data.columns, "threads": threads}
    where = [str(data.count), str(threads)]
    results: list[dict[str, Any]] = [
        {"case": "peaks", **shape, "fma_gflops": fma, "bf16_gflops": bf16, "sum_gbps": bare}
    ]
    table = []
    for name, peak, unit in (
        ("peak: fp32 FMA", fma, "GFLOP/s"),
        ("peak: vdpbf16ps", bf16, "GFLOP/s"),
        ("peak: bare sum", bare, "GB/s"),
    ):
        table.append([name, *where, "–" if peak is None else f"{peak:.1f} {unit}", "", "", ""])
    for name, seconds in times.items():
        written = 2 * data.columns * (int(name[9]) if name.startswith("combine") else 0)
        bandwidth = seconds.rate((data.bytes + written) / 1e9)
        entry = {"case": name, **shape, "seconds": seconds.json(), "gb_per_s": bandwidth.json()}
        if name.startswith("gram"):
            flops = seconds.rate(data.count * (data.count + 1) * data.columns / 1e9)
            entry["gflop_per_s"] = flops.json()
            cells = [flops.text(".1f") + " GFLOP/s", share(flops, fma), share(flops, bf16)]
        else:
            cells = [bandwidth.text(".1f") + " GB/s", "", ""]
        table.append([name, *where, *cells, share(bandwidth, bare)])
        results.append(entry)
    return table, results


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=common.numbers, default="75,200", help="T")
    parser.add_argument("--columns", type=common.number, help="d (as many as fill --bytes)")
    parser.add_argument("--bytes", type=common.number, default="1e9", help="of the rows together")
    parser.add_argument("--isas", type=common.words, default=",".join(_core.isas()))
    parser.add_argument(
        "--threads", type=common.numbers, default=f"1,{cores}" if cores > 1 else "1"
    )
    parser.add_argument("--peak-seconds", type=float, default=1.0, help="per peak and round")
    args = parser.parse_args()
    table, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        program = compiled_peaks(folder)
        for rows in args.rows:
            verify(rows, 3 * _core.SEGMENT + 17, max(args.threads))
            data = Data(*common.bf16_run(rows, args.columns or args.bytes // (2 * rows)))
            for threads in args.threads:
                peaks = Peaks(program, threads, data.bytes, args.peak_seconds)
                lines, entries = measure(data, threads, args.isas, args.runs, peaks)
                table += lines
                results += entries
    heads = ["case", "T", "threads", "rate", "of FMA peak", "of vdpbf16ps peak", "of bare sum"]
    common.report(args, heads, table, results)


if __name__ == "__main__":
    main()
