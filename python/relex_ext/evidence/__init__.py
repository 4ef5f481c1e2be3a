"""Reasons to believe a forecast, or not to, from the Gram matrices alone."""

from __future__ import annotations

from relex_ext.evidence.backtest import Backtest, Fold
from relex_ext.evidence.gathering import gather
from relex_ext.evidence.portraits import Compared, Evidence, Portrait
from relex_ext.evidence.verdict import Reason, Verdict, judge

__all__ = [
    "Backtest", "Compared", "Evidence", "Fold", "Portrait", "Reason", "Verdict", "gather", "judge",
]  # fmt: skip
