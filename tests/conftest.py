"""Fixtures shared by the suite."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_forced_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    """A RELEX_ISA of the caller's shell would silently narrow what is tested."""
    monkeypatch.delenv("RELEX_ISA", raising=False)


@pytest.fixture
def bytes_read() -> Iterator[Callable[[], int]]:
    """A function: bytes this process has asked read() and pread() for since the test began."""
    place = Path("/proc/self/io")
    if not os.access(place, os.R_OK):
        pytest.skip("needs /proc/self/io")

    def counter() -> int:
        return int(place.read_text().split("rchar:")[1].split()[0])

    start = counter()
    yield lambda: counter() - start
