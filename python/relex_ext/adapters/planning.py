"""What a run over adapters will do: bytes and memory, from headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from relex_ext.adapters import gram, movement
from relex_ext.adapters.trajectory import LowRank
from relex_ext.backends import Choice, open_backends
from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.plan import SOLVERS, Plan, TensorPlan
from relex_ext.sizes import enough, parse_bytes
from relex_ext.trajectory import Trajectory

MOST_WORKERS = 16
"""Each has blocks of its own in memory."""


@dataclass(frozen=True, slots=True)
class AdapterPlan(Plan):
    """Of a run over adapters; ``workers`` threads multiply factors."""

    workers: int = 1


def choose(backend: str, threads: int | None, device: object, delta_dtype: str) -> Choice:
    """The processor, which alone multiplies factors.

    Raises:
        InputError: something else was asked for.
    """
    if backend not in ("auto", "cpu", "reference"):
        raise InputError(
            f"backend: expected auto, cpu or reference with LoRA adapters, found {backend}"
        )
    if device is not None:
        raise InputError(f"device: expected none with LoRA adapters, found {device}")
    if delta_dtype != "F32":
        raise InputError(f"delta_dtype: expected float32 with LoRA adapters, found {delta_dtype}")
    return open_backends("cpu" if backend == "auto" else backend, threads)


def make_plan(
    trajectory: Trajectory,
    threads: int,
    *,
    targets: int,
    scanned: bool,
    solver: str = "auto",
    rank: int = 1,
    memory_limit: str | int | None = None,
    io: str = "auto",
    dtype: str | None = None,
    rows_read: Mapping[str, Sequence[int]] | None = None,
    apart: bool = False,
) -> AdapterPlan:
    """The same as :func:`relex_ext.plan.make_plan`, for adapters.

    Raises:
        InputError: a solver or io that adapters have no use for, or a memory limit too small.
    """
    if solver not in SOLVERS or solver == "power":
        raise InputError(f"solver: expected auto or gram with LoRA adapters, found {solver}")
    if io not in ("auto", "pread"):
        raise InputError(f"io: expected auto or pread with LoRA adapters, found {io}")
    limit = parse_bytes(memory_limit)
    kind = "none" if scanned else "gram"
    tensors = [tensor for tensor in trajectory.trained if isinstance(tensor, LowRank)]
    need = kept = read = written = 0
    for tensor in tensors:
        factors = tensor.nbytes - tensor.base.nbytes
        if not scanned:
            read += factors
        out = dtype or tensor.base.dtype
        if targets:
            read += tensor.nbytes
            written += targets * tensor.columns * ITEM_SIZE[out]
        if tensor.pairs and targets:
            need = max(need, movement.memory(tensor, targets))
            kept = max(kept, movement.stack_bytes(tensor, 4 if out == "BF16" else 8))
        if tensor.pairs and not scanned:
            need = max(need, gram.memory(tensor))
    if limit < need:
        raise InputError(
            f"memory_limit: expected at least {enough(need)} with these adapters, found {limit}"
        )
    carried = sum(t.base.nbytes for t in trajectory.tensors if not t.trained)
    strips = sum(tensor.nbytes for tensor in tensors)
    workers = min(threads, MOST_WORKERS, limit // need if need else 1)
    return AdapterPlan(
        tensors=tuple(_whole(tensor, kind) for tensor in tensors),
        io="pread",
        io_reason="factors of LoRA adapters",
        memory_limit=limit,
        strip_budget=limit - need * workers,
        staging=None,
        bytes_read=read,
        passes=read / strips if strips else 0.0,
        peak_memory=min(limit, need * workers + kept),
        bytes_written=written + targets * carried,
        apart=apart,
        workers=workers,
    )


def _whole(tensor: LowRank, solver: str) -> TensorPlan:
    """One window and one span, which no process shares: rows of a product are not columns."""
    whole = max(tensor.columns, 1)
    return TensorPlan(tensor, tensor.columns, False, solver, span=whole)
