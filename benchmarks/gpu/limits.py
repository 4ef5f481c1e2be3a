"""The device itself, and what it can do at most: copies, reads, transfers, matrix products."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import common
from gpu.worker import Device, Entry, Job, reason
from relex_ext import backends

NAMES = ("cuda", "triton")


def open_backend(name: str, device: Device) -> Any:
    """As the pipeline opens it.

    Raises:
        InputError: it does not run here; says why.
    """
    return backends.open_backends(name, device=f"{device.kind}:0").backends[0]


def stand_in() -> None:
    """From now on "cuda" is the CUDA kernels emulated, and "triton" its interpreter."""
    import torch

    def emulated(threads: int | None, device: str) -> Any:
        from relex_ext.backends.cuda import CudaBackend

        return CudaBackend(torch.device("cpu"), import_module("relex_ext._cuda_emulated"))

    def interpreted(threads: int | None, device: str) -> Any:
        from relex_ext.backends.triton import TritonBackend

        return TritonBackend(torch.device("cpu"))

    def nothing(*_: str) -> None:
        return None

    backends.TABLE["cuda"] = backends.Entry(("cpu",), nothing, nothing, emulated)
    backends.TABLE["triton"] = backends.Entry(("cpu",), nothing, nothing, interpreted)


def describe(device: Device, job: Job) -> Iterator[Entry]:
    """One line about the device, and which backends run on it."""
    torch = device.torch
    found: Entry = {"torch": torch.__version__, "python": platform.python_version()}
    if device.kind == "cuda":
        properties = torch.cuda.get_device_properties(device.device)
        found |= {
            "name": properties.name, "driver": driver(), "cuda_runtime": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
        }  # fmt: skip
    found["backends"] = {}
    for name in NAMES:
        try:
            found["backends"][name] = {"name": open_backend(name, device).name}
        except Exception as error:
            found["backends"][name] = {"failed": reason(error)}
    yield found


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().splitlines()[0]


def limits(device: Device, job: Job) -> Iterator[Entry]:
    """Each limit over ``job["runs"]`` interleaved rounds. The best round is the limit."""
    for make in (memory_cases, transfer_cases, product_cases):
        cases = make(device, job)
        clocks = {name: device.case(work) for name, (work, _, _) in cases.items()}
        times = common.interleaved(clocks, job["runs"])
        for name, (_, amount, unit) in cases.items():
            yield {"case": name, "unit": unit, "rates": times[name].rate(amount / 1e9).values}
        del cases, clocks
        device.free()


def copy_again(device: Device, job: Job) -> Iterator[Entry]:
    """The copy alone, after the kernels: whether the device is still as fast."""
    cases = memory_cases(device, job)
    work, amount, unit = cases["copy"]
    times = common.interleaved({"copy": device.case(work)}, job["runs"])
    yield {"case": "copy again", "unit": unit, "rates": times["copy"].rate(amount / 1e9).values}


Cases = dict[str, tuple[Callable[[], object], float, str]]


def memory_cases(device: Device, job: Job) -> Cases:
    """What copies a large tensor, and several ways to read it all and keep next to nothing."""
    torch, size = device.torch, job["bytes"] // 4096 * 4096
    source = torch.randn(size // 4, device=device.device)
    target = torch.empty_like(source)
    matrix, vector = source.view(-1, 1024), torch.randn(1024, device=device.device)
    words, numbers = source.view(torch.int64), source.view(torch.int32)
    half = source.numel() // 2
    return {
        "copy": (lambda: target.copy_(source), 2 * size, "GB/s"),
        "read: torch.sum, fp32": (lambda: torch.sum(source), size, "GB/s"),
        "read: torch.sum, int64": (lambda: torch.sum(words), size, "GB/s"),
        "read: torch.amax, int32": (lambda: torch.amax(numbers), size, "GB/s"),
        "read: torch.dot of halves, fp32": (
            lambda: torch.dot(source[:half], source[half:]), size, "GB/s",
        ),
        "read: matrix (n, 1024) by vector, fp32": (lambda: torch.mv(matrix, vector), size, "GB/s"),
    }  # fmt: skip


def transfer_cases(device: Device, job: Job) -> Cases:
    size = job["transfer_bytes"]
    host, there = device.pinned(size), device.torch.empty(
        size, dtype=device.torch.uint8, device=device.device
    )  # fmt: skip
    host.fill_(1)
    return {
        "host to device": (lambda: there.copy_(host, non_blocking=True), size, "GB/s"),
        "device to host": (lambda: host.copy_(there, non_blocking=True), size, "GB/s"),
    }


def product_cases(device: Device, job: Job) -> Cases:
    """Random numbers: on zeros a GPU draws less power and runs faster."""
    torch, n = device.torch, job["product"]
    torch.backends.cuda.matmul.allow_tf32 = False
    cases: Cases = {}
    for name, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(n, n, device=device.device, dtype=kind) for _ in range(2))
        out = torch.empty_like(a)

        def work(a: Any = a, b: Any = b, out: Any = out) -> None:
            torch.mm(a, b, out=out)

        cases[f"{name} product"] = (work, 2 * n**3 / 1e3, "TFLOP/s")
    return cases
