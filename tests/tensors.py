"""Arrays and tensors for the operations in memory, and their results against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import oracle
import tolerances
from oracle import Float64, Words
from relex_ext import ops

NAME: dict[Any, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
}
TORCH: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

OPS = ops.relex

MIXES = [
    (F32, (F32,)),
    (F16, (F16,)),
    (BF16, (BF16,)),
    (F32, (BF16,)),
    (BF16, (F32, F16, BF16)),
]
"""(dtype of the base, dtypes of the snapshots in turn)."""

Tensors = list[torch.Tensor]


def words(array: Any) -> Words:
    """Its raw words, flat, wherever it lies."""
    if isinstance(array, torch.Tensor):
        kind = torch.uint16 if array.element_size() == 2 else torch.uint32
        flat = array.detach().cpu().contiguous().view(-1)
        return flat.view(kind).numpy().copy()
    return np.ascontiguousarray(array).view(oracle.WORD[NAME[array.dtype]]).ravel().copy()


def values(array: Any) -> Float64:
    """Its numbers, flat."""
    if isinstance(array, torch.Tensor):
        return array.detach().cpu().double().numpy().ravel()
    return np.asarray(array, np.float64).ravel()


def run(
    rows: int,
    shape: tuple[int, ...],
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    base: torch.dtype = torch.bfloat16,
    *,
    device: str | torch.device = "cpu",
    step: float = 1e-4,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Snapshots of a tensor that drifts along one direction, with noise, and their base."""
    rng = np.random.default_rng([rows, *shape])
    start = torch.from_numpy(rng.normal(0, 0.02, shape)).to(base)
    direction = rng.normal(0, step, shape)
    snapshots = []
    for t in range(rows):
        noise = rng.normal(0, step / 3, shape)
        moved = start.double() + torch.from_numpy(direction * (t + 1) ** 0.9 + noise)
        snapshots.append(moved.to(dtypes[t % len(dtypes)]).to(device))
    return snapshots, start.to(device)


def deltas(snapshots: Sequence[Any], base: Any) -> Float64:
    return oracle.deltas(None if base is None else values(base), [values(s) for s in snapshots])


def check_gram(found: Any, snapshots: Sequence[Any], base: Any) -> None:
    m = deltas(snapshots, base)
    expected = m @ m.T
    norms = np.sqrt(np.diag(expected))
    assert norms.all(), "the oracle's rows must move for the comparison to mean something"
    g = np.asarray(found.cpu() if isinstance(found, torch.Tensor) else found)
    assert g.dtype == np.float64
    assert np.array_equal(g, g.T)
    assert (np.abs(g - expected) / np.outer(norms, norms)).max() <= tolerances.GRAM


def check_power_step(
    y: torch.Tensor, energy: torch.Tensor, snapshots: Sequence[Any], base: Any, u: torch.Tensor
) -> None:
    m = deltas(snapshots, base)
    vectors = u.detach().cpu().float().double().numpy()
    expected, squares = m @ (m.T @ vectors), np.sum(m * m, axis=1)
    assert squares.any()
    norms = np.sqrt(squares)
    scale = np.outer(norms, np.linalg.norm(vectors, axis=0)) * np.linalg.norm(norms)
    assert y.dtype == energy.dtype == torch.float64
    assert (np.abs(y.cpu().numpy() - expected) / scale).max() <= tolerances.GRAM
    assert np.allclose(energy.cpu().numpy(), squares, rtol=tolerances.SIGMA, atol=0)


def check_combine(
    found: Sequence[Any], snapshots: Sequence[Any], weights: Any, base: Any, dtype: str
) -> None:
    """Every result is the rounding of a number within fp32's errors of the exact one, and over a
    base, where moves are small, nearly always of the exact one itself."""
    w = values(weights).reshape(len(found), len(snapshots))
    m = deltas(snapshots, base)
    start = np.zeros(m.shape[1]) if base is None else values(base)
    for result, row in zip(found, w, strict=True):
        assert NAME[result.dtype] == dtype
        assert tuple(result.shape) == tuple(snapshots[0].shape)
        exact = start + row @ m
        slack = tolerances.COMBINE_TERMS * (np.abs(start) + np.abs(row) @ np.abs(m))
        low, high = (oracle.round_to(bound, dtype) for bound in (exact - slack, exact + slack))
        got = words(result)
        numbers = oracle.to_float64(got, dtype)
        assert (oracle.to_float64(low, dtype) <= numbers).all()
        assert (numbers <= oracle.to_float64(high, dtype)).all()
        wrong = np.count_nonzero(got != oracle.round_to(exact, dtype))
        assert base is None or wrong <= max(1, (1 - tolerances.EQUAL_BITS) * got.size)


def weights_of(targets: int, rows: int) -> torch.Tensor:
    """Like a forecast's: they grow along the run and sum to a few."""
    rng = np.random.default_rng([targets, rows])
    ramp = np.arange(1, rows + 1) / rows * rng.uniform(0.8, 1.2, rows)
    return torch.from_numpy(np.stack([(2 + q) * ramp / rows for q in range(targets)]))


def vectors_of(rows: int, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + k)
    return torch.randn(rows, k, generator=generator)


def same_bytes(a: Any, b: Any) -> bool:
    flat_a, flat_b = ([x] if isinstance(x, torch.Tensor) else list(x) for x in (a, b))
    pairs = zip(flat_a, flat_b, strict=True)
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in pairs)


def calls(snapshots: Tensors, base: torch.Tensor | None) -> dict[str, Callable[[], Any]]:
    rows = len(snapshots)
    return {
        "gram": lambda: OPS.gram(snapshots, base),
        "power_step": lambda: OPS.power_step(snapshots, base, vectors_of(rows, 2)),
        "combine": lambda: OPS.combine(snapshots, base, weights_of(2, rows)),
    }
