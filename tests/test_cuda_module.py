"""The compiled CUDA kernels, as far as a machine without a GPU can see them."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from relex_ext import _core

cuda: Any = pytest.importorskip("relex_ext._cuda", reason="relex_ext was built without nvcc")
MODULE = Path(cuda.__file__)

REGISTERS = 65536  # of a multiprocessor
STATIC_SHARED = 48 * 1024


def test_constants() -> None:
    assert cuda.PART > 0 and _core.SEGMENT % cuda.PART == 0
    assert (cuda.MAX_ROWS, cuda.MAX_VECTORS) == (_core.MAX_ROWS, _core.MAX_VECTORS)
    assert cuda.EMULATED is False


def test_the_library_stands_alone() -> None:
    """Importing needs no CUDA library, nor PyTorch's: the driver is looked for when it is used."""
    report = tool("readelf", "-d", str(MODULE))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", report)
    assert needed
    assert not [name for name in needed if re.search(r"cuda|torch|c10|nv", name)]


def test_the_runtime_stays_inside() -> None:
    """PyTorch brings a CUDA runtime of its own: neither must find the other's functions."""
    symbols = tool("readelf", "--dyn-syms", "--wide", str(MODULE))
    assert "PyInit__cuda" in symbols
    assert not re.search(r"\bcuda[A-Z]\w*", symbols)


def test_unavailable_is_one_sentence() -> None:
    """In a process of its own, which the environment lets see no device."""
    code = (
        f"import sys; sys.path.append({str(MODULE.parent)!r}); import _cuda\n"
        "print(_cuda.unavailable(0)); print(_cuda.unavailable(-1))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    reasons = found.stdout.splitlines()
    assert len(reasons) == 2
    assert all(re.fullmatch(r"[Tt]?[a-zA-Z].{10,150}[^.]", reason) for reason in reasons)
    assert not found.stderr


def tool(name: str, *arguments: str) -> str:
    found = shutil.which(name)
    if found is None and name == "cuobjdump":
        triton = importlib.util.find_spec("triton")
        if triton is not None and triton.origin is not None:
            place = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
            found = str(place) if place.exists() else None
    if found is None:
        pytest.skip(f"needs {name}")
    return subprocess.run(
        [found, *arguments], capture_output=True, text=True, check=True, timeout=120
    ).stdout


def named_architectures() -> tuple[set[str], set[str]]:
    """What ARCHITECTURES promises: machine code, and PTX."""
    names = cuda.ARCHITECTURES.split(", ")
    ptx = {name.removesuffix(" (PTX)").replace("compute", "sm") for name in names if "PTX" in name}
    return {name for name in names if name.startswith("sm_")}, ptx


def test_architectures() -> None:
    elf, ptx = named_architectures()
    found = set(re.findall(r"\.(sm_\w+)\.cubin", tool("cuobjdump", "--list-elf", str(MODULE))))
    assert found == elf
    found = set(re.findall(r"\.(sm_\w+)\.ptx", tool("cuobjdump", "--list-ptx", str(MODULE))))
    assert found == ptx
    assert {"sm_80", "sm_90"} <= elf
    assert ptx, "GPUs newer than the compiler need PTX"


def resources() -> dict[tuple[str, str], dict[str, int]]:
    """(architecture, kernel) → REG, STACK, SHARED, LOCAL."""
    kernels, arch, kernel = {}, "", ""
    for line in tool("cuobjdump", "--dump-resource-usage", str(MODULE)).splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            kernel = match[1]
        elif "REG:" in line:
            kernels[arch, kernel] = {k: int(n) for k, n in re.findall(r"(\w+):(\d+)", line)}
    return kernels


def most_threads() -> dict[tuple[str, str], int]:
    """(architecture, kernel) → threads of its __launch_bounds__."""
    kernels, arch, kernel, attribute = {}, "", "", ""
    for line in tool("cuobjdump", "-elf", str(MODULE)).splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\.nv\.info\.(\S+)", line):
            kernel = match[1]
        elif match := re.match(r"\s*Attribute:\s*(\w+)", line):
            attribute = match[1]
        elif attribute == "EIATTR_MAX_THREADS" and (match := re.match(r"\s*Value:(.*)", line)):
            kernels[arch, kernel] = math.prod(int(n, 16) for n in match[1].split())
    return kernels


def test_no_kernel_spills_and_every_one_can_be_launched() -> None:
    kernels, bounds = resources(), most_threads()
    of_arch = defaultdict(set)
    for (arch, kernel), used in kernels.items():
        of_arch[arch].add(kernel)
        about = f"{kernel} on {arch}: {used}"
        assert used["STACK"] == 0 and used["LOCAL"] == 0, about
        assert used["SHARED"] <= STATIC_SHARED, about
        # Registers are given out to warps in units of 256: eight for each lane.
        assert used["REG"] <= 255, about
        threads = bounds.get((arch, kernel), 256)
        assert -(-used["REG"] // 8) * 8 * threads <= REGISTERS, about
    assert set(of_arch) == named_architectures()[0]
    assert len(set(map(frozenset, of_arch.values()))) == 1, "the same kernels for all of them"
    assert bounds and set(bounds) <= set(kernels)
    for stem in ("gram", "power", "combine"):
        assert any(stem in kernel for _, kernel in kernels), stem
