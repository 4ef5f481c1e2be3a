"""The kernels of a GPU backend, as the pipeline calls them: verified, then timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import common
from gpu.limits import open_backend
from gpu.worker import Device, Entry, Job, Wrong, reason
from load import DRIFT, NOISE
from relex_ext import _core
from relex_ext.backends import CpuBackend, Strips
from relex_ext.dtypes import CODES

GRAM = 1e-6
"""Of an element of G, relative to √(G_ii G_jj), as in the tests."""

POWER = 1e-5
"""Of an element of Y = Δ(Δᵀu), relative to √(G_ii uᵀGu)."""

EQUAL = 0.999
"""Share of outputs that are the rounding of the float64 sum (they are summed in fp32)."""

PART = 8192
"""Widths are multiples of this; an odd width is verified beside them."""

VECTORS = TARGETS = (1, 4)
WORDS = {"bf16": "BF16", "fp32": "F32"}


class Data:
    """A made-up run on the device, a drift and white noise as in load.py, and the kernels on it."""

    def __init__(self, device: Device, backend: Any, job: Job) -> None:
        torch = device.torch
        self.torch, self.device, self.backend = torch, device, backend
        self.count, self.dtype = job["rows"], job["dtype"]
        kind = torch.bfloat16 if self.dtype == "bf16" else torch.float32
        self.word = torch.int16 if self.dtype == "bf16" else torch.int32
        self.code, self.item = CODES[WORDS[self.dtype]], kind.itemsize
        d = job["bytes"] // (self.count * self.item) // PART * PART
        self.columns = max(d, PART)
        where = {"device": device.device}
        random = partial(
            torch.randn, self.columns, generator=torch.Generator(**where).manual_seed(0), **where
        )
        base, drift = random().mul_(0.02), random().mul_(DRIFT)
        self.rows = torch.empty(self.count, self.columns, dtype=kind, **where)
        for t, row in enumerate(self.rows, 1):
            row.copy_(random().mul_(NOISE).add_(base).add_(drift, alpha=t / self.count))
        self.base = base.to(kind)
        self.out = torch.empty(max(TARGETS), self.columns, dtype=kind, **where)
        self.u = np.random.default_rng(2).standard_normal((self.count, 4)).astype(np.float32)
        self.w = np.random.default_rng(3).standard_normal((4, self.count)) / self.count
        self._references: dict[int, NDArray[np.float64]] = {}

    @property
    def strip(self) -> int:
        return self.columns * self.item

    def strips(self, columns: int | None = None) -> Strips:
        """From column 0 on."""
        at = self.rows.data_ptr() + np.arange(self.count, dtype=np.uint64) * np.uint64(self.strip)
        codes = np.full(self.count, self.code, np.uint8)
        return Strips(at, codes, self.base.data_ptr(), self.code, columns or self.columns)

    def gram(self, strips: Strips) -> NDArray[np.float64]:
        sums = self.backend.zeros(self.count, self.count)
        self.backend.gram(strips, sums)
        return np.tril(self.backend.fetch(sums))

    def power(self, strips: Strips, k: int) -> NDArray[np.float64]:
        sums = self.backend.zeros(self.count, k)
        self.backend.power_step(strips, np.ascontiguousarray(self.u[:, :k]), sums, None)
        return self.backend.fetch(sums)

    def combine(self, strips: Strips, targets: int) -> None:
        out = np.array([row.data_ptr() for row in self.out[:targets]], np.uint64)
        weights = np.ascontiguousarray(self.w[:targets])
        self.backend.combine(strips, weights, out, self.code)

    def blocks(self, columns: int) -> Iterator[tuple[int, Any, Any]]:
        """(first column, base, deltas) in float64, on the device."""
        width = max(1, (1 << 26) // self.count // PART) * PART
        for c in range(0, columns, width):
            end = min(c + width, columns)
            base = self.base[c:end].double()
            yield c, base, self.rows[:, c:end].double() - base

    def reference(self, columns: int) -> NDArray[np.float64]:
        """G by torch in float64."""
        if columns in self._references:
            return self._references[columns]
        sums = self.torch.zeros(
            self.count, self.count, dtype=self.torch.float64, device=self.device.device
        )
        for _, _, deltas in self.blocks(columns):
            whole = deltas.shape[1] // PART * PART
            parts = deltas[:, :whole].reshape(self.count, -1, PART).transpose(0, 1)
            sums += self.torch.bmm(parts, parts.mT).sum(0)
            sums += deltas[:, whole:] @ deltas[:, whole:].mT
        found = self._references[columns] = sums.cpu().numpy()
        return found


# ---- verified ----------------------------------------------------------------------------------


def verify_gram(data: Data) -> float:
    """The largest error, over all columns and over an odd number of them; twice the same bytes."""
    worst = 0.0
    for columns in (data.columns, odd(data)):
        expected = data.reference(columns)
        found = data.gram(data.strips(columns))
        scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        worst = max(worst, largest(np.tril(found - expected) / scale))
        if not np.array_equal(found, data.gram(data.strips(columns))):
            raise Wrong(f"gram of {columns} columns: other bytes the second time")
    return within("gram", worst, GRAM)


def verify_power(data: Data, k: int) -> float:
    worst = 0.0
    u = data.u[:, :k].astype(np.float64)
    for columns in (data.columns, odd(data)):
        g = data.reference(columns)
        scale = np.sqrt(np.outer(np.diag(g), np.einsum("tk,ts,sk->k", u, g, u)))
        worst = max(worst, largest((data.power(data.strips(columns), k) - g @ u) / scale))
    return within(f"power_step, k = {k}", worst, POWER)


def verify_combine(data: Data, targets: int) -> float:
    """The CPU backend's very bits at both ends, and nearly always the float64 sum's rounding in
    between. The share of outputs where it is not."""
    data.out.view(data.word).fill_(-1)  # a NaN: what is not written shows
    data.combine(data.strips(), targets)
    width = odd(data)
    for c in {0, data.columns - width}:
        rows = data.rows[:, c : c + width].contiguous().view(data.word).cpu().numpy()
        base = data.base[c : c + width].view(data.word).cpu().numpy()
        expected = np.empty((targets, width), rows.dtype)
        CpuBackend().combine(
            Strips(addresses(rows), np.full(data.count, data.code, np.uint8), base.ctypes.data,
                   data.code, width),
            np.ascontiguousarray(data.w[:targets]), addresses(expected), data.code,
        )  # fmt: skip
        found = data.out[:targets, c : c + width].view(data.word).cpu().numpy()
        off = np.count_nonzero(found != expected)
        if off:
            raise Wrong(f"combine × {targets}: {off} of {found.size} differ from the CPU's bits")
    weights = data.torch.from_numpy(data.w[:targets]).to(data.device.device)
    equal = 0
    for c, base, deltas in data.blocks(data.columns):
        sums = (base + weights @ deltas).to(data.out.dtype)
        equal += int((sums == data.out[:targets, c : c + len(base)]).sum())
    return within(f"combine × {targets}", 1 - equal / (targets * data.columns), 1 - EQUAL)


def odd(data: Data) -> int:
    return min(3 * _core.SEGMENT, data.columns - PART // 2) + 17


def addresses(rows: NDArray[Any]) -> NDArray[np.uint64]:
    return np.array([row.ctypes.data for row in rows], np.uint64)


def largest(errors: NDArray[np.float64]) -> float:
    return float(np.abs(errors).max()) if np.isfinite(errors).all() else float("inf")


def within(what: str, error: float, tolerance: float) -> float:
    if not error <= tolerance:
        raise Wrong(f"{what}: off by {error:.1e}, expected at most {tolerance:.0e}")
    return error


# ---- timed -------------------------------------------------------------------------------------


def kernels(device: Device, job: Job) -> Iterator[Entry]:
    """Each operation of one backend on one shape: verified, then timed in interleaved rounds."""
    data = Data(device, open_backend(job["backend"], device), job)
    strips, read = data.strips(), (data.count + 1) * data.strip
    shape = {k: job[k] for k in ("backend", "rows", "dtype")} | {"columns": data.columns}
    g = data.backend.zeros(data.count, data.count)
    known: dict[str, tuple[Callable[[], float], Callable[[], object], int]] = {
        "gram": (partial(verify_gram, data), lambda: data.backend.gram(strips, g), read)
    }
    for k in VECTORS:
        u, y = np.ascontiguousarray(data.u[:, :k]), data.backend.zeros(data.count, k)
        step = partial(data.backend.power_step, strips, u, y, None)
        known[f"power_step, k = {k}"] = (partial(verify_power, data, k), step, read)
    for targets in TARGETS:
        write = partial(data.combine, strips, targets)
        size = read + targets * data.strip
        known[f"combine × {targets}"] = (partial(verify_combine, data, targets), write, size)
    clocks, errors = {}, {}
    for name, (verify, work, _) in known.items():
        try:
            errors[name] = verify()
            clocks[name] = device.case(work)
        except Exception as error:
            device.wait()  # raises if the context is lost, and with it all the others
            failed = {"failed": reason(error), "wrong": isinstance(error, Wrong)}
            yield {"case": name, **shape, **failed}
    for name, times in common.interleaved(clocks, job["runs"]).items():
        entry = {"case": name, **shape, "error": errors[name], "seconds": times.values}
        entry["bytes"] = known[name][2]
        if name == "gram":
            entry["flops"] = data.count**2 * data.columns
        yield entry
