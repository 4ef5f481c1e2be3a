"""Numbers as people read them: few digits, a real minus sign."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float | None, digits: int = 2) -> str:
    """Fixed decimals near 1, significant digits for what is large or small."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "–"
    size = abs(value)
    if size == 0.0:
        return "0"
    if size >= 1e6 or size < 1e-4:
        text = f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    elif size < 10.0**-digits:
        text = f"{value:.2g}"
    elif size >= 100:
        text = f"{value:,.0f}".replace(",", "\u2009")
    else:
        text = f"{value:.{max(digits - 1, 0) if size >= 10 else digits}f}"
    return text.replace("-", "−")


def fixed(value: float, digits: int) -> str:
    """So many decimals, and no sign on a zero."""
    return f"{value:.{digits}f}".replace("-", "−") if round(value, digits) else "0"


def step(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.10g}"


def percent(share: float) -> str:
    """0.934 → 93 %, with one decimal below 10 %."""
    value = 100 * share
    if 0 < value < 0.05:
        return "< 0.1\u00a0%"
    return f"{value:.0f}\u00a0%" if value >= 9.95 else f"{value:.1f}\u00a0%"


def count(items: int, noun: str) -> str:
    return f"{items} {noun}" if items == 1 else f"{items} {noun}s"


def listed(parts: Sequence[str], most: int = 8) -> str:
    """a, b and c; the rest only counted."""
    shown = list(parts[:most])
    if len(parts) > most:
        shown.append(f"{len(parts) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def short_name(tensor: str) -> str:
    """``model.layers.3.self_attn.q_proj.weight`` → ``3 q_proj``."""
    parts = [part for part in tensor.removesuffix(".weight").split(".") if part]
    if len(parts) < 2:
        return tensor
    layer = [part for part in parts if part.isdigit()]
    last = " ".join(parts[-2:]) if parts[-1] == "bias" else parts[-1]
    return f"layer {' '.join(layer)} {last}" if layer else last
