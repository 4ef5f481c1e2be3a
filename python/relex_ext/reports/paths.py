"""What only the page draws of a scan: coefficients, update sizes, cells of layer × module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relex_ext.evidence.groups import Place, place_of
from relex_ext.evidence.nulls import sizes_of
from relex_ext.forecasts import fit_line, spectrum_of_gram

Gram = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coefficient:
    """c_t = ⟨Δ_t, v⟩ at every step, v and the line from the first ``fitted`` of them.

    ``r2_outside``: 1 − SSE/SST of that line over the other steps; None where they say nothing.
    """

    name: str
    fitted: int
    values: tuple[float, ...]
    slope: float
    intercept: float
    r2: float
    r2_outside: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """The tensors of one module type in one layer.

    ``last`` = ‖Δ_T‖² and ``path`` = Σ_t ‖Δ_t − Δ_{t−1}‖², from the base on.
    """

    place: Place
    energy: float
    last: float
    path: float

    @property
    def straightness(self) -> float:
        return self.last / self.path if self.path > 0.0 else 0.0


def coefficient(name: str, gram: Gram, steps: Sequence[int], fitted: int) -> Coefficient:
    spectrum = spectrum_of_gram(gram[:fitted, :fitted], 1)
    sigma = float(spectrum.sigma[0])
    x = np.array(steps, np.float64)
    if sigma == 0.0:
        return Coefficient(name, fitted, (0.0,) * len(steps), 0.0, 0.0, 0.0, None)
    c = gram[:, :fitted] @ (spectrum.u[:, 0] / sigma)
    slope, intercept, r2 = fit_line(x[:fitted], c[:fitted])
    rest = c[fitted:]
    missed = float(((rest - (slope * x[fitted:] + intercept)) ** 2).sum())
    total = float(((rest - rest.mean()) ** 2).sum()) if len(rest) > 1 else 0.0
    outside = 1.0 - missed / total if total > 0.0 else None
    return Coefficient(name, fitted, tuple(map(float, c)), slope, intercept, r2, outside)


def update_sizes(gram: Gram) -> NDArray[np.float64]:
    """‖Δ_t − Δ_{t−1}‖ of every checkpoint, the first one's from the base."""
    sizes: NDArray[np.float64] = np.sqrt(sizes_of(gram))
    return sizes


def cells(grams: Mapping[str, Gram]) -> tuple[Cell, ...]:
    """Every layer × module type, in the scan's order."""
    sums: dict[Place, NDArray[np.float64]] = {}
    for name, gram in grams.items():
        parts = (np.trace(gram), gram[-1, -1], sizes_of(gram).sum())
        place = place_of(name)
        sums[place] = sums.get(place, np.zeros(3)) + np.array(parts)
    return tuple(Cell(place, *map(float, total)) for place, total in sums.items())


def telling_tensors(energies: Mapping[str, float], most: int) -> tuple[str, ...]:
    """The largest movers, each of another module type."""
    found: dict[str, str] = {}
    for name in sorted(energies, key=lambda n: -energies[n]):
        found.setdefault(place_of(name).module, name)
    return tuple(found.values())[:most]
