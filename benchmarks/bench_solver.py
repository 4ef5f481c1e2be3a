"""Gram or power iteration: where the one overtakes the other, and where auto switches.

bf16 rows in memory, rank 1, for every instruction set. Verified first, at every T: both find the
same pair. The last lines are the constants of relex_ext/plan.py as measured here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common
from common import timed
from relex_ext import _core, power
from relex_ext.backends import Strips
from relex_ext.backends.cpu import CpuBackend
from relex_ext.dtypes import CODES
from relex_ext.forecasts import spectrum_of_gram
from relex_ext.plan import choose_solver

BF16 = CODES["BF16"]
TOLERANCE = 1e-5
"""Between the two solvers: relative in σ, ‖u − u'‖."""

RATES_FROM = 40
"""The constants are medians over T from here: below, neither solver takes time to speak of."""


class Solvers:
    """Both ways to the leading pair of one run, by one instruction set."""

    def __init__(self, strips: Strips, isa: str, threads: int) -> None:
        self.strips = strips
        self.engine = CpuBackend(threads, isa)
        self.rows = len(strips.rows)
        self.passes = 0

    def gram(self) -> tuple[NDArray[np.float64], float]:
        g = np.zeros((self.rows, self.rows))
        self.engine.gram(self.strips, g)
        spectrum = spectrum_of_gram(np.tril(g) + np.tril(g, -1).T, 1)
        return spectrum.u[:, 0], float(spectrum.sigma[0])

    def power(self) -> tuple[NDArray[np.float64], float]:
        energy = np.zeros(self.rows)

        def step(u: NDArray[np.float32]) -> NDArray[np.float64]:
            y = np.zeros(u.shape)
            self.engine.power_step(self.strips, u, y, None if energy.any() else energy)
            return y

        u, values, _, self.passes = power.solve(step, self.rows, 1)
        return u[:, 0], math.sqrt(values[0])

    def disagreement(self) -> float:
        (u, sigma), (v, other) = self.gram(), self.power()
        distance = min(np.linalg.norm(u - v), np.linalg.norm(u + v))
        return max(float(distance), abs(other / sigma - 1))


def crossing(rows: list[int], ratios: list[float]) -> str:
    """The T where gram / power passes one, between the two measured on either side."""
    if ratios[0] > 1:
        return f"below {rows[0]}"
    for i in range(1, len(rows)):
        if ratios[i] > 1:
            a, b = math.log(ratios[i - 1]), math.log(ratios[i])
            return f"{rows[i - 1] + (rows[i] - rows[i - 1]) * -a / (b - a):.0f}"
    return f"above {rows[-1]}"


def switch(isa: str, stored: bool) -> str:
    """The smallest T for which auto takes power iteration, of ``stored`` shards or in memory."""
    for rows in range(2, _core.MAX_ROWS + 1):
        if choose_solver("auto", isa, rows, 1, stored=stored) == "power":
            return str(rows)
    return "never"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--rows", type=common.numbers, default="10,20,40,75,100,150,200,300,500", help="T"
    )
    parser.add_argument("--columns", type=common.numbers, default="1e5,1e6", help="d")
    parser.add_argument("--noise", choices=("walk", "white"), default="walk", help="of the data")
    parser.add_argument("--isas", type=common.words, default=",".join(_core.isas()))
    parser.add_argument("--threads", type=int, default=1, help="plan.py's rates are of one core")
    args = parser.parse_args()
    table: list[list[str]] = []
    results: list[dict[str, Any]] = []
    for columns in args.columns:
        for rows in sorted(args.rows):
            stacked, base = common.bf16_run(rows, columns, args.noise)
            addresses = np.array([row.ctypes.data for row in stacked], np.uint64)
            strips = Strips(
                addresses, np.full(rows, BF16, np.uint8), base.ctypes.data, BF16, columns
            )
            solvers = {isa: Solvers(strips, isa, args.threads) for isa in args.isas}
            for isa, both in solvers.items():
                if (off := both.disagreement()) > TOLERANCE:
                    common.fail(f"{isa}, T = {rows}: gram and power differ by {off:.1e}")
            cases: dict[str, Callable[[], float]] = {}
            for isa, both in solvers.items():
                cases |= {f"gram {isa}": timed(both.gram), f"power {isa}": timed(both.power)}
            times = common.interleaved(cases, args.runs)
            for isa, both in solvers.items():
                gram, iteration = times[f"gram {isa}"], times[f"power {isa}"]
                per_core = columns / 1e9 / args.threads
                k = power.block_size(rows, 1)
                gram_rate = gram.rate(rows * (rows + 1) * per_core)
                power_rate = iteration.rate(both.passes * 4 * rows * k * per_core)
                auto = choose_solver("auto", isa, rows, 1, stored=False)
                faster = "gram" if gram.median < iteration.median else "power"
                lost = {"gram": gram, "power": iteration}[auto].median / min(
                    gram.median, iteration.median
                )
                table.append(
                    [isa, f"{columns:.0e}", str(rows), gram.text(".4f"), iteration.text(".4f"),
                     str(both.passes), f"{gram_rate.median:.1f}", f"{power_rate.median:.1f}",
                     faster, auto, f"{lost - 1:.0%}"]
                )  # fmt: skip
                results.append(
                    {"isa": isa, "columns": columns, "rows": rows, "gram_seconds": gram.json(),
                     "power_seconds": iteration.json(), "passes": both.passes,
                     "gram_gflop_per_s": gram_rate.json(), "power_gflop_per_s": power_rate.json(),
                     "auto": auto, "faster": faster}
                )  # fmt: skip
            common.say(f"T = {rows}, d = {columns:.0e}: done")
    table.sort(key=lambda row: (args.isas.index(row[0]), float(row[1]), int(row[2])))
    heads = ["isa", "d", "T", "gram s", "power s", "passes", "gram GFLOP/s/core",
             "power GFLOP/s/core", "faster", "auto", "auto loses"]  # fmt: skip
    common.report(args, heads, table, results, notes(args.isas, args.columns, results))


def notes(isas: list[str], columns: list[int], results: list[dict[str, Any]]) -> list[str]:
    """Crossings, and the constants to paste."""
    lines = []
    rates: dict[str, dict[str, float]] = {"gram": {}, "power": {}}
    for isa in isas:
        for d in columns:
            mine = [r for r in results if r["isa"] == isa and r["columns"] == d]
            ratios = [r["gram_seconds"]["median"] / r["power_seconds"]["median"] for r in mine]
            at = crossing([r["rows"] for r in mine], ratios)
            lines.append(
                f"{isa}, d = {d:.0e}: power overtakes at T = {at}, auto: "
                f"{switch(isa, stored=False)}, of shards {switch(isa, stored=True)}"
            )
        counted = [r for r in results if r["isa"] == isa and r["rows"] >= RATES_FROM]
        for kind, found in rates.items():
            if counted:
                middle = (r[f"{kind}_gflop_per_s"]["median"] for r in counted)
                found[isa] = round(statistics.median(middle), 1)
    passes = statistics.median_high(r["passes"] for r in results)
    if not rates["gram"]:
        return [*lines, f"no T from {RATES_FROM} up: no rates"]
    lines += [f"POWER_PASSES = {passes}", f"GRAM_RATE = {rates['gram']}",
              f"POWER_RATE = {rates['power']}"]  # fmt: skip
    return lines


if __name__ == "__main__":
    main()
