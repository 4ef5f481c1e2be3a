"""What a run that writes forecasts says about them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from relex_ext.evidence.cases import FORECASTS
from relex_ext.evidence.measures import line_r2
from relex_ext.evidence.nulls import sizes_of, walk_gram
from relex_ext.evidence.verdict import Verdict, judge_all
from relex_ext.methods import Options
from relex_ext.scans import Scan

LOG = logging.getLogger("relex_ext")

NEAR = 0.1
"""Strengths that differ by a tenth are the same."""


def verdicts_on(
    scan: Scan | None,
    steps: Sequence[int],
    targets: Sequence[float],
    options: Options,
    strengths: Sequence[float],
) -> dict[float, Verdict]:
    """Target → verdict, of the targets that are ahead, where the scan and the method allow one.

    Logs each, as a warning where it advises against what is written: nothing is ever refused.
    ``strengths``: the λ that each target is written with.
    """
    ahead = sorted({target for target in targets if target > steps[-1]})
    if scan is None or options.method not in FORECASTS or not ahead:
        return {}
    if scan.spectra:
        LOG.info("no verdict: the scan holds power iteration's vectors, solver gram gives one")
        return {}
    found = dict(zip(ahead, judge_all(scan, ahead, options, steps), strict=True))
    for target, strength in zip(targets, strengths, strict=True):
        if target in found:
            otherwise = advice(found[target], options.method, strength)
            LOG.log(
                logging.WARNING if otherwise else logging.INFO,
                "verdict on step %g: %s%s",
                target, describe(found[target]), f"; {otherwise}" if otherwise else "",
            )  # fmt: skip
    return found


def walk_beside(scan: Scan | None, steps: Sequence[int]) -> dict[str, float] | None:
    """Explained variance and R² that a random walk with the same updates would have, all tensors as
    one vector; None where the scan does not tell."""
    if scan is None or scan.spectra:
        return None
    total = np.zeros((len(steps), len(steps)))
    for name in scan.names:
        total += scan.source(name, steps).gram
    walk = walk_gram(sizes_of(total))
    if not np.trace(walk) > 0.0:
        return None
    values, vectors = np.linalg.eigh(walk)
    r2 = line_r2(np.array(steps, np.float64), vectors[None, :, -1])
    return {"explained_variance": float(values[-1] / np.trace(walk)), "r2": float(r2[0])}


def describe(verdict: Verdict) -> str:
    """A verdict in one line, with the numbers that decided."""
    numbers = "; ".join(map(str, verdict.reasons))
    return f"{verdict.sentence} [{numbers}]"


def advice(verdict: Verdict, method: str, strength: float) -> str:
    """What to do instead, where what is written is not what the verdict recommends."""
    written = f"written is λ = {strength:.2g} by {method}"
    if verdict.decision not in ("go", "go shrunk"):
        return "" if strength == 0.0 else f"{written} all the same"
    same = verdict.method == method and abs(strength - verdict.strength) <= NEAR * verdict.strength
    if same:
        return ""
    return f"{written}, advised --strength {verdict.strength:.2g} --method {verdict.method}"
