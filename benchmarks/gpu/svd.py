"""The leading singular pair of one tensor's stacked deltas (fp32, on the device), by anyone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu.worker import Device, Entry, Job, Wrong
from load import DRIFT, NOISE

Pair = tuple[NDArray[np.float64], float]
TOLERANCE = 1e-5
"""Of σ, relative, and of u, for ours."""

ENOUGH = 0.2
"""Seconds of repetitions that make a round of a short method."""


def ours(rows: Any, solver: str, backend: str) -> Pair:
    import relex_ext

    found = relex_ext.rank1(rows, solver=solver, backend=backend)
    return found.u, found.sigma


def dense(rows: Any, tall: bool, driver: str | None) -> Pair:
    import torch

    matrix = rows.T if tall else rows
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False, driver=driver)
    return (vh[0] if tall else u[:, 0]).double().cpu().numpy(), float(sigma[0])


def lowrank(rows: Any, tall: bool) -> Pair:
    import torch

    torch.manual_seed(0)
    matrix = rows.T if tall else rows
    u, sigma, v = torch.svd_lowrank(matrix, q=min(6, len(rows)), niter=2)
    return (v if tall else u)[:, 0].double().cpu().numpy(), float(sigma[0])


def gram_eigh(rows: Any, wide: bool) -> Pair:
    """What a careful user would write by hand. ``wide``: the product in float64."""
    import torch

    if wide:
        rows = rows.double()
    gram = (rows @ rows.T).double()
    values, vectors = torch.linalg.eigh(gram)
    return vectors[:, -1].cpu().numpy(), float(values[-1].sqrt())


def methods(backends: list[str]) -> dict[str, Callable[[Any], Pair]]:
    """In the order of what is worth knowing most, should time run out."""
    known: dict[str, Callable[[Any], Pair]] = {}
    for name in backends:
        for solver in ("gram", "power"):
            known[f"relex {solver}, {name}"] = partial(ours, solver=solver, backend=name)
    for shape in ("(d, T)", "(T, d)"):
        tall = shape == "(d, T)"
        known[f"torch.linalg.svd of {shape}"] = partial(dense, tall=tall, driver=None)
        known[f"torch.svd_lowrank of {shape}"] = partial(lowrank, tall=tall)
    known["torch: A Aᵀ in fp32, eigh"] = partial(gram_eigh, wide=False)
    known["torch: A Aᵀ in fp64, eigh"] = partial(gram_eigh, wide=True)
    return known


def drivers() -> dict[str, Callable[[Any], Pair]]:
    """cuSOLVER's others."""
    return {
        f"torch.linalg.svd of {shape}, {driver}": partial(
            dense, tall=shape == "(d, T)", driver=driver
        )
        for driver in ("gesvda", "gesvdj", "gesvd")
        for shape in ("(d, T)", "(T, d)")
    }


def deltas(device: Device, count: int, columns: int) -> Any:
    """(T, d): a straight drift and a random walk, as common.delta_rows makes them."""
    torch = device.torch
    where = {"device": device.device}
    generator = torch.Generator(**where).manual_seed(0)
    random = partial(torch.randn, columns, generator=generator, **where)
    drift = random() * DRIFT
    walked = torch.zeros(columns, **where)
    rows = torch.empty(count, columns, **where)
    for t, row in enumerate(rows, 1):
        walked += random() * NOISE
        row.copy_(walked).add_(drift, alpha=t / count)
    return rows


def reference(rows: Any) -> Pair:
    """By eigh of G in float64."""
    import torch

    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split((1 << 26) // len(rows), dim=1):
        wide = block.double()
        gram += wide @ wide.T
    values, vectors = np.linalg.eigh(gram.cpu().numpy())
    return vectors[:, -1], float(np.sqrt(values[-1]))


def svd(device: Device, job: Job) -> Iterator[Entry]:
    """One method on one shape. Seconds by the host's clock, until u and σ are on the host."""
    method = (methods(job["backends"]) | drivers())[job["method"]]
    method(deltas(device, 8, 4096))
    rows = deltas(device, job["rows"], job["columns"])
    u_ref, sigma_ref = reference(rows)
    device.free()
    before, peak = 0, 0
    if device.kind == "cuda":
        device.torch.cuda.reset_peak_memory_stats()
        before = device.torch.cuda.memory_allocated()
    found: list[Pair] = []

    def once() -> float:
        return device.once(lambda: found.append(method(rows)))

    seconds = [once()]
    if device.kind == "cuda":
        peak = device.torch.cuda.max_memory_allocated() - before
    if seconds[0] < job["limit"] / 10:  # the first has allocations in it
        repeats = max(1, min(20, int(ENOUGH / seconds[0] / job["runs"])))
        seconds = [sum(once() for _ in range(repeats)) / repeats for _ in range(job["runs"])]
    u, sigma = found[-1]
    sigma_error = abs(sigma / sigma_ref - 1)
    u_error = float(min(np.linalg.norm(u - u_ref), np.linalg.norm(u + u_ref)))
    entry = {
        "method": job["method"], "rows": job["rows"], "columns": job["columns"],
        "seconds": seconds, "peak_bytes": peak, "sigma_error": sigma_error, "u_error": u_error,
    }  # fmt: skip
    worst = max(sigma_error, u_error)
    if job["method"].startswith("relex") and not worst <= TOLERANCE:
        raise Wrong(f"off by {worst:.1e}, expected at most {TOLERANCE:.0e}")
    yield entry
