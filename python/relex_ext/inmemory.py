"""The three operations, and RELEX's rank-1 analysis, on arrays that are in memory already."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from relex_ext import dtypes, power
from relex_ext.backends import Backend, Strips
from relex_ext.backends.cpu import CpuBackend
from relex_ext.backends.reference import ReferenceBackend
from relex_ext.errors import InputError
from relex_ext.forecasts import Spectrum, spectrum_of_gram
from relex_ext.plan import GRAM_RATE, SOLVERS, choose_solver

if TYPE_CHECKING:
    import torch

    from relex_ext import ops


class Rank1(NamedTuple):
    """``u``: (T,) float64, unit norm, Σ u ≥ 0; ``sigma``; ``explained_variance``: σ²/Σ‖Δ_t‖²."""

    u: NDArray[np.float64]
    sigma: float
    explained_variance: float


def gram(
    snapshots: Any, base: Any = None, *, backend: str = "auto", threads: int | None = None
) -> Any:
    """G = ΔΔᵀ of the deltas Δ_t = snapshots[t] − base, each flattened.

    On tensors this is the operator ``torch.ops.relex.gram`` (:mod:`relex_ext.ops`): it runs under
    torch.compile, and on a GPU it is queued on the current stream and not waited for. NaN and Inf
    in a snapshot show on the diagonal.

    Args:
        snapshots: T arrays or tensors of one shape, or one whose first axis is time: numpy float32
            or float16, torch float32, float16 or bfloat16, mixed freely, tensors all on one
            device. Contiguous ones are used where they lie, others are copied.
        base: one array of that shape, or None for zeros (the snapshots are the deltas).
        backend: ``"auto"``; in the processor's memory ``"cpu"`` or ``"reference"`` (numpy
            float64); on a GPU ``"cuda"`` or ``"triton"``.
        threads: of the CPU's arithmetic; by default every processor this process may use for
            arrays, as many as torch takes for tensors. Changes no bit.

    Returns:
        (T, T) float64, symmetric: a tensor on the inputs' device, or a numpy array if no input is
        a tensor.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, no snapshot, an unknown backend.
    """
    rows, base = _given(snapshots, base)
    if not _tensors_among(rows, base):
        return _Arrays(rows, base, _host_backend(backend, threads)).gram()
    from relex_ext import ops

    if backend == "auto" and threads is None:
        return ops.relex.gram(rows, base)
    return ops.gram(rows, base, kernels_for(rows, backend, threads))


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
        snapshots, base, backend, threads: see :func:`gram`. From a GPU only T-sized results come.
        solver: ``"gram"``, ``"power"`` or ``"auto"``.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, no snapshot, NaN or Inf.
    """
    try:
        spectrum = leading_spectrum(open_source(snapshots, base, backend, threads), solver)
    except NotFinite as error:
        raise InputError(
            f"snapshots[{error.row}] or base: expected finite values, found NaN or Inf"
        ) from None
    share = spectrum.sigma[0] ** 2 / spectrum.energy if spectrum.energy > 0 else 0.0
    return Rank1(spectrum.u[:, 0].copy(), float(spectrum.sigma[0]), float(share))


def combine_tensors(
    snapshots: Any,
    weights: Any,
    base: Any = None,
    *,
    dtype: Any = None,
    backend: str = "auto",
    threads: int | None = None,
) -> Any:
    """base + Σ_t w_t (snapshots[t] − base), rounded once, for each row of ``weights``.

    On tensors this is the operator ``torch.ops.relex.combine``, as in :func:`gram`. Where all
    weights of a row are zero the result is the base, in the base's own dtype bit for bit.

    Args:
        snapshots, base, backend, threads: see :func:`gram`.
        weights: (targets, T), or (T,) for one target; taken as float64. Those on a GPU are not
            copied to the host.
        dtype: of the results, torch's, numpy's or a name (``"bf16"``); by default the last
            snapshot's. bfloat16 is for tensors only.

    Returns:
        A list of one array or tensor of the snapshots' shape per row of ``weights``, contiguous;
        that one itself for weights of one axis.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, no snapshot, an unknown backend.
    """
    rows, base = _given(snapshots, base)
    if not _tensors_among(rows, base):
        arrays = _Arrays(rows, base, _host_backend(backend, threads))
        table = _numbers(weights)
        made = arrays.combine(np.atleast_2d(table), dtype)
        return made[0] if table.ndim == 1 else made
    from relex_ext import ops

    kind = None if dtype is None else ops.dtype_of(dtype)
    given = ops.matrix_of(weights)
    matrix = given.unsqueeze(0) if given.dim() == 1 else given
    if backend == "auto" and threads is None:
        found = ops.relex.combine(rows, base, matrix, dtype=kind)
    else:
        found = ops.combine(rows, base, matrix, kind, kernels_for(rows, backend, threads))
    return found[0] if given.dim() == 1 else found


