"""Who does the arithmetic. One visible table; an explicit choice never falls back.

Nothing here imports torch unless a GPU may be there.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relex_ext.backends import available
from relex_ext.backends.contract import Backend, BackendError, Strips
from relex_ext.backends.cpu import CpuBackend
from relex_ext.backends.reference import ReferenceBackend
from relex_ext.errors import InputError

if TYPE_CHECKING:
    from relex_ext.backends.device import DeviceBackend

__all__ = [
    "AUTO", "TABLE", "Backend", "BackendError", "Choice", "Entry", "Strips", "fall_back",
    "open_backends",
]  # fmt: skip

LOG = logging.getLogger("relex_ext")


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    kinds: tuple[str, ...]
    """Of torch devices that it computes on; none: on the processor."""
    missing: Callable[[], str | None]
    """Why it cannot be had here, or None."""
    refuses: Callable[[str], str | None]
    """Why it does not run on a device of that name, or None."""
    open: Callable[[int | None, str], Backend]
    """(threads, device) → the backend."""


@dataclass(frozen=True)
class Choice:
    """What computes, ``backends`` side by side, each on a device of its own."""

    name: str
    backends: tuple[Backend, ...]
    reason: str
    fallback: bool
    """``auto`` chose it: where it cannot do the work, the processor may."""

    @property
    def on_devices(self) -> bool:
        return bool(TABLE[self.name].kinds)

    def devices(self) -> tuple[DeviceBackend, ...]:
        """The backends of a choice that is on devices."""
        from relex_ext.backends.device import DeviceBackend

        return tuple(b for b in self.backends if isinstance(b, DeviceBackend))

    def device_names(self) -> list[str]:
        """``["NVIDIA H200"]``: as their makers call them, each once."""
        if not self.on_devices:
            return []
        return list(dict.fromkeys(backend.accelerator.name for backend in self.devices()))

    def __str__(self) -> str:
        counts = Counter(backend.name for backend in self.backends)
        names = (f"{name} × {n}" if n > 1 else name for name, n in counts.items())
        return f"{', '.join(names)}: {self.reason}"


# ---- the table ---------------------------------------------------------------------------------


def _open_cuda(threads: int | None, device: str) -> Backend:
    import torch

    from relex_ext.backends.cuda import CudaBackend

    return CudaBackend(torch.device(device))


def _open_triton(threads: int | None, device: str) -> Backend:
    import torch

    from relex_ext.backends.triton import TritonBackend

    return TritonBackend(torch.device(device))


def _never(*_: str) -> str | None:
    return None


TABLE: dict[str, Entry] = {
    "cpu": Entry((), _never, _never, lambda threads, _: CpuBackend(threads)),
    "cuda": Entry(("cuda",), available.cuda_missing, available.cuda_refuses, _open_cuda),
    "triton": Entry(("cuda", "xpu"), available.triton_missing, _never, _open_triton),
    "reference": Entry((), _never, _never, lambda threads, _: ReferenceBackend()),
}

AUTO = ("cuda", "triton", "cpu")
"""What ``auto`` tries, the first that can be had."""


# ---- the choice --------------------------------------------------------------------------------


def open_backends(
    name: str,
    threads: int | None = None,
    device: str | Sequence[str] | None = None,
    delta_dtype: str = "F32",
) -> Choice:
    """The backend of that name on each device asked for, by default on all of its kind.

    Args:
        device: ``"cuda:1"``, ``"cuda:0,cuda:2"`` or a sequence of such.
        delta_dtype: F16: deltas rounded as in the authors' store, which only the reference does.

    Raises:
        InputError: an unknown name or device, or one that cannot be had here.
    """
    if name != "auto" and name not in TABLE:
        raise InputError(f"backend: expected one of auto, {', '.join(TABLE)}, found {name}")
    asked = None if device is None else _parse_devices(device)
    if delta_dtype != "F32":
        return _rounding(name, device, delta_dtype)
    if name == "auto":
        choice = _automatic(threads, asked)
    else:
        entry = TABLE[name]
        if asked is not None and not entry.kinds:
            raise InputError(f"device: backend {name} computes on the processor, found {device}")
        devices, reason = _usable(entry, asked)
        if reason is not None:
            raise InputError(f"backend {name}: {reason}; available here: {', '.join(_available())}")
        choice = Choice(name, _open(entry, threads, devices), "as asked", False)
    LOG.info("backend %s", choice)
    return choice


def _rounding(name: str, device: str | Sequence[str] | None, delta_dtype: str) -> Choice:
    """The reference, which alone rounds deltas."""
    if name not in ("auto", "reference"):
        raise InputError(
            f"backend: expected auto or reference with delta_dtype float16, found {name}"
        )
    if device is not None:
        raise InputError(
            f"device: expected none with delta_dtype float16, which the processor rounds to, "
            f"found {device}"
        )
    why = "as asked" if name == "reference" else "delta_dtype float16"
    choice = Choice("reference", (ReferenceBackend(delta_dtype),), why, False)
    LOG.info("backend %s", choice)
    return choice


def fall_back(threads: int | None, why: str) -> Choice:
    """The processor, where ``auto``'s devices cannot do the work."""
    choice = Choice("cpu", (CpuBackend(threads),), why, False)
    LOG.info("backend %s", choice)
    return choice


