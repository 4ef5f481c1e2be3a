"""The Triton kernels as Triton compiles them for real GPUs, none of which need be here.

The interpreter runs what no compiler accepts, and knows nothing of registers or tensor cores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "triton_compile.py"

TARGETS = {"sm_90": ["more"], "sm_80": [], "gfx942": []}

BACKEND = {"sm_90": "nvidia", "sm_80": "nvidia", "gfx942": "amd"}

SHARED = {"sm_90": 99 << 10, "sm_80": 99 << 10, "gfx942": 64 << 10}
"""Bytes of shared memory that a program may have: on NVIDIA, of the smallest chip with tensor
cores for bf16 (sm_86)."""

A_LITTLE = 64
"""Bytes of registers that ptxas may put away: it does so to fit more threads."""


def missing() -> str | None:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "triton is not installed"
    if tuple(map(int, found.split(".")[:2])) < (3, 3):
        return f"triton {found} describes sources in another way"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

Compiled = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A compiling process per target, side by side."""
    processes = {}
    for target, more in TARGETS.items():
        if find_spec(f"triton.backends.{BACKEND[target]}") is not None:
            env = {n: v for n, v in os.environ.items() if not n.startswith("TRITON_")}
            env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp(target))
            processes[target] = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(PROGRAM), target, *more],
                env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def done() -> dict[str, Any]:
    return {}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def compiled(target: str, running: dict[str, Any], done: dict[str, Any]) -> list[dict[str, Any]]:
    if target not in running:
        pytest.skip(f"this triton has no backend for {target}")
    if target not in done:
        stdout, stderr = running[target].communicate(timeout=600)
        assert running[target].returncode == 0, stderr
        done[target] = json.loads(stdout)
    found: list[dict[str, Any]] = done[target]
    return found


def count(entry: dict[str, Any], *parts: str) -> int:
    """Instructions whose names have all these parts."""
    every = entry["instructions"].items()
    return sum(n for name, n in every if all(part in name for part in parts))


def test_every_kernel_is_there(compiled: list[dict[str, Any]]) -> None:
    assert {entry["kernel"] for entry in compiled} == {
        "gram_high", "gram_rest", "gram_check", "gram_repair", "power_parts", "power_parts_tiled",
        "add_parts", "combine_block",
    }  # fmt: skip


def test_registers_suffice(compiled: list[dict[str, Any]]) -> None:
    for entry in compiled:
        assert entry["spilled"] <= A_LITTLE, entry


def test_shared_memory_suffices(target: str, compiled: list[dict[str, Any]]) -> None:
    for entry in compiled:
        assert entry["shared"] <= SHARED[target], entry


def test_products_are_the_tensor_cores(target: str, compiled: list[dict[str, Any]]) -> None:
    for entry in compiled:
        if entry["kernel"].startswith(("gram_high", "gram_rest", "power")):
            if target == "sm_90" and entry["constants"]["TILE"] >= 64:
                assert count(entry, "wgmma", "bf16") > 0, entry
            elif target.startswith("sm_"):
                assert count(entry, "mma.sync", "bf16") > 0, entry
            else:
                assert count(entry, "v_mfma", "bf16") > 0, entry


def test_nothing_is_rounded_behind_our_backs(compiled: list[dict[str, Any]]) -> None:
    for entry in compiled:
        assert count(entry, "tf32") == count(entry, "ftz") == 0, entry


def test_nothing_depends_on_who_comes_first(compiled: list[dict[str, Any]]) -> None:
    for entry in compiled:
        names = entry["instructions"]
        assert not any(re.match(r"atom\.|red\.|\w+_atomic", name) for name in names), entry


def test_products_start_from_zero(compiled: list[dict[str, Any]]) -> None:
    """A compiler that merged the part's sum into the product would let the tensor cores cut it off
    again and again (DEPTH in triton_kernels.py)."""
    checked = 0
    for entry in compiled:
        if entry["kernel"] == "gram_high":
            assert all(name.startswith("cst") for name in entry["accumulators"]), entry
            checked += len(entry["accumulators"])
    assert checked > 0


def test_settings_multiply_with_the_same_instructions(compiled: list[dict[str, Any]]) -> None:
    """So that tuning changes no bit. How many columns (n) an instruction takes is no matter."""
    found: dict[tuple[int, bool], list[set[str]]] = {}
    for entry in compiled:
        if entry["kernel"] == "gram_high":
            constants = entry["constants"]
            names = (re.sub(r"n\d+k", "nk", name) for name in entry["instructions"])
            products = {name for name in names if re.match(r"wgmma|mma|v_mfma", name)}
            found.setdefault((constants["TILE"], constants["SINGLE"]), []).append(products)
    assert len(found) >= 3 and sum(map(len, found.values())) >= 10
    for products in found.values():
        assert products[0] and all(one == products[0] for one in products)


@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
def test_aligned_strips_are_read_sixteen_bytes_at_a_time(compiled: list[dict[str, Any]]) -> None:
    checked = 0
    for entry in compiled:
        constants = entry["constants"]
        if entry["kernel"] in ("gram_high", "combine_block") and constants["ROWS"] != 3:
            wide = count(entry, "cp.async.cg") + count(entry, "ld.global.v4")
            if constants.get("TILE") == 16 and entry["options"]["num_warps"] == 8:
                continue  # four elements a thread
            if constants["ALIGN"] == 16:
                assert wide > 0 and count(entry, "ld.global.b16") == 0, entry
            else:
                assert wide == 0, entry
            checked += 1
    assert checked >= 4
