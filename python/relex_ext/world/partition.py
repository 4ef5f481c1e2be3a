"""Which columns of which tensors each process has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from relex_ext.plan import Plan, TensorPlan, share

LARGE = 0.5
"""Of a process's fair share: a tensor beyond it is cut. Whole ones below it come out within a few
percent of even; each cut costs an exchange, and a second reading of what was written."""


def cut_large(items: Sequence[TensorPlan], size: int) -> list[TensorPlan]:
    """The same with large tensors in parts, whole spans each. Power iteration would exchange sums
    at every pass: its tensors stay whole."""
    most = LARGE * sum(item.nbytes for item in items) / size
    parts: list[TensorPlan] = []
    for item in items:
        columns = item.tensor.columns
        spans = -(-columns // item.span)
        count = min(size, spans, int(-(-item.nbytes // max(most, 1.0))))
        if count < 2 or item.solver == "power":
            parts.append(item)
            continue
        bounds = [min(spans * i // count * item.span, columns) for i in range(count + 1)]
        parts += [replace(item, part=pair) for pair in pairwise(bounds)]
    return parts


def shares_of(items: Sequence[TensorPlan], size: int) -> list[list[TensorPlan]]:
    """Everybody's, about the same bytes to all; parts, for which others wait, first."""
    shares = share(items, size)
    shares += [[] for _ in range(size - len(shares))]
    return [sorted(items, key=lambda item: item.part is None) for items in shares]


def stay(plan: Plan, item: TensorPlan) -> TensorPlan:
    """A part kept in memory between scan and combine, where the whole tensor would not fit."""
    fits = item.part is not None and item.solver == "gram" and plan.holds(item)
    return replace(item, resident=True) if fits else item
