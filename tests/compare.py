"""Comparing a written tensor with the oracle's forecast of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import oracle
import tolerances
from folders import RunFolder, read_model
from oracle import Float64, Words


def checked_distance(
    found: Words, dtype: str, base: Float64, rows: Sequence[Float64], answer: oracle.Forecast
) -> NDArray[np.int64]:
    """Units in the last place between ``found`` and the oracle's first target, rounded.

    Every element must lie within fp32's errors of the oracle, and within one unit where those are
    smaller than one: unless the sum cancels, and for float32 unless the movement is as large as
    the weight, since the weights w_t come from fp32 products.
    """
    theta = answer.theta[0]
    moves = (np.abs(answer.weights) @ np.abs(oracle.deltas(base, rows)))[0]
    terms = np.abs(base) + moves
    slack = tolerances.WEIGHTS * moves + tolerances.COMBINE_TERMS * terms
    low, high = (oracle.round_to(bound, dtype) for bound in (theta - slack, theta + slack))
    values = oracle.to_float64(found, dtype)
    assert (oracle.to_float64(low, dtype) <= values).all()
    assert (values <= oracle.to_float64(high, dtype)).all()
    distance = oracle.ulps(found, oracle.round_to(theta, dtype), dtype)
    if dtype == "F32":
        clear = moves <= tolerances.SMALL_MOVE_F32 * np.abs(theta)
    else:
        clear = np.abs(theta) >= tolerances.CANCELLED * terms
        assert clear.sum() >= 0.99 * clear.size - 5, "sums that cancel must be the exception"
    assert (distance[clear] <= tolerances.ULP).all()
    return distance


@dataclass
class Tally:
    """Equal bits, pooled over tensors and kept by dtype."""

    equal: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)

    def add(self, dtype: str, distance: NDArray[np.int64]) -> None:
        self.equal[dtype] = self.equal.get(dtype, 0) + int(np.count_nonzero(distance == 0))
        self.count[dtype] = self.count.get(dtype, 0) + distance.size

    def check(self) -> None:
        assert self.count
        for dtype, count in self.count.items():
            share = tolerances.EQUAL_BITS_F32 if dtype == "F32" else tolerances.EQUAL_BITS
            assert self.equal[dtype] >= share * count - 1, (dtype, self.equal[dtype], count)


def check_model(
    folder: Path, run: RunFolder, names: Sequence[str], target: float, dtype: str | None = None
) -> None:
    """The oracle's, rounded. Of float32 every element, of 16-bit dtypes the share of bits, too."""
    found = read_model(folder)
    tally = Tally()
    for name in names:
        out = dtype or run.step_tensors[run.steps[-1]][name].dtype
        assert found[name].dtype == out
        rows = [run.step_tensors[s][name].values for s in run.steps]
        base = run.base_tensors[name].values
        answer = run.forecast(name, [target])
        distance = checked_distance(found[name].words, out, base, rows, answer)
        if out != "F32":
            tally.add(out, distance)
    if dtype != "F32":
        tally.check()
