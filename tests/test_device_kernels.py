"""The pipeline with the GPUs' kernels, as the processor runs them: CUDA's emulated, Triton's
interpreted. Real numbers against the oracle, and the same bytes whatever the memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compare import check_model
from devices import CPU, LazyCuda, install
from folders import MODEL, RunFolder, Spec, digest, make_run
from relex_ext import extrapolate
from relex_ext.backends.cuda import CudaBackend
from relex_ext.backends.device import DeviceBackend

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton decides when it is imported: test_interpreted has a process of its own for it."""

SOME: dict[str, Spec] = {n: s for n, s in MODEL.items() if "embed" not in n}
if INTERPRETED:  # a few thousand times slower than compiled
    SOME = {n: s for n, s in SOME.items() if "attn" not in n and "mixed" not in n}
SOME["model.long"] = Spec((16384 + 11 if INTERPRETED else 90_001,))

TRAINED = [n for n, s in SOME.items() if s.kind == "trained"]

TARGETS = (100.0, 62.5)


def cuda() -> DeviceBackend:
    return CudaBackend(CPU, emulated())


def lazy_cuda() -> DeviceBackend:
    return LazyCuda(emulated())


def emulated() -> Any:
    return pytest.importorskip(
        "relex_ext._cuda_emulated", reason="relex_ext was not built with RELEX_EMULATION=ON"
    )


def triton() -> DeviceBackend:
    from relex_ext.backends.triton import TritonBackend

    return TritonBackend(CPU)


MAKERS: dict[str, Callable[[], DeviceBackend]] = (
    {"triton": triton} if INTERPRETED else {"cuda": cuda, "lazy cuda": lazy_cuda}
)


WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "cut": {"device_memory": "880KB", "memory_limit": "2MB"},
    "two": {"devices": 2},
    "two cut": {"devices": 2, "device_memory": "880KB", "memory_limit": "4MB"},
}
if INTERPRETED:  # by one thread; two windows
    WAYS = {"in windows": {"device_memory": "530KB"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("kernels"), steps=(10, 20, 70), model=SOME)


def assert_values(folder: Path, run: RunFolder, target: float, dtype: str | None = None) -> None:
    check_model(folder, run, TRAINED, target, dtype)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("solver", ["gram", "power"])
def test_device_kernels(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, solver: str
) -> None:
    MAKERS[make]()  # or skip
    found = []
    for way, options in WAYS.items():
        limits = {name: value for name, value in options.items() if name != "devices"}
        backend = install(monkeypatch, MAKERS[make], options.get("devices", 1))
        done = extrapolate(
            run.base, run.checkpoints, TARGETS, tmp_path / way, backend=backend, solver=solver,
            progress=False, **limits,
        )  # fmt: skip
        assert all(p.resident for p in done.plan.tensors) is ("cut" not in way)
        assert {p.solver for p in done.plan.tensors} == {solver}
        found.append(digest(tmp_path / way))
    for target, folder in done.folders.items():
        assert_values(folder, run, target)
    assert all(one == found[0] for one in found)


@pytest.mark.skipif(INTERPRETED, reason="takes minutes")
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_other_dtypes(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, dtype: str
) -> None:
    MAKERS[make]()  # or skip
    backend = install(monkeypatch, MAKERS[make])
    extrapolate(
        run.base, run.checkpoints, 100, tmp_path / "out", backend=backend, dtype=dtype,
        solver="gram", progress=False,
    )  # fmt: skip
    assert_values(tmp_path / "out" / "step_100", run, 100.0, dtype)


@pytest.mark.skipif(INTERPRETED, reason="this process interprets")
def test_interpreted() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "gram-triton or power-triton", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, timeout=600, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout and "passed" in done.stdout
