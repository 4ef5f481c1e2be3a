"""The three operations as torch operators: ``torch.ops.relex.gram``, ``power_step``, ``combine``.

    relex::gram(Tensor[] snapshots, Tensor? base) -> Tensor
    relex::power_step(Tensor[] snapshots, Tensor? base, Tensor u) -> (Tensor y, Tensor energy)
    relex::combine(Tensor[] snapshots, Tensor? base, Tensor weights, ScalarType? dtype) -> Tensor[]

Importing this module registers them. ``snapshots`` are T tensors of one shape on one device,
float32, float16 or bfloat16 in any mix, and ``base`` is one more or None for zeros; deltas are
Δ_t = snapshot_t − base over all elements. What is not contiguous is copied first. Results:

- ``gram``: ΔΔᵀ, (T, T) float64, symmetric.
- ``power_step``: y = Δ(Δᵀu), (T, k) float64, for ``u`` (T, k), rounded to float32, k ≤ 64; and
  energy ‖Δ_t‖², (T,) float64.
- ``combine``: base + Σ_t w_t Δ_t, rounded once, for each row of ``weights`` (targets, T), as a list
  of tensors of the snapshots' shape; ``dtype``: one of the three, by default the last snapshot's.

Results lie on the snapshots' device; ``u`` and ``weights`` may lie there or on the CPU. On a GPU
the work is queued on its current stream, and nothing waits for it. On the CPU it takes as many
threads as torch does. Repeated calls give the same bytes. The operators are not differentiable:
results do not require grad, whatever the inputs do. Inputs that do not fit raise InputError, also
while torch.compile or a fake tensor only asks for shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, library

from relex_ext import _core
from relex_ext.backends import TABLE, Backend, Strips
from relex_ext.backends.cpu import CpuBackend
from relex_ext.dtypes import CODES
from relex_ext.errors import InputError
from relex_ext.inmemory import dtype_name

CODE_OF: dict[torch.dtype, int] = {
    torch.float32: CODES["F32"],
    torch.float16: CODES["F16"],
    torch.bfloat16: CODES["BF16"],
}


class Kernels(Protocol):
    """What does the arithmetic on one device, on its current stream.

    Strips hold addresses on that device, the tensors lie on it, contiguous: ``gram`` (T, T), ``y``
    (T, k) and ``energy`` (T) float64 to add to, ``u`` float32, ``weights`` float64. ``isa``: whose
    rates choose_solver goes by.
    """

    isa: str

    def gram(self, strips: Strips, gram: Tensor) -> None: ...

    def power_step(self, strips: Strips, u: Tensor, y: Tensor, energy: Tensor) -> None: ...

    def combine(self, strips: Strips, weights: Tensor, out: Sequence[Tensor]) -> None: ...


class HostKernels:
    """A backend of the processor's memory: numpy views of the tensors, nothing is copied."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.isa = getattr(backend, "isa", "scalar")

    def gram(self, strips: Strips, gram: Tensor) -> None:
        self._backend.gram(strips, gram.numpy())

    def power_step(self, strips: Strips, u: Tensor, y: Tensor, energy: Tensor) -> None:
        self._backend.power_step(strips, u.numpy(), y.numpy(), energy.numpy())

    def combine(self, strips: Strips, weights: Tensor, out: Sequence[Tensor]) -> None:
        self._backend.combine(strips, weights.numpy(), _addresses(out), CODE_OF[out[0].dtype])


