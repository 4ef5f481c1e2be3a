"""Bytes: how many there are, how many were asked for, how they are printed."""

from __future__ import annotations

import math
import re
from pathlib import Path

from relex_ext.errors import InputError


def available_memory() -> int:
    """Bytes this process can use without swapping: what the system offers, within its cgroup."""
    available = 4 << 30
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            available = min(available, int(limit))
    except OSError:
        pass  # not Linux, or no cgroup v2: the default or the system's figure stands
    return available


def parse_bytes(text: str | int | None, option: str = "memory_limit") -> int:
    """``"2GiB"``, ``"500MB"``, ``1 << 30`` → bytes; None → half of what is available."""
    if text is None:
        return available_memory() // 2
    if isinstance(text, int):
        return text
    units = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(iB|B)?\s*", text, re.IGNORECASE)
    if not match:
        raise InputError(f"{option}: expected a size like 2GiB or 500MB, found {text!r}")
    unit = match[2].upper()
    decimal = (match[3] or "").upper() == "B" and unit != ""
    scale = 1000 ** "KMGT".index(unit) * 1000 if decimal else 1 << int(units[unit])
    return int(float(match[1]) * scale)


def human(size: float) -> str:
    """1536 → ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"


def enough(size: int) -> str:
    """The same, rounded up: what an error asks for has to be accepted."""
    scale = 1024 ** max(0, (size.bit_length() - 1) // 10)
    return human(math.ceil(size * 10 / scale) * scale / 10)
