"""Extrapolate RLVR training runs: rank-1 in time, linear in the step, out of core.

    relex_ext.extrapolate("base", "run", [500], "out")

See :func:`extrapolate`, and :func:`scan`, :func:`forecast` and :func:`combine` for its parts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from relex_ext.errors import EvaluationError, InputError, OutputError, RelexError
    from relex_ext.evidence.verdict import Verdict, judge
    from relex_ext.forecasts import Component, Weights
    from relex_ext.gathering.run import Gathered, gather
    from relex_ext.hub.pushing import push
    from relex_ext.inmemory import Rank1, combine_tensors, gram, rank1
    from relex_ext.job import Extrapolation
    from relex_ext.listing import ListedStep, list_checkpoints
    from relex_ext.modules import extrapolate_module
    from relex_ext.pipeline import combine, extrapolate, forecast, scan
    from relex_ext.reports import Report, report
    from relex_ext.scans import Scan
    from relex_ext.searches.found import Search
    from relex_ext.searches.run import search
    from relex_ext.verifying.run import Verification, verify

_HOME = {
    "Component": "forecasts",
    "EvaluationError": "errors",
    "Extrapolation": "job",
    "Gathered": "gathering.run",
    "InputError": "errors",
    "ListedStep": "listing",
    "OutputError": "errors",
    "Rank1": "inmemory",
    "RelexError": "errors",
    "Report": "reports",
    "Scan": "scans",
    "Search": "searches.found",
    "Verdict": "evidence.verdict",
    "Verification": "verifying.run",
    "Weights": "forecasts",
    "combine": "pipeline",
    "combine_tensors": "inmemory",
    "extrapolate": "pipeline",
    "extrapolate_module": "modules",
    "forecast": "pipeline",
    "gather": "gathering.run",
    "gram": "inmemory",
    "judge": "evidence.verdict",
    "list_checkpoints": "listing",
    "push": "hub.pushing",
    "rank1": "inmemory",
    "report": "reports",
    "scan": "pipeline",
    "search": "searches.run",
    "verify": "verifying.run",
}

__all__ = [
    "Component",
    "EvaluationError",
    "Extrapolation",
    "Gathered",
    "InputError",
    "ListedStep",
    "OutputError",
    "Rank1",
    "RelexError",
    "Report",
    "Scan",
    "Search",
    "Verdict",
    "Verification",
    "Weights",
    "__version__",
    "combine",
    "combine_tensors",
    "extrapolate",
    "extrapolate_module",
    "forecast",
    "gather",
    "gram",
    "judge",
    "list_checkpoints",
    "push",
    "rank1",
    "report",
    "scan",
    "search",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first used (PEP 562): numpy alone costs 0.1 s."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
