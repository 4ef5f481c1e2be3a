"""RELEX's forecast for a module in memory: its parameters are moved to a later step, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relex_ext import ops
from relex_ext.errors import InputError
from relex_ext.forecasts import Spectrum, Weights, check_targets
from relex_ext.inmemory import NotFinite, finite_gram, kernels_for, leading_spectrum, open_source
from relex_ext.methods import AUTO, Options, scan_solver, weigh_scan, weigh_unscanned
from relex_ext.scans import Scan

Named: TypeAlias = "Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]"


@dataclass(frozen=True)
class _Move:
    """One tensor of the module and where it comes from."""

    name: str
    to: Tensor
    base: Tensor
    rows: Sequence[Tensor]


def extrapolate_module(
    module: torch.nn.Module,
    base: Named,
    snapshots: Mapping[int, Named],
    target_step: float,
    *,
    rank: int = 1,
    solver: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    time_axis: str = "step",
    step_scale: float = 1.0,
    method: str = "relex",
    fit: str = "linear",
    degree: int | None = None,
    window: int | None = None,
    refit: int | None = None,
    alpha: float | None = None,
    decay: float | None = None,
    strength: float | str = 1.0,
) -> Weights:
    """Move a module's parameters to RELEX's forecast of ``target_step``, in place.

    What :func:`relex_ext.extrapolate` writes for folders with these tensors, to the bit on the same
    backend. Parameters keep their identity, storage, device and dtype, so that optimizers, tied
    weights, compiled modules and hooks go on working. Everything is checked and every weight is
    known before the first parameter changes: an InputError leaves the module as it was.

    Moved are all parameters, tied ones once, and those floating-point buffers that the newest
    snapshot has. Integer tensors stay as they are; tensors that only the snapshots have are not
    looked at. Where a tensor did not move between base and snapshots, the base's values are put in.

    Args:
        module: its parameters are overwritten, whatever they were; float32, float16 or bfloat16.
        base: step 0 (θ₀): a state dict, or pairs of name and tensor, named as in
            ``module.state_dict()``. It must not share memory with a snapshot.
        snapshots: step → the same for at least two steps, of any of the three dtypes. They may lie
            on another device than the module, all of one name on one device, and work happens
            there. A state dict refers to the live parameters: keep clones.
        target_step: the step to move to, in the unit of the snapshots' steps.
        rank, time_axis, step_scale, method, fit, degree, window, refit, alpha, decay, strength: see
            :func:`relex_ext.forecast`.
        solver: ``"gram"``, ``"power"`` or ``"auto"``.
        backend, threads: see :func:`relex_ext.gram`.

    Returns:
        The weights behind the forecast, by the newest snapshot's names.

    Raises:
        InputError: a tensor that is missing, of another shape, not finite, sharded (DTensor) or
            without data (meta), or options that do not fit.
    """
    options = Options(
        rank, time_axis, step_scale, method, fit, degree, window, refit, alpha, decay, strength
    )
    targets = check_targets(target_step)
    if len(targets) != 1:
        raise InputError(f"target_step: expected one step, found {len(targets)}")
    steps = _steps(snapshots)
    options.check(steps, targets)
    moves = _moves(module, _named(base), {step: _named(snapshots[step]) for step in steps})
    if options.spectral or options.strength == AUTO:
        scan = _scan(moves, steps, options, solver, backend, threads)
        found = weigh_scan(scan, steps, targets, options)
    else:
        found = weigh_unscanned([move.name for move in moves], steps, targets, options)
    with torch.no_grad():
        for move in moves:
            kernels = kernels_for(move.rows, backend, threads)
            weights = ops.matrix_of(found.tensors[move.name])
            move.to.copy_(ops.combine(move.rows, move.base, weights, move.to.dtype, kernels)[0])
    return found


def _scan(
    moves: Sequence[_Move],
    steps: tuple[int, ...],
    options: Options,
    solver: str,
    backend: str,
    threads: int | None,
) -> Scan:
    """What the pipeline's scan of these tensors has, without the files it would be made from."""
    solver = scan_solver(solver, options.strength)
    grams: dict[str, NDArray[np.float64]] = {}
    spectra: dict[str, Spectrum] = {}
    for move in moves:
        source = open_source(move.rows, move.base, backend, threads)
        try:
            if options.strength == AUTO:
                grams[move.name] = finite_gram(source)
            else:
                spectra[move.name] = leading_spectrum(source, solver, options.rank)
        except NotFinite as error:
            raise InputError(
                f"tensor {move.name}: NaN or Inf in step {steps[error.row]} or the base"
            ) from None
    return Scan(steps, grams, spectra, {})


