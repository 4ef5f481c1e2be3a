"""Run after run in one process, each of another shape: the same bytes, nothing kept.

    python tests/soak.py --runs 1000 --seed 0

Every run is made twice, plainly (one thread, mapped, as much memory as it likes) and any other way,
then once more as scan, forecast and combine. The weights must be the same bytes all three times and
the float64 oracle's to one unit; this process's memory and descriptors must not grow.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import oracle
import relex_ext
import tolerances
from compare import Tally
from folders import RunFolder, Spec, make_run, read_model
from relex_ext.sizes import parse_bytes

SEGMENT = 16_384

GROWTH = 8 << 20
"""Bytes by which the second half's memory may exceed the first's: what malloc keeps varies."""


@dataclass(frozen=True)
class Case:
    """One run, and the other way in which it is made."""

    model: dict[str, Spec]
    steps: tuple[int, ...]
    targets: tuple[float, ...]
    shards: list[list[str]] | None
    base_shards: list[list[str]] | None
    used: tuple[int, ...]
    """The first of the steps."""
    forecast: dict[str, Any]
    solver: str
    dtype: str | None
    memory: float
    """How often the least memory that a plan accepts."""
    threads: int
    io: str


def draw(chance: random.Random) -> Case:
    steps = tuple(sorted(chance.sample(range(1, 120), chance.randint(2, 8))))
    count = chance.randint(2, len(steps))
    model = {f"t{i}": _tensor(chance) for i in range(chance.randint(1, 6))}
    model["trained"] = Spec((chance.randint(1, 50), 3))  # a run needs one that is not empty
    last = steps[count - 1]
    targets = {float(last + chance.randint(1, 4 * last)) for _ in range(chance.randint(1, 3))}
    return Case(
        model, steps, tuple(sorted(targets)), _shards(chance, model), _shards(chance, model),
        steps[:count], _forecast(chance, count),
        chance.choice(["gram", "gram", "power"]), chance.choice([None, "bfloat16", "float32"]),
        chance.choice([1.0, 1.2, 3.0, 1000.0]), chance.randint(1, 4),
        chance.choice(["mmap", "pread", "auto"]),
    )  # fmt: skip


def _tensor(chance: random.Random) -> Spec:
    kind = chance.choice(["trained"] * 8 + ["frozen", "integer"])
    if kind == "integer":
        dtype = chance.choice(["I64", "BOOL"])
        return Spec((chance.randint(0, 40),), dtype, (dtype,), kind)
    dtypes = [chance.choice(["F32", "F16", "BF16"]) for _ in range(chance.randint(1, 3))]
    return Spec(_shape(chance), chance.choice([*dtypes, "BF16"]), tuple(dtypes), kind)


def _shape(chance: random.Random) -> tuple[int, ...]:
    rank = chance.randint(0, 4)
    if chance.random() < 0.3 and rank > 0:
        columns = SEGMENT * chance.randint(1, 3) + chance.choice([-17, -1, 0, 1, 16, 513])
        return (1,) * (rank - 1) + (columns,)
    if chance.random() < 0.1 and rank > 0:
        return (0,) + (3,) * (rank - 1)
    longest = {0: 0, 1: 5000, 2: 90, 3: 25, 4: 10}[rank]
    return tuple(chance.randint(1, longest) for _ in range(rank))


def _shards(chance: random.Random, model: dict[str, Spec]) -> list[list[str]] | None:
    """Names spread over files at random, or one file."""
    count = chance.randint(0, 3)
    if count == 0:
        return None
    parts: list[list[str]] = [[] for _ in range(count)]
    for name in chance.sample(list(model), len(model)):
        chance.choice(parts).append(name)
    return [part for part in parts if part]


def _forecast(chance: random.Random, steps: int) -> dict[str, Any]:
    options: list[dict[str, Any]] = [
        {"method": "relex"}, {"method": "relex"}, {"method": "relex", "rank": min(2, steps)},
        {"method": "pinned"}, {"method": "relex", "strength": 0.5}, {"method": "latest"},
        {"method": "secant"}, {"method": "two-point"}, {"method": "first-update", "alpha": 1.5},
        {"method": "ema", "decay": 0.8},
    ]  # fmt: skip
    return chance.choice(options)


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
        verify(folder / out)
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


def verify(out: Path) -> None:
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
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident.append(pages * resource.getpagesize())
        self.descriptors.append(len(list(Path("/proc/self/fd").iterdir())))

    def halves(self, found: Sequence[int]) -> tuple[float, float]:
        """The median of each half."""
        middle = len(found) // 2
        return statistics.median(found[:middle]), statistics.median(found[middle:])

    def check(self) -> None:
        assert len(set(self.descriptors)) == 1, self.descriptors
        first, second = self.halves(self.resident)
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
    first, second = (half / 2**20 for half in footprint.halves(footprint.resident))
    print(f"resident: {first:.1f} MiB in the first half, {second:.1f} in the second")
    print(f"descriptors: {min(footprint.descriptors)} to {max(footprint.descriptors)}")
    footprint.check()
    tally.check()


if __name__ == "__main__":
    main()
