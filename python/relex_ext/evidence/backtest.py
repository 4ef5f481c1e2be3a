"""Forecasts of checkpoints that are already there, made from the ones before them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fold:
    """A forecast of step ``target`` from the checkpoints up to step ``prefix``.

    With f the forecast's displacement from the newest checkpoint of the prefix and D the true one,
    ``along`` = ⟨f, D⟩, ``forecast`` = ‖f‖² and ``moved`` = ‖D‖², each summed over all tensors.
    """

    prefix: int
    target: int
    method: str
    along: float
    forecast: float
    moved: float

    def skill_at(self, strength: float) -> float:
        """1 − SSE/SSE(newest) of the forecast shrunk to ``strength`` (λ): 0 for λ = 0."""
        if self.moved == 0.0:
            return 0.0
        return (2.0 * strength * self.along - strength**2 * self.forecast) / self.moved

    @property
    def skill(self) -> float:
        """At full strength."""
        return self.skill_at(1.0)

    @property
    def cosine(self) -> float:
        """Between the forecast and the true displacement."""
        size = (self.forecast * self.moved) ** 0.5
        return self.along / size if size > 0.0 else 0.0

    @property
    def best_strength(self) -> float:
        """The λ that would have been best, never negative."""
        return max(0.0, self.along / self.forecast) if self.forecast > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Backtest:
    """Every prefix × target × method that was tried."""

    folds: tuple[Fold, ...]

    def of(self, method: str) -> tuple[Fold, ...]:
        return tuple(fold for fold in self.folds if fold.method == method)
