"""The Triton kernels: interpreted everywhere, and compiled where there is a GPU.

Each module is run in a process of its own: Triton decides when it is imported which of the two it
does, and other tests want it the other way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

MODULES = ("triton_gram", "triton_power", "triton_combine", "triton_backend")

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def start(module: str, interpret: bool) -> subprocess.Popen[str]:
    place = Path(__file__).parent / f"{module}.py"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(place)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def check(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert " passed" in output, output


@pytest.fixture(scope="module")
def interpreting() -> Iterator[dict[str, Any]]:
    """All modules, side by side."""
    processes = {module: start(module, interpret=True) for module in MODULES}
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("module", MODULES)
def test_interpreted(interpreting: dict[str, Any], module: str) -> None:
    check(interpreting[module])


@pytest.mark.gpu
@pytest.mark.parametrize("module", MODULES)
def test_compiled(module: str) -> None:
    check(start(module, interpret=False))
