"""Runs of every shape, drawn at random, and ways to forecast from them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from folders import Spec

SEGMENT = 16_384
"""Columns; tensors end just before and just behind multiples of it."""


@dataclass(frozen=True)
class Case:
    """One run, a forecast, and how it may be made but plainly."""

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