def _steps(snapshots: Mapping[int, Named]) -> tuple[int, ...]:
    for step in snapshots:
        if not isinstance(step, (int, np.integer)):
            raise InputError(f"snapshots: expected steps to state dicts, found the key {step!r}")
    if len(snapshots) < 2:
        raise InputError(f"snapshots: expected at least 2 steps, found {len(snapshots)}")
    return tuple(sorted(int(step) for step in snapshots))


def _named(tensors: Named) -> Mapping[str, Tensor]:
    return tensors if isinstance(tensors, Mapping) else dict(tensors)


def _moves(
    module: torch.nn.Module,
    base: Mapping[str, Tensor],
    snapshots: Mapping[int, Mapping[str, Tensor]],
) -> list[_Move]:
    """What is to be moved, in the module's order; ``snapshots`` by increasing step.

    Raises:
        InputError: something that does not fit.
    """
    newest = snapshots[max(snapshots)]
    sources = {"base": base, **{f"step {step}": found for step, found in snapshots.items()}}
    moves = []
    for names, to in _targets(module, newest):
        found = {where: _find(names, where, tensors) for where, tensors in sources.items()}
        name = next(n for n in names if n in newest)
        _check_tensor("module", name, to, to)
        for where, tensor in found.items():
            _check_tensor(where, name, tensor, to)
            if tensor.device != found["base"].device:
                raise _wrong(where, name, "device", found["base"].device, tensor.device)
        origin, *rows = found.values()
        moves.append(_Move(name, to, origin, rows))
    if not moves:
        raise InputError("module: expected floating-point parameters, found none")
    _check_apart(moves, tuple(snapshots))
    return moves


def _targets(
    module: torch.nn.Module, newest: Mapping[str, Tensor]
) -> list[tuple[list[str], Tensor]]:
    """The tensors to move, each once, with all its names."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}

    def add(name: str, tensor: Tensor) -> None:
        if tensor.is_floating_point():
            names.setdefault(id(tensor), []).append(name)
            tensors[id(tensor)] = tensor

    for name, parameter in module.named_parameters(remove_duplicate=False):
        add(name, parameter)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if name in newest:
            add(name, buffer)
    return [(names[key], tensor) for key, tensor in tensors.items()]


def _find(names: Sequence[str], where: str, tensors: Mapping[str, Tensor]) -> Tensor:
    for name in names:
        if name in tensors:
            return tensors[name]
    raise InputError(f"{where}: tensor {names[0]}: missing")


def _wrong(where: str, name: str, what: str, expected: object, found: object) -> InputError:
    return InputError(f"{where}: tensor {name}: {what}: expected {expected}, found {found}")


_PLAIN: Callable[..., object] = torch.Tensor.__torch_dispatch__


def _check_tensor(where: str, name: str, tensor: Tensor, model: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(
            f"{where}: tensor {name}: expected a tensor, found {type(tensor).__name__}"
        )
    if type(tensor).__torch_dispatch__ is not _PLAIN:  # DTensor and others that hold no plain data
        kind = type(tensor).__name__
        hint = "; gather it first (full_tensor())" if hasattr(tensor, "full_tensor") else ""
        raise InputError(f"{where}: tensor {name}: expected a plain tensor, found {kind}{hint}")
    if tensor.is_meta:
        raise InputError(f"{where}: tensor {name}: expected data, found a tensor on meta")
    if tensor.shape != model.shape:
        raise _wrong(where, name, "shape", list(model.shape), list(tensor.shape))
    if tensor.dtype not in ops.CODE_OF:
        raise _wrong(where, name, "dtype", "float32, float16 or bfloat16", tensor.dtype)
    if tensor.layout != torch.strided:
        raise _wrong(where, name, "layout", torch.strided, tensor.layout)


def _check_apart(moves: Sequence[_Move], steps: Sequence[int]) -> None:
    """State dicts that were kept without cloning are all the same, live parameters."""
    seen: dict[tuple[int, ...], int] = {}
    for i, step in enumerate(steps):
        places = tuple(move.rows[i].data_ptr() for move in moves if move.to.numel() > 0)
        if places in seen:
            raise InputError(
                f"snapshots: steps {seen[places]} and {step} are the same memory; "
                "expected a clone of each state dict"
            )
        seen[places] = step