# ---- what is given -----------------------------------------------------------------------------


def _given(snapshots: Any, base: Any) -> tuple[list[Any], Any]:
    """The snapshots as a list; arrays among tensors become tensors that share their memory."""
    rows = list(snapshots)
    if not _tensors_among(rows, base):
        return rows, base
    from relex_ext import ops

    rows = [ops.as_tensor(row, f"snapshots[{t}]") for t, row in enumerate(rows)]
    return rows, None if base is None else ops.as_tensor(base, "base")


def _tensors_among(rows: Sequence[Any], base: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever passes a tensor has imported it
    return torch is not None and any(isinstance(x, torch.Tensor) for x in (*rows, base))


def _host_backend(name: str, threads: int | None) -> Backend:
    """For arrays in the processor's memory, whatever else the machine has."""
    if name in ("auto", "cpu"):
        return CpuBackend(threads)
    if name == "reference":
        return ReferenceBackend()
    raise InputError(f"backend: expected auto, cpu or reference for arrays in memory, found {name}")


def kernels_for(rows: Sequence[torch.Tensor], backend: str, threads: int | None) -> ops.Kernels:
    from relex_ext import ops

    if len(rows) == 0 or rows[0].device.type == "cpu":
        count = ops.default_threads() if threads is None else threads
        return ops.HostKernels(_host_backend(backend, count))
    return ops.device_kernels(rows[0].device, backend)


class _Arrays:
    """Numpy arrays, checked, as strips for a backend."""

    def __init__(self, rows: Sequence[Any], base: Any, backend: Backend) -> None:
        if not rows:
            raise InputError("snapshots: expected at least 1, found none")
        self._arrays = [_array(row, f"snapshots[{t}]") for t, row in enumerate(rows)]
        self._base = None if base is None else _array(base, "base")
        self._backend = backend
        self.isa = getattr(backend, "isa", "scalar")
        self.rows = len(rows)
        shape = self._arrays[0].shape
        for t, array in enumerate(self._arrays):
            if array.shape != shape:
                raise InputError(f"snapshots[{t}]: expected shape {shape}, found {array.shape}")
        if self._base is not None and self._base.shape != shape:
            raise InputError(f"base: expected shape {shape}, found {self._base.shape}")
        self.columns = self._arrays[0].size
        self._strips = Strips(
            np.array([array.ctypes.data for array in self._arrays], np.uint64),
            np.array([_code(array) for array in self._arrays], np.uint8),
            0 if self._base is None else self._base.ctypes.data,
            0 if self._base is None else _code(self._base),
            self.columns,
        )

    def gram(self) -> NDArray[np.float64]:
        sums = np.zeros((self.rows, self.rows))
        self._backend.gram(self._strips, sums)
        found: NDArray[np.float64] = np.tril(sums) + np.tril(sums, -1).T
        return found

    def power_step(
        self, u: NDArray[np.float32], energy: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        y = np.zeros(u.shape)
        self._backend.power_step(self._strips, u, y, energy)
        return y

    def combine(self, weights: NDArray[np.float64], dtype: Any) -> list[NDArray[Any]]:
        if weights.ndim != 2 or weights.shape[1] != self.rows:
            expected = f"(targets, {self.rows})"
            raise InputError(f"weights: expected shape {expected}, found {weights.shape}")
        name = dtypes.NAMES[_code(self._arrays[-1])] if dtype is None else dtype_name(dtype)
        if name == "BF16":
            raise InputError("dtype: expected float32 or float16 for arrays, found bfloat16")
        kind = np.float32 if name == "F32" else np.float16
        out: list[NDArray[Any]] = [np.empty(self._arrays[0].shape, kind) for _ in weights]
        addresses = np.array([array.ctypes.data for array in out], np.uint64)
        if out:
            table = np.ascontiguousarray(weights)
            self._backend.combine(self._strips, table, addresses, dtypes.CODES[name])
        return out


class _Tensors:
    """Torch tensors, checked; results are brought to the host."""

    def __init__(self, rows: Sequence[torch.Tensor], base: Any, kernels: ops.Kernels) -> None:
        from relex_ext import ops

        self._ops, self._rows, self._base, self._kernels = ops, rows, base, kernels
        self.isa = kernels.isa
        self.rows = len(rows)
        self.columns = rows[0].numel()

    def gram(self) -> NDArray[np.float64]:
        found: NDArray[np.float64] = (
            self._ops.gram(self._rows, self._base, self._kernels).cpu().numpy()
        )
        return found

    def power_step(
        self, u: NDArray[np.float32], energy: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        y, squares = self._ops.power_step(
            self._rows, self._base, self._ops.matrix_of(u), self._kernels
        )
        if energy is not None:
            energy += squares.cpu().numpy()
        found: NDArray[np.float64] = y.cpu().numpy()
        return found


def _array(array: Any, name: str) -> NDArray[Any]:
    """The array itself, copied only if it is not contiguous."""
    values = np.asarray(array, order="C")
    if values.dtype not in (np.float32, np.float16):
        raise InputError(
            f"{name}: expected numpy float32 or float16, or a torch tensor, found {values.dtype}"
        )
    return values


def _numbers(weights: Any) -> NDArray[np.float64]:
    try:
        table = np.asarray(weights.detach().cpu() if hasattr(weights, "detach") else weights)
        return table.astype(np.float64, casting="same_kind")
    except (TypeError, ValueError):
        raise InputError("weights: expected numbers of one or two axes, found others") from None


def _code(array: NDArray[Any]) -> int:
    return dtypes.CODES[dtypes.parse(array.dtype.name)]


def dtype_name(dtype: Any) -> str:
    """``torch.bfloat16``, ``np.float32``, ``"fp16"`` → ``"BF16"``, ``"F32"``, ``"F16"``."""
    if isinstance(dtype, (type, np.dtype)):  # numpy's scalar types are classes
        return dtypes.parse(np.dtype(dtype).name)
    return dtypes.parse(str(dtype))


# ---- the leading pairs -------------------------------------------------------------------------


class Source(Protocol):
    """T rows of one tensor's deltas, whole, wherever they lie. ``isa``: see choose_solver."""

    isa: str
    rows: int
    columns: int

    def gram(self) -> NDArray[np.float64]:
        """(T, T), symmetric."""

    def power_step(
        self, u: NDArray[np.float32], energy: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Δ(Δᵀu), (T, k); adds ‖Δ_t‖² to ``energy`` (T)."""


class NotFinite(ValueError):
    """NaN or Inf in the base or a snapshot, ``row``."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def open_source(snapshots: Any, base: Any, backend: str, threads: int | None) -> Source:
    """The deltas of :func:`gram`'s inputs."""
    rows, base = _given(snapshots, base)
    if _tensors_among(rows, base):
        from relex_ext import ops

        ops.check(rows, base)
        if rows[0].is_meta:
            raise InputError("snapshots: expected data, found tensors on meta")
        return _Tensors(rows, base, kernels_for(rows, backend, threads))
    return _Arrays(rows, base, _host_backend(backend, threads))


def leading_spectrum(source: Source, solver: str, rank: int = 1) -> Spectrum:
    """As the pipeline finds it; auto does not count what reading shards takes.

    Raises:
        InputError: an unknown solver.
        NotFinite: the deltas are not.
    """
    if solver not in SOLVERS:
        raise InputError(f"solver: expected one of {', '.join(SOLVERS)}, found {solver}")
    t = source.rows
    if solver == "auto" and source.isa not in GRAM_RATE:
        solver = "gram"  # tensor cores make G cheaper than a second look at the data
    if choose_solver(solver, source.isa, t, rank, stored=False) == "power":
        energy = np.zeros(t)

        def step(u: NDArray[np.float32]) -> NDArray[np.float64]:
            first = not energy.any()
            y = source.power_step(u, energy if first else None)
            if first:
                power.check_range(y, energy, source.columns)
            return y

        try:
            u, values, _, _ = power.solve(step, t, rank)
            return power.spectrum(u, values, float(energy.sum()))
        except power.OutOfRange:
            pass  # the Gram's fp64 path answers
    return spectrum_of_gram(finite_gram(source), rank)


def finite_gram(source: Source) -> NDArray[np.float64]:
    """G (T, T).

    Raises:
        NotFinite: the deltas are not.
    """
    found = source.gram()
    wrong = np.flatnonzero(~np.isfinite(np.diag(found)))
    if wrong.size > 0:
        raise NotFinite(int(wrong[0]))
    return found
