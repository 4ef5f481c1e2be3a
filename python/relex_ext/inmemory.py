"""RELEX's rank-1 analysis of arrays that are in memory already."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from relex_ext import dtypes, power
from relex_ext.backends import Strips, open_backend
from relex_ext.errors import InputError
from relex_ext.forecasts import Spectrum, spectrum_of_gram
from relex_ext.job import isa_of
from relex_ext.plan import choose_solver


class Rank1(NamedTuple):
    """``u``: (T,) float64, unit norm, Σ u ≥ 0; ``sigma``; ``explained_variance``: σ²/Σ‖Δ_t‖²."""

    u: NDArray[np.float64]
    sigma: float
    explained_variance: float


def rank1(
    snapshots: Any,
    base: Any = None,
    *,
    solver: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
) -> Rank1:
    """The leading left singular vector and value of the stacked deltas snapshots[t] − base.

    Args:
        snapshots: T arrays or tensors of one shape, or one whose first axis is time: numpy float32
            or float16, torch float32, float16 or bfloat16 on the CPU. Contiguous ones are used
            where they lie.
        base: one array of that shape, or None for zeros (the snapshots are the deltas).
        solver: ``"gram"``, ``"power"`` or ``"auto"``.
        backend, threads: see :func:`relex_ext.extrapolate`.

    Raises:
        InputError: shapes or dtypes that do not fit, no snapshot, NaN or Inf.
    """
    rows = [_view(x, f"snapshots[{t}]") for t, x in enumerate(snapshots)]
    if not rows:
        raise InputError("snapshots: expected at least 1, found none")
    origin = None if base is None else _view(base, "base")
    for t, row in enumerate(rows):
        if row.shape != rows[0].shape:
            raise InputError(f"snapshots[{t}]: expected shape {rows[0].shape}, found {row.shape}")
    if origin is not None and origin.shape != rows[0].shape:
        raise InputError(f"base: expected shape {rows[0].shape}, found {origin.shape}")
    strips = Strips(
        np.array([row.address for row in rows], np.uint64),
        np.array([row.code for row in rows], np.uint8),
        0 if origin is None else origin.address,
        0 if origin is None else origin.code,
        int(np.prod(rows[0].shape)),
    )
    spectrum = leading_spectrum(strips, solver, backend, threads)
    if not np.isfinite(spectrum.energy):
        raise InputError("snapshots: expected finite values, found NaN or Inf")
    share = spectrum.sigma[0] ** 2 / spectrum.energy if spectrum.energy > 0 else 0.0
    return Rank1(spectrum.u[:, 0].copy(), float(spectrum.sigma[0]), float(share))


def leading_spectrum(
    strips: Strips, solver: str, backend: str, threads: int | None, rank: int = 1
) -> Spectrum:
    """The leading pairs of strips that lie in memory whole."""
    engine = open_backend(backend, threads)
    t = len(strips.rows)
    kind = choose_solver(solver, isa_of(engine), t, rank, resident=True)
    if kind not in ("gram", "power"):
        raise InputError(f"solver: expected auto, gram or power, found {solver}")
    energy = np.zeros(t)
    if kind == "power":

        def step(u: NDArray[np.float32]) -> NDArray[np.float64]:
            y = np.zeros(u.shape)
            first = not energy.any()
            engine.power_step(strips, u, y, energy if first else None)
            if first:
                power.check_range(y, energy, strips.columns)
            return y

        try:
            u, values, _, _ = power.solve(step, t, rank)
            return power.spectrum(u, values, float(energy.sum()))
        except power.OutOfRange:
            pass  # the Gram's fp64 path answers
    gram = np.zeros((t, t))
    engine.gram(strips, gram)
    if not np.isfinite(np.diag(gram)).all():
        return Spectrum(np.eye(t)[:, :1], np.zeros(1), float("nan"))
    return spectrum_of_gram(np.tril(gram) + np.tril(gram, -1).T, rank)


class _View(NamedTuple):
    address: int
    code: int
    shape: tuple[int, ...]
    owner: Any


def _view(array: Any, name: str) -> _View:
    """Address and dtype of a numpy array or torch tensor, copied only if it is not contiguous."""
    torch = sys.modules.get("torch")  # whoever passes a tensor has imported it
    if torch is not None and isinstance(array, torch.Tensor):
        if array.device.type != "cpu":
            raise InputError(f"{name}: expected a tensor on the CPU, found {array.device}")
        tensor = array.detach().contiguous()
        code = dtypes.CODES[dtypes.parse(str(tensor.dtype))]
        return _View(tensor.data_ptr(), code, tuple(tensor.shape), tensor)
    values = np.ascontiguousarray(array)
    if values.dtype not in (np.float32, np.float16):
        raise InputError(
            f"{name}: expected numpy float32 or float16, or a torch tensor, found {values.dtype}"
        )
    code = dtypes.CODES[dtypes.parse(values.dtype.name)]
    return _View(values.ctypes.data, code, tuple(np.shape(array)), values)
