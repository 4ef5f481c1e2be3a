"""Device backends without a device: the processor's memory as a device's.

``ProcessorBackend`` computes real values with the CPU's kernels. ``LazyAccelerator`` is a device
that does nothing until somebody waits for it, and then only that: where the pipeline forgets to
wait, or uses memory again too early, the bytes are wrong.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from relex_ext import backends
from relex_ext.backends import Entry, Strips, device
from relex_ext.backends.cpu import CpuBackend
from relex_ext.backends.cuda import CudaBackend
from relex_ext.backends.device import Accelerator, DeviceBackend, Processor

CPU = torch.device("cpu")


class ProcessorBackend(DeviceBackend):
    """The CPU's kernels on "device" addresses."""

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        super().__init__(CPU, accelerator)
        self._cpu = CpuBackend(2)
        self.isa = self._cpu.isa
        self.name = "processor (the kernels of the CPU)"

    def _launch(self, work: Callable[[], None]) -> None:
        launch = getattr(self.accelerator, "launch", None)
        if launch is None:
            work()
        else:
            launch(work)

    def fetch(self, sums: Any) -> np.ndarray:
        self._launch(lambda: None)
        getattr(self.accelerator, "finish", lambda: None)()
        return super().fetch(sums)

    def gram(self, strips: Strips, gram: Any) -> None:
        self._launch(lambda: self._cpu.gram(strips, gram.numpy()))

    def power_step(self, strips: Strips, u: np.ndarray, y: Any, energy: Any | None) -> None:
        there = self.to_device(u).numpy()
        squares = None if energy is None else energy.numpy()
        self._launch(lambda: self._cpu.power_step(strips, there, y.numpy(), squares))

    def combine(self, strips: Strips, weights: np.ndarray, out: np.ndarray, out_dtype: int) -> None:
        there, addresses = self.to_device(weights).numpy(), out.copy()
        self._launch(lambda: self._cpu.combine(strips, there, addresses, out_dtype))


# ---- a device that puts everything off ---------------------------------------------------------


class Lane:
    """A stream: work in order, none of it done before it must be."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._todo: deque[Callable[[], None]] = deque()
        self._queued = self._done = 0

    def add(self, work: Callable[[], None]) -> int:
        with self._lock:
            self._todo.append(work)
            self._queued += 1
            return self._queued

    def reach(self, count: int) -> None:
        with self._lock:
            while self._done < count:
                self._todo.popleft()()
                self._done += 1

    def reached(self, count: int) -> bool:
        with self._lock:
            return self._done >= count

    def reached_all(self) -> bool:
        return self.reached(self._queued)

    def finish(self) -> None:
        self.reach(self._queued)


class LazyEvent:
    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._place = lane.add(lambda: None)

    def query(self) -> bool:
        return self._lane.reached(self._place)

    def synchronize(self) -> None:
        self._lane.reach(self._place)


class LazyAccelerator(Processor):
    """Fresh memory is NaN, and none is ever given back. ``taken``, ``pinned_bytes``: its size."""

    def __init__(self, memory: int = 1 << 30) -> None:
        super().__init__(CPU)
        self._memory = memory
        self._lock = threading.RLock()
        self._lanes: list[Lane] = []
        self._held: list[torch.Tensor] = []
        self._here = threading.local()
        self.taken = self.pinned_bytes = 0

    def usable_memory(self) -> int:
        return self._memory

    def empty(self, nbytes: int, stream: Lane) -> torch.Tensor:
        self.taken += nbytes
        return self._hold(torch.full((nbytes,), 0xFF, dtype=torch.uint8))

    def pinned(self, nbytes: int) -> torch.Tensor:
        self.pinned_bytes += nbytes
        return self._hold(torch.full((nbytes,), 0xFF, dtype=torch.uint8))

    def upload(self, array: np.ndarray) -> torch.Tensor:
        return self._hold(super().upload(array))

    def _hold(self, tensor: torch.Tensor) -> torch.Tensor:
        self._held.append(tensor)
        return tensor

    def stream(self) -> Lane:
        self._lanes.append(Lane(self._lock))
        return self._lanes[-1]

    @contextmanager
    def on(self, stream: Lane) -> Iterator[None]:
        before, self._here.lane = getattr(self._here, "lane", None), stream
        yield
        self._here.lane = before

    def current_stream(self) -> Lane:
        lane: Lane = self._here.lane
        return lane

    def launch(self, work: Callable[[], None]) -> None:
        """A kernel, on the current stream."""
        self._here.lane.add(work)

    def finish(self) -> None:
        self._here.lane.finish()

    def record(self, stream: Lane) -> LazyEvent:
        return LazyEvent(stream)

    def wait(self, stream: Lane, event: LazyEvent) -> None:
        stream.add(event.synchronize)

    def copy(self, stream: Lane, to: torch.Tensor, source: torch.Tensor) -> None:
        stream.add(lambda: to.copy_(source))

    def at_rest(self) -> bool:
        """Nothing is put off any more."""
        return all(lane.reached_all() for lane in self._lanes)


# ---- their choice ------------------------------------------------------------------------------


def install(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], DeviceBackend], devices: int = 1
) -> str:
    """Make a backend the one of that name, on so many devices; returns the name."""

    def nothing(*_: object) -> None:
        return None

    row = Entry(("cpu",), nothing, nothing, lambda threads, name: make())
    monkeypatch.setitem(backends.TABLE, "test", row)
    monkeypatch.setattr(device, "count_devices", lambda kind: devices if kind == "cpu" else 0)
    return "test"


# ---- the CUDA kernels, compiled for the processor ----------------------------------------------


class LazyKernels:
    """Their launches put off, too. Host arrays are read at once, as the contract has it."""

    def __init__(self, kernels: Any, accelerator: LazyAccelerator) -> None:
        self._kernels, self._accelerator = kernels, accelerator

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._kernels, name)
        if name not in ("gram", "power_step", "combine"):
            return found

        def launch(*args: Any) -> None:
            kept = [arg.copy() if isinstance(arg, np.ndarray) else arg for arg in args]
            self._accelerator.launch(lambda: found(*kept))

        return launch


class LazyCuda(CudaBackend):
    def __init__(self, kernels: Any) -> None:
        accelerator = LazyAccelerator()
        super().__init__(CPU, LazyKernels(kernels, accelerator), accelerator)
        self._lazy = accelerator

    def fetch(self, sums: Any) -> np.ndarray:
        self._lazy.finish()
        return super().fetch(sums)
