"""Which GPU backends can be had here, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

NODES = ("nvidia*", "kfd", "dri", "dxg")
"""What a GPU's driver puts into /dev: NVIDIA's, AMD's, anybody's, WSL's."""


def gpu_may_exist() -> bool:
    """Whether asking torch, which takes a second or two to import, is worth it."""
    return any(any(Path("/dev").glob(pattern)) for pattern in NODES)


def no_gpu(kinds: Sequence[str]) -> str | None:
    """Why torch can use no GPU of these kinds, or None."""
    if not gpu_may_exist():
        return "no GPU was found"
    from relex_ext.backends.device import count_devices, torch_build

    if any(count_devices(kind) for kind in kinds):
        return None
    return f"{torch_build()} finds no GPU that it can use"


def cuda_missing() -> str | None:
    if find_spec("relex_ext._cuda") is None:
        return "not built into this installation (no nvcc was found)"
    if not gpu_may_exist():
        return "no GPU was found"
    from relex_ext.backends.device import torch_build

    if "CUDA" not in torch_build():
        return f"{torch_build()} has no memory on NVIDIA's GPUs"
    # Of a driver that is too old torch says that there is no GPU; the kernels know better.
    return no_gpu(("cuda",)) and (cuda_refuses("cuda:0") or no_gpu(("cuda",)))


def cuda_refuses(device: str) -> str | None:
    try:
        kernels = import_module("relex_ext._cuda")
    except ImportError as error:
        return f"cannot be loaded ({error})"
    found: str | None = kernels.unavailable(int(device.partition(":")[2]))
    return found


def triton_missing() -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed (pip install relex_ext[triton])"
    return no_gpu(("cuda", "xpu"))
