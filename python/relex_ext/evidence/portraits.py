"""What a trajectory looks like, each number beside the one a random walk would show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Compared:
    """A measured value and the one that a random walk with the same increments has.

    ``p``: the share of random walks that reach at least ``value``; None where none were drawn.
    """

    value: float
    null: float
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Portrait:
    """One tensor, or several pooled by energy."""

    name: str
    tensors: int
    elements: int | None
    """Weights in it; None where the scan does not say."""
    energy: float
    """Σ_t ‖Δ_t‖²."""
    explained_variance: tuple[Compared, ...]
    """Cumulative share of the energy in the leading 1, 2, … singular directions."""
    r2: Compared
    """Of the line through the leading coefficient, over all checkpoints."""
    r2_outside: float | None
    """Of the line through the first half's coefficient, over the second half's projections on the
    first half's direction; 1 − SSE/SST, negative where the line misses by more than their mean."""
    straightness: Compared
    """‖Δ_T‖² / Σ_t ‖Δ_t − Δ_{t−1}‖²: 1 for a random walk, T for a straight line."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything :func:`gather` finds in a scan."""

    steps: tuple[int, ...]
    whole: Portrait
    modules: tuple[Portrait, ...]
    """By module type: embed_tokens, q_proj, …"""
    layers: tuple[Portrait, ...]
    """By layer, in their order; what lies in no layer is in none."""
    tensors: tuple[Portrait, ...]
    """Those that move, in the scan's order."""
    persistence: Mapping[int, Compared]
    """Gap in checkpoints → cosine between updates that far apart, over all tensors; null 0."""
    frozen: tuple[str, ...]
    """Tensors that never move."""
    duplicates: tuple[tuple[int, int], ...]
    """Neighbouring steps with the same weights."""
    jumps: tuple[tuple[int, float], ...]
    """(step, size): checkpoints whose distance from the one before is ``size`` times the usual
    for as many steps."""
    gaps: tuple[tuple[int, int], ...]
    """Neighbouring steps further apart than the usual distance."""
