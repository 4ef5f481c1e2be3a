"""Run after run in one process, each of another shape: the same bytes, nothing kept.

    python tests/soak.py --runs 1000 --seed 0

Every run is made twice, plainly (one thread, mapped, as much memory as it likes) and any other way,
then once more as scan, forecast and combine. The weights must be the same bytes all three times and
the float64 oracle's to one unit, every output passes its verification, and this process's memory
and descriptors do not grow.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import logging
import os
import random
import re
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import oracle
import relex_ext
import tolerances
from compare import Tally
from folders import RunFolder, make_run, read_model
from random_runs import Case, draw
from relex_ext.sizes import parse_bytes

SPECTRAL = ("relex", "pinned")
"""Methods whose share of equal bits is counted. The others' weights are fractions of steps: times
16-bit numbers they often make ties, which float32 and float64 break one way or the other."""

GROWTH = 8 << 20
"""Bytes by which the second half's memory may exceed the first's: shapes leave gaps in the heap."""


# ---- one run -----------------------------------------------------------------------------------


def soak(case: Case, folder: Path, tally: Tally, seed: int) -> None:
    """All three ways, compared."""
    run = make_run(
        folder, case.steps, case.model, seed=seed, shards=case.shards, base_shards=case.base_shards
    )
    common: dict[str, Any] = {"until": case.used[-1], "progress": False}
    made: dict[str, Any] = {**common, **case.forecast, "solver": case.solver, "dtype": case.dtype}
    where = run.base, run.checkpoints
    plainly: dict[str, Any] = {"threads": 1, "io": "mmap", "memory_limit": "1GiB"}
    otherwise: dict[str, Any] = {"threads": case.threads, "io": case.io}
    otherwise["memory_limit"] = int(least_memory(run, case, made) * case.memory)

    plain = relex_ext.extrapolate(*where, case.targets, folder / "plain", **made, **plainly)
    relex_ext.extrapolate(*where, case.targets, folder / "other", **made, **otherwise)
    assert_same(folder / "plain", folder / "other")

    rank = case.forecast.get("rank", 1)
    scanned = relex_ext.scan(
        *where, out=folder / "scan", rank=rank, solver=case.solver, **common, **otherwise
    )
    weights = relex_ext.forecast(scanned, case.targets, **case.forecast)
    written = {"dtype": case.dtype, "progress": False, **otherwise}
    relex_ext.combine(*where, weights, folder / "parts", **written)
    assert_same(folder / "plain", folder / "parts", "step_*/*.safetensors")

    for out in ("plain", "other", "parts"):
        by_hand(folder / out)
        verification = relex_ext.verify(folder / out, samples=8, seed=seed, progress=False)
        assert verification.ok, verification.damages
    assert not list(folder.rglob(".*.partial")), "left behind"
    assert plain.weights is not None
    for target in range(len(case.targets)):
        against_the_oracle(case, run, folder / "plain", target, plain.weights, tally)


def least_memory(run: RunFolder, case: Case, made: dict[str, Any]) -> int:
    """The smallest limit that a plan accepts, as the refusal of a smaller one names it."""
    try:
        relex_ext.extrapolate(
            run.base, run.checkpoints, case.targets, run.base.parent / "never",
            memory_limit=1, dry_run=True, **made,
        )  # fmt: skip
    except relex_ext.InputError as error:
        found = re.search(r"at least (\S+ \S+) for", str(error))
        assert found is not None, error
        return parse_bytes(found[1])
    return 1  # it needs no more than a byte


def assert_same(one: Path, two: Path, pattern: str = "**/*") -> None:
    """Every file's bytes."""
    pairs = [
        {str(p.relative_to(out)): p.read_bytes() for p in out.glob(pattern) if p.is_file()}
        for out in (one, two)
    ]
    assert pairs[0], "there is something to compare"
    assert pairs[0] == pairs[1], [n for n in pairs[0] if pairs[0][n] != pairs[1].get(n)]


def by_hand(out: Path) -> None:
    """The digests that relex.json keeps, counted again by hand."""
    noted = json.loads((out / "relex.json").read_text())["sha256"]
    for folder, digests in noted["tensors"].items():
        found = {n: hashlib.sha256(t.data).hexdigest() for n, t in read_model(out / folder).items()}
        assert found == digests
    for name, digest in noted["files"].items():
        data = (out / name).read_bytes()
        if name.startswith("step_") and name.endswith(".safetensors"):
            data = data[: 8 + int.from_bytes(data[:8], "little")]  # its tensors are noted above
        assert hashlib.sha256(data).hexdigest() == digest, name