class CudaKernels:
    """The compiled CUDA kernels. ``kernels``: relex_ext._cuda, or the same sources compiled for the
    processor. Workspaces come from torch's allocator, which hands memory out again in the order of
    the stream: they need not outlive the call."""

    isa = "cuda"

    def __init__(self, device: torch.device, kernels: Any) -> None:
        self._device, self._kernels = device, kernels

    def gram(self, strips: Strips, gram: Tensor) -> None:
        needs = self._kernels.gram_needs(len(strips.rows), strips.columns)
        self._queue(self._kernels.gram, needs, strips, gram.data_ptr())

    def power_step(self, strips: Strips, u: Tensor, y: Tensor, energy: Tensor) -> None:
        k = u.shape[1]
        needs = self._kernels.power_step_needs(len(strips.rows), strips.columns, k)
        more = (u.data_ptr(), k, y.data_ptr(), energy.data_ptr())
        self._queue(self._kernels.power_step, needs, strips, *more)

    def combine(self, strips: Strips, weights: Tensor, out: Sequence[Tensor]) -> None:
        needs = self._kernels.combine_needs(len(strips.rows), len(out))
        more = (weights.data_ptr(), len(out), _addresses(out), CODE_OF[out[0].dtype])
        self._queue(self._kernels.combine, needs, strips, *more)

    def _queue(self, launch: Any, needs: tuple[int, int], s: Strips, *more: Any) -> None:
        least, most = needs
        try:
            space = torch.empty(most, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError:  # slower, the same bytes
            space = torch.empty(least, dtype=torch.uint8, device=self._device)
        emulated = self._device.type == "cpu"
        stream = 0 if emulated else torch.cuda.current_stream(self._device).cuda_stream
        launch(
            s.rows, s.dtypes, s.base, s.base_dtype, s.columns, *more,
            space.data_ptr(), space.numel(), stream,
        )  # fmt: skip


class TritonKernels:
    """The Triton kernels. The strips' addresses reach the device in a table that a CUDA graph could
    not keep, so there is no capturing."""

    isa = "triton"

    def __init__(self, device: torch.device) -> None:
        from relex_ext.backends import triton, triton_kernels

        self._backend, self._kernels = triton.TritonBackend(device), triton_kernels
        self._capturable = device.type != "cuda"

    def gram(self, strips: Strips, gram: Tensor) -> None:
        self._kernels.gram(self._rows(strips), gram)

    def power_step(self, strips: Strips, u: Tensor, y: Tensor, energy: Tensor) -> None:
        self._kernels.power_step(self._rows(strips), u, y, energy)

    def combine(self, strips: Strips, weights: Tensor, out: Sequence[Tensor]) -> None:
        rows, code = self._rows(strips), CODE_OF[out[0].dtype]
        addresses = self._backend.to_device(_addresses(out).view(np.int64))
        for some in self._kernels.combine_passes(len(out)):
            part = weights[some]
            layout = self._kernels.combine_weights(np.zeros(part.shape), code)
            wide = layout.dtype == np.float64
            table = part.new_zeros(layout.shape, dtype=torch.float64 if wide else torch.float32)
            table[: part.shape[1], : part.shape[0]] = part.t()
            # torch allocates on 16 bytes and more
            self._kernels.combine(rows, table, addresses[some], code, 16)

    def _rows(self, strips: Strips) -> Any:
        if not self._capturable and torch.cuda.is_current_stream_capturing():
            raise InputError("backend triton: cannot be captured in a CUDA graph; cuda can")
        return self._backend._rows(strips)


def kernels_for(device: torch.device) -> Kernels:
    """What the operators compute with: the best there is for that device."""
    if device.type == "cpu":
        return HostKernels(CpuBackend(default_threads()))
    return device_kernels(device)


def default_threads() -> int:
    """Of the CPU's arithmetic on tensors: as many as torch's own takes."""
    return min(torch.get_num_threads(), 1024)


@cache
def device_kernels(device: torch.device, backend: str = "auto") -> Kernels:
    """``"cuda"``, ``"triton"`` or the first of them that runs on that device.

    Raises:
        InputError: none does; says why.
    """
    if backend not in ("auto", *_OPEN):
        expected = " or ".join(_OPEN)
        raise InputError(f"backend: expected auto, {expected} for {device}, found {backend}")
    reasons = []
    for name in _OPEN if backend == "auto" else (backend,):
        entry = TABLE[name]
        reason = entry.missing() or entry.refuses(str(device))
        if device.type not in entry.kinds:
            reason = "does not run on such devices"
        if reason is None:
            return _OPEN[name](device)
        reasons.append(f"{name}: {reason}")
    raise InputError(f"{device}: nothing computes there; {'; '.join(reasons)}")


def _open_cuda(device: torch.device) -> Kernels:
    return CudaKernels(device, import_module("relex_ext._cuda"))


_OPEN: dict[str, Callable[[torch.device], Kernels]] = {
    "cuda": _open_cuda,
    "triton": TritonKernels,
}


# ---- the operators -----------------------------------------------------------------------------


def gram(
    snapshots: Sequence[Tensor], base: Tensor | None, kernels: Kernels | None = None
) -> Tensor:
    """``relex::gram``. Without ``kernels``, here and below: those of :func:`kernels_for`."""
    check(snapshots, base)
    strips, held = _strips(snapshots, base)
    device, t = held[0].device, len(snapshots)
    sums = torch.zeros((t, t), dtype=torch.float64, device=device)
    if strips.columns > 0:
        with _on(device):
            (kernels or kernels_for(device)).gram(strips, sums)
            sums.tril_()
            sums += sums.tril(-1).mT
    return sums


def power_step(
    snapshots: Sequence[Tensor], base: Tensor | None, u: Tensor, kernels: Kernels | None = None
) -> tuple[Tensor, Tensor]:
    """``relex::power_step``."""
    check(snapshots, base)
    check_u(u, snapshots)
    strips, held = _strips(snapshots, base)
    device = held[0].device
    y = torch.zeros(u.shape, dtype=torch.float64, device=device)
    energy = torch.zeros(len(snapshots), dtype=torch.float64, device=device)
    if strips.columns > 0:
        with _on(device):
            vectors = _moved(u, torch.float32, device)
            (kernels or kernels_for(device)).power_step(strips, vectors, y, energy)
    return y, energy


def combine(
    snapshots: Sequence[Tensor],
    base: Tensor | None,
    weights: Tensor,
    dtype: torch.dtype | None = None,
    kernels: Kernels | None = None,
) -> list[Tensor]:
    """``relex::combine``."""
    check(snapshots, base)
    check_weights(weights, snapshots, dtype)
    strips, held = _strips(snapshots, base)
    device, shape = held[0].device, held[0].shape
    kind = snapshots[-1].dtype if dtype is None else dtype
    out = [torch.empty(shape, dtype=kind, device=device) for _ in range(weights.shape[0])]
    if strips.columns > 0 and out:
        with _on(device):
            table = _moved(weights, torch.float64, device)
            (kernels or kernels_for(device)).combine(strips, table, out)
    return out


def _strips(snapshots: Sequence[Tensor], base: Tensor | None) -> tuple[Strips, list[Tensor]]:
    """Where they lie, and what keeps them there until the work is queued."""
    held = [tensor.detach().contiguous() for tensor in snapshots]
    rows = _addresses(held)
    codes = np.array([CODE_OF[tensor.dtype] for tensor in held], np.uint8)
    if base is None:
        return Strips(rows, codes, 0, 0, held[0].numel()), held
    held.append(base.detach().contiguous())
    address, code = held[-1].data_ptr(), CODE_OF[base.dtype]
    return Strips(rows, codes, address, code, base.numel()), held


def _addresses(tensors: Sequence[Tensor]) -> NDArray[np.uint64]:
    return np.array([tensor.data_ptr() for tensor in tensors], np.uint64)


def _moved(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return tensor.detach().to(device, dtype, non_blocking=True).contiguous()


def _on(device: torch.device) -> Any:
    """Kernels are launched on the current device, which must be that of their stream."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


# ---- what they are given -----------------------------------------------------------------------


def check(snapshots: Sequence[Tensor], base: Tensor | None) -> None:
    """Reads no data, so that it can be asked of fake and meta tensors, too."""
    if len(snapshots) == 0:
        raise InputError("snapshots: expected at least 1, found none")
    if len(snapshots) > _core.MAX_ROWS:
        raise InputError(f"snapshots: expected at most {_core.MAX_ROWS}, found {len(snapshots)}")
    first = snapshots[0]
    for t, snapshot in enumerate(snapshots):
        _check_one(f"snapshots[{t}]", snapshot, first)
    if base is not None:
        _check_one("base", base, first)


def _check_one(name: str, tensor: Tensor, first: Tensor) -> None:
    if tensor.dtype not in CODE_OF:
        raise InputError(f"{name}: expected float32, float16 or bfloat16, found {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise InputError(f"{name}: expected a dense tensor, found {tensor.layout}")
    if tensor.device != first.device:
        raise InputError(f"{name}: expected a tensor on {first.device}, found {tensor.device}")
    if tensor.shape != first.shape:
        raise InputError(
            f"{name}: expected shape {tuple(first.shape)}, found {tuple(tensor.shape)}"
        )


def check_u(u: Tensor, snapshots: Sequence[Tensor]) -> None:
    _check_matrix("u", u, snapshots)
    t, k = len(snapshots), u.shape[1]
    if u.shape[0] != t or not 1 <= k <= _core.MAX_VECTORS:
        expected = f"({t}, 1 to {_core.MAX_VECTORS})"
        raise InputError(f"u: expected shape {expected}, found {tuple(u.shape)}")


def check_weights(weights: Tensor, snapshots: Sequence[Tensor], dtype: torch.dtype | None) -> None:
    _check_matrix("weights", weights, snapshots)
    if weights.shape[1] != len(snapshots):
        expected = f"(targets, {len(snapshots)})"
        raise InputError(f"weights: expected shape {expected}, found {tuple(weights.shape)}")
    if dtype is not None and dtype not in CODE_OF:
        raise InputError(f"dtype: expected float32, float16 or bfloat16, found {dtype}")


def _check_matrix(name: str, matrix: Tensor, snapshots: Sequence[Tensor]) -> None:
    if not matrix.is_floating_point():
        raise InputError(f"{name}: expected floating-point numbers, found {matrix.dtype}")
    if matrix.dim() != 2:
        raise InputError(f"{name}: expected 2 axes, found shape {tuple(matrix.shape)}")
    device = snapshots[0].device
    if matrix.device != device and matrix.device.type != "cpu":
        raise InputError(f"{name}: expected a tensor on {device}, found {matrix.device}")


def as_tensor(array: Any, name: str) -> Tensor:
    """A tensor as it is; an array as a tensor that shares its memory."""
    if isinstance(array, Tensor):
        return array
    values = np.asarray(array)
    try:  # torch warns of memory that it might write to
        return torch.from_numpy(values if values.flags.writeable else values.copy())
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected an array or tensor, found {values.dtype}") from None


def matrix_of(values: Any) -> Tensor:
    """A tensor as it is; numbers and arrays as float64 on the CPU."""
    if isinstance(values, Tensor):
        return values
    try:
        return torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError):
        raise InputError("weights: expected numbers of one or two axes, found others") from None


def dtype_of(dtype: Any) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype  # the operator checks it
    code = CODES[dtype_name(dtype)]
    return next(kind for kind, found in CODE_OF.items() if found == code)


# ---- their registration ------------------------------------------------------------------------


def _fake_gram(snapshots: Sequence[Tensor], base: Tensor | None) -> Tensor:
    check(snapshots, base)
    t = len(snapshots)
    return snapshots[0].new_empty((t, t), dtype=torch.float64)


def _fake_power_step(
    snapshots: Sequence[Tensor], base: Tensor | None, u: Tensor
) -> tuple[Tensor, Tensor]:
    check(snapshots, base)
    check_u(u, snapshots)
    first = snapshots[0]
    y = first.new_empty(u.shape, dtype=torch.float64)
    return y, first.new_empty((len(snapshots),), dtype=torch.float64)


def _fake_combine(
    snapshots: Sequence[Tensor],
    base: Tensor | None,
    weights: Tensor,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    check(snapshots, base)
    check_weights(weights, snapshots, dtype)
    last = snapshots[-1]
    return [last.new_empty(last.shape, dtype=dtype) for _ in range(weights.shape[0])]


_LIBRARY: Any = library.Library("relex", "DEF")  # type: ignore[no-untyped-call]


def _register(schema: str, run: Any, fake: Any) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # every device; kernels_for looks which
    # Not differentiable: without this, results would carry a grad_fn that warns.
    _LIBRARY.impl(name, library.fallthrough_kernel, "Autograd")
    library.register_fake(f"relex::{name}", fake, lib=_LIBRARY)


_register("gram(Tensor[] snapshots, Tensor? base) -> Tensor", gram, _fake_gram)
_register(
    "power_step(Tensor[] snapshots, Tensor? base, Tensor u) -> (Tensor y, Tensor energy)",
    power_step, _fake_power_step,
)  # fmt: skip
_register(
    "combine(Tensor[] snapshots, Tensor? base, Tensor weights, ScalarType? dtype=None)"
    " -> Tensor[]",
    combine, _fake_combine,
)  # fmt: skip

relex = torch.ops.relex
"""The registered operators."""
