"""What the GPU backends share: where sums live, and one torch device's memory, streams and events.

The one place, with the backends built on it, that imports torch. The pipeline (staging.py) moves
bytes through ``Accelerator`` alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from relex_ext.backends.contract import BackendError
from relex_ext.errors import InputError
from relex_ext.sizes import available_memory, human


def count_devices(kind: str) -> int:
    """How many ``cuda`` or ``xpu`` devices torch can use."""
    runtime = getattr(torch, kind, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a driver that does not fit: then there are none
        usable = runtime is not None and runtime.is_available()
        return int(runtime.device_count()) if runtime is not None and usable else 0


def torch_build() -> str:
    """``torch 2.13.0 for CUDA 13.0``."""
    makers = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip, "XPU": torch.version.xpu}
    built = [f"{maker} {version}" for maker, version in makers.items() if version]
    version = torch.__version__.partition("+")[0]
    return f"torch {version} for {built[0] if built else 'the processor'}"


class Event(Protocol):
    """A point in a stream's work."""

    def query(self) -> bool:
        """Whether it has been reached."""

    def synchronize(self) -> None:
        """Wait until it has."""


class Accelerator:
    """Memory, streams, events and copies of one torch device: CUDA's, ROCm's or XPU's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # torch.cuda, torch.xpu, …: the same functions for every kind of accelerator.
        self._runtime: Any = torch.get_device_module(device)
        # A thread that waits must sleep: others read shards on its core.
        self._sleeping = {"blocking": True} if device.type == "cuda" else {}

    @property
    def name(self) -> str:
        """As its maker calls it."""
        return str(self._runtime.get_device_name(self.device))

    def usable_memory(self) -> int:
        """Bytes that a run may use unless it is told otherwise: most of what is free."""
        self._runtime.empty_cache()  # what earlier work left in torch's cache is free
        try:
            free, _ = self._runtime.mem_get_info(self.device)
        except RuntimeError as error:  # not every XPU driver tells
            raise InputError(
                f"device_memory: has to be given for {self.device}: {_line(error)}"
            ) from error
        return int(free * 0.8)

    def empty(self, nbytes: int, stream: Any) -> torch.Tensor:
        """Memory on the device that is first used on that stream. Allocated for another, it might
        be what somebody has just freed there and whose last kernels are still to come."""
        with self.on(stream):
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def pinned(self, nbytes: int) -> torch.Tensor:
        """Memory of this process that the device's copy engines read and write."""
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise BackendError(
                f"{human(nbytes)} of memory cannot be pinned ({_line(error)}); lower memory_limit"
            ) from error

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        """A small array's copy on the device, in the order of the current stream. Pinned on the way
        (torch keeps that memory until the copy is done): otherwise the host would wait for it."""
        with self.current():
            return _tensor(array).pin_memory().to(self.device, non_blocking=True)

    def stream(self) -> Any:
        """A new queue of work."""
        return self._runtime.Stream(self.device)

    def on(self, stream: Any) -> AbstractContextManager[object]:
        """Work of this thread goes to that stream."""
        context: AbstractContextManager[object] = self._runtime.stream(stream)
        return context

    def current(self) -> AbstractContextManager[object]:
        """Work of this thread goes to this device's current stream."""
        context: AbstractContextManager[object] = self._runtime.device(self.device)
        return context

    def current_stream(self) -> Any:
        return self._runtime.current_stream(self.device)

    def stream_handle(self) -> int:
        """CUDA's own name of the current stream."""
        return int(self.current_stream().cuda_stream)

    def record(self, stream: Any) -> Event:
        """The end of what has been queued on a stream so far."""
        event = self._runtime.Event(**self._sleeping)
        event.record(stream)
        found: Event = event
        return found

    def wait(self, stream: Any, event: Event) -> None:
        """What is queued on the stream from now on starts after the event. The host goes on."""
        stream.wait_event(event)

    def copy(self, stream: Any, to: torch.Tensor, source: torch.Tensor) -> None:
        """Queue a copy between pinned memory and the device's."""
        with self.on(stream):
            to.copy_(source, non_blocking=True)

    def settle(self, *streams: Any) -> None:
        """Wait for all that has been queued on them, however it ended."""
        try:
            for stream in streams:
                self.record(stream).synchronize()
        except RuntimeError:
            pass  # a device that failed: whoever waited for a result has been told

    @contextmanager
    def reporting(self, about: str = "", limit: int | None = None) -> Iterator[None]:
        """What torch and kernels report becomes one line, with the limit to lower where memory ran
        out."""
        try:
            yield
        except BackendError as error:
            raise BackendError(f"{about}{error}") from error
        except torch.OutOfMemoryError as error:
            asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
            size = f" ({asked[1]} more were needed)" if asked else ""
            now = "" if limit is None else f", now {human(limit)}"
            raise BackendError(
                f"{about}{self.device}: out of memory{size}; lower device_memory{now}"
            ) from error
        except RuntimeError as error:
            raise BackendError(f"{about}{self.device}: {_line(error)}") from error


class Processor(Accelerator):
    """The processor as a device, for kernels that are interpreted or emulated. torch.cpu has
    streams and events, which do nothing: every call has done its work when it returns."""

    @property
    def name(self) -> str:
        return "processor"

    def usable_memory(self) -> int:
        return available_memory() // 2

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        return _tensor(array)

    def current(self) -> AbstractContextManager[object]:
        return nullcontext()

    def stream_handle(self) -> int:
        return 0


def _line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """A copy that owns its memory, whatever the array's."""
    return torch.from_numpy(np.array(array, order="C", copy=True))


class DeviceBackend:
    """A backend whose memory is a torch device's; its kernels go to the device's current stream.

    ``device`` may be ``cpu``, where kernels are interpreted or emulated: then nothing is
    asynchronous and the same code runs in order.
    """

    isa = "triton"
    """The row of plan.py's tables of rates."""

    def __init__(self, device: torch.device, accelerator: Accelerator | None = None) -> None:
        self.device = device
        self.runtime: ModuleType = torch.get_device_module(device)
        if accelerator is None:
            accelerator = (Processor if device.type == "cpu" else Accelerator)(device)
        self.accelerator = accelerator

    def zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def fetch(self, sums: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = sums.cpu().numpy()
        return found

    def to_device(self, array: NDArray[Any]) -> torch.Tensor:
        """A small host array's copy on the device. Nothing waits for it."""
        return self.accelerator.upload(array)

    def workspace_bytes(self, rows: int, columns: int, vectors: int, targets: int) -> int:
        """Bytes that kernels take beside strips, sums and outputs, for windows of that shape."""
        return 0

    def reserve(self, nbytes: int) -> None:
        """A workspace of so many bytes will be wanted: take it once."""