def against_the_oracle(
    case: Case, run: RunFolder, out: Path, target: int, weights: relex_ext.Weights, tally: Tally
) -> None:
    """Within a unit of the float64 result where its sum does not cancel (in float32 the weights'
    errors show as well); the share of equal bits is the tally's business. Two directions may be as
    good as each other: of rank 2 there is no one answer."""
    if case.forecast.get("rank", 1) > 1:
        return
    at = case.targets[target]
    found = read_model(out / f"step_{int(at)}")
    for name, spec in case.model.items():
        if spec.kind == "integer":
            assert found[name].data == run.base_tensors[name].data
            continue
        base = run.base_tensors[name].values
        m = oracle.deltas(base, [run.step_tensors[s][name].values for s in case.used])
        if m.size == 0 or not m.any():
            continue
        movement = _movement(case, m, at)
        movement[~m.any(axis=0)] = 0.0  # where nothing moved the SVD leaves noise
        theta = base + movement
        moves = np.abs(weights.tensors[name][target]) @ np.abs(m)
        clear = np.abs(theta) >= tolerances.CANCELLED * (np.abs(base) + moves)
        words, dtype = found[name].words, found[name].dtype
        sigma = np.append(np.linalg.svd(m, compute_uv=False), 0.0)
        gap = 1.0 - (sigma[1] / sigma[0]) ** 2
        slack = tolerances.VECTOR * moves / gap if dtype == "F32" else 0.0
        nearest = np.clip(found[name].values, theta - slack, theta + slack)
        distance = oracle.ulps(words, oracle.round_to(nearest, dtype), dtype)[clear]
        assert (distance <= tolerances.ULP).all(), (name, spec, distance.max())
        if dtype == "F32":
            clear &= moves <= tolerances.SMALL_MOVE_F32 * np.abs(theta)
        if case.forecast["method"] in SPECTRAL:
            tally.add(dtype, oracle.ulps(words, oracle.round_to(theta, dtype), dtype)[clear])


def _movement(case: Case, m: oracle.Float64, target: float) -> oracle.Float64:
    options = dict(case.forecast)
    strength = options.pop("strength", 1.0)
    whole = oracle.movement(m=m, steps=case.used, targets=[target], **options)[0]
    moved: oracle.Float64 = m[-1] + strength * (whole - m[-1])
    return moved


# ---- many --------------------------------------------------------------------------------------


@dataclass
class Footprint:
    """This process after each run: bytes resident, descriptors."""

    resident: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps varies with the shapes
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident.append(pages * resource.getpagesize())
        self.descriptors.append(len(list(Path("/proc/self/fd").iterdir())))

    def medians(self, parts: int) -> list[float]:
        """Bytes resident in each part of the time."""
        cuts = [len(self.resident) * i // parts for i in range(parts + 1)]
        return [statistics.median(self.resident[b:e]) for b, e in pairwise(cuts)]

    def check(self) -> None:
        assert len(set(self.descriptors)) == 1, self.descriptors
        first, second = self.medians(2)
        assert second - first <= GROWTH, f"grew from {first} to {second} bytes"


def go(runs: int, seed: int) -> tuple[Tally, Footprint]:
    tally, footprint = Tally(), Footprint()
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # in memory, if it can be
    for i in range(runs):
        case = draw(chance := random.Random(f"{seed} {i}"))
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            try:
                soak(case, Path(folder), tally, chance.randrange(1 << 30))
            except Exception:
                print(f"seed {seed}, run {i}: {case}", file=sys.stderr)
                raise
        footprint.look()
    return tally, footprint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable()
    began = time.perf_counter()
    tally, footprint = go(options.runs, options.seed)
    print(f"{options.runs} runs, {time.perf_counter() - began:.0f} s")
    for dtype, count in sorted(tally.count.items()):
        print(f"{dtype}: {tally.equal[dtype]} of {count} elements are the oracle's bits")
    quarters = ", ".join(f"{median / 2**20:.1f}" for median in footprint.medians(4))
    print(f"resident: {quarters} MiB in one quarter after the other")
    print(f"descriptors: {min(footprint.descriptors)} to {max(footprint.descriptors)}")
    footprint.check()
    tally.check()


if __name__ == "__main__":
    main()
