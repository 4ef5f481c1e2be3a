"""Whether to believe a forecast, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

DECISIONS = ("go", "go shrunk", "short horizons", "no-go")


@dataclass(frozen=True, slots=True)
class Reason:
    """One of the numbers that decided: what it is, what was found, what it was held against."""

    what: str
    found: float
    limit: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """``sentence`` is for people: ``no-go: the checkpoints wander like a random walk``."""

    decision: str
    """One of :data:`DECISIONS`."""
    sentence: str
    reasons: tuple[Reason, ...]
    """The three numbers that decided, the most important first."""
    method: str
    strength: float
    """The recommended λ."""
    horizon: float | None
    """The last step that the recommended method should be asked for; None: no step at all."""
    target: float
    """The step the question was about."""
