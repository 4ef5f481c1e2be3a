"""The operators on the GPUs' kernels, emulated or interpreted, and on devices without any."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from relex_ext import InputError, ops
from tensors import (
    BF16,
    F32,
    MIXES,
    NAME,
    check_combine,
    check_gram,
    check_power_step,
    run,
    vectors_of,
    weights_of,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton decides when it is imported: test_interpreted has a process of its own for it."""

KERNELS = ["cuda", "triton"] if INTERPRETED else ["cuda"]


def device_kernels(name: str) -> ops.Kernels:
    """Emulated or interpreted, on host memory."""
    device = torch.device("cpu")
    if name == "triton":
        return ops.TritonKernels(device)
    emulated = pytest.importorskip(
        "relex_ext._cuda_emulated", reason="relex_ext was not built with RELEX_EMULATION=ON"
    )
    return ops.CudaKernels(device, emulated)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("base", "rows"), MIXES)
def test_device_kernels(name: str, base: torch.dtype, rows: tuple[torch.dtype, ...]) -> None:
    kernels = device_kernels(name)
    snapshots, origin = run(5, (3, 101), rows, base)
    for start in (origin, None):
        check_gram(ops.gram(snapshots, start, kernels), snapshots, start)
        u = vectors_of(5, 3)
        found = ops.power_step(snapshots, start, u.double(), kernels)
        check_power_step(*found, snapshots, start, u)
        weights = weights_of(5, 5)
        for dtype in (F32, BF16):
            made = ops.combine(snapshots, start, weights, dtype, kernels)
            check_combine(made, snapshots, weights, start, NAME[dtype])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("offset", [1, 3])
def test_device_kernels_on_unaligned_views(name: str, offset: int) -> None:
    kernels = device_kernels(name)
    snapshots, base = run(3, (301,))
    views, origin = [s[offset:] for s in snapshots], base[offset:]
    check_gram(ops.gram(views, origin, kernels), views, origin)
    made = ops.combine(views, origin, weights_of(1, 3), None, kernels)
    check_combine(made, views, weights_of(1, 3), origin, "BF16")


@pytest.mark.skipif(INTERPRETED, reason="this process interprets")
def test_interpreted() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "device_kernels and triton", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout and "passed" in done.stdout


def test_a_device_that_nothing_computes_on_is_named() -> None:
    with pytest.raises(InputError, match=r"xpu:0: nothing computes there; cuda: .*; triton: "):
        ops.device_kernels(torch.device("xpu", 0))
    with pytest.raises(InputError, match="backend: expected auto, cuda or triton for cuda:0"):
        ops.device_kernels(torch.device("cuda", 0), "cpu")
