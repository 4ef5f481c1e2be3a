"""What a run that writes forecasts says about them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from relex_ext.evidence.cases import FORECASTS
from relex_ext.evidence.verdict import Verdict, judge_all
from relex_ext.methods import Options
from relex_ext.scans import Scan

LOG = logging.getLogger("relex_ext")


def verdicts_on(
    scan: Scan | None, steps: Sequence[int], targets: Sequence[float], options: Options
) -> dict[float, Verdict]:
    """Target → verdict, of the targets that are ahead, where the scan and the method allow one.

    Logs each, as a warning where it advises against the forecast: nothing is ever refused.
    """
    ahead = sorted({target for target in targets if target > steps[-1]})
    if scan is None or options.method not in FORECASTS or not ahead:
        return {}
    if scan.spectra:
        LOG.info("no verdict: the scan holds power iteration's vectors, solver gram gives one")
        return {}
    found = dict(zip(ahead, judge_all(scan, ahead, options, steps), strict=True))
    for target, verdict in found.items():
        level = logging.INFO if verdict.decision in ("go", "go shrunk") else logging.WARNING
        LOG.log(level, "verdict on step %g: %s", target, describe(verdict))
    return found


def describe(verdict: Verdict) -> str:
    """A verdict in one line, with the numbers that decided."""
    numbers = "; ".join(map(str, verdict.reasons))
    advice = f", by method {verdict.method}" if verdict.strength > 0.0 else ""
    return f"{verdict.sentence}{advice} [{numbers}]"