def _automatic(threads: int | None, asked: Sequence[str] | None) -> Choice:
    reasons: dict[str, str] = {}
    for name in AUTO:
        entry = TABLE[name]
        if asked is not None and not entry.kinds:
            break
        devices, reason = _usable(entry, asked)
        if reason is None:
            why = "; ".join(_grouped(reasons)) or "the first choice where there is a GPU"
            return Choice(name, _open(entry, threads, devices), why, asked is None)
        reasons[name] = reason
    raise InputError(f"device: {', '.join(asked or ())}: {'; '.join(_grouped(reasons))}")


def _grouped(reasons: dict[str, str]) -> Iterator[str]:
    """``cuda, triton: no GPU was found``."""
    for reason in dict.fromkeys(reasons.values()):
        yield f"{', '.join(n for n, r in reasons.items() if r == reason)}: {reason}"


def _usable(entry: Entry, asked: Sequence[str] | None) -> tuple[list[str], str | None]:
    """The devices to compute on, by their torch names, or why there are none."""
    reason = entry.missing()
    if reason is not None or not entry.kinds:
        return [], reason
    from relex_ext.backends.device import count_devices

    there = [f"{kind}:{i}" for kind in entry.kinds for i in range(count_devices(kind))]
    for device in asked or ():
        if device not in there:
            return [], f"there is no {device} for it, only {', '.join(there)}"
        reason = entry.refuses(device)
        if reason is not None:
            return [], reason
    if asked is not None:
        return list(asked), None
    refusals = {device: entry.refuses(device) for device in there}
    devices = [device for device in there if refusals[device] is None]
    return devices, None if devices else refusals[there[0]]


def _open(entry: Entry, threads: int | None, devices: Sequence[str]) -> tuple[Backend, ...]:
    return tuple(entry.open(threads, device) for device in devices or ("cpu",))


def _available() -> list[str]:
    return [name for name, entry in TABLE.items() if _usable(entry, None)[1] is None]


def _parse_devices(device: str | Sequence[str]) -> list[str]:
    """``"cuda, cuda:2"`` → ``["cuda:0", "cuda:2"]``."""
    given = device.split(",") if isinstance(device, str) else [str(one) for one in device]
    found = []
    for one in (part.strip() for part in given):
        match = re.fullmatch(r"([a-z]+)(?::(\d+))?", one)
        if match is None:
            raise InputError(f"device: expected names like cuda:0, found {one!r}")
        found.append(f"{match[1]}:{int(match[2] or 0)}")
    if not found or len(set(found)) != len(found):
        raise InputError(f"device: expected devices, each once, found {device!r}")
    return found
