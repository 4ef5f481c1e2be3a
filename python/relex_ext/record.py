"""What relex.json says: what was made from what, and how well it fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from relex_ext import __version__
from relex_ext.backends import Choice
from relex_ext.forecasts import Weights
from relex_ext.hub.names import recorded
from relex_ext.identities import identities_of
from relex_ext.plan import Plan
from relex_ext.trajectory import Trajectory

FORMAT = "relex/1"


def record_of(
    trajectory: Trajectory,
    names: Sequence[str],
    plan: Plan,
    choice: Choice,
    weights: Weights,
    options: Mapping[str, Any],
    spectral: bool,
) -> dict[str, Any]:
    """Nothing in it depends on threads, memory or the clock.

    ``names``: of the targets' folders; ``options``: what was asked for; ``spectral``: the weights
    are from spectra, which know a frozen tensor.
    """
    pairs = zip(trajectory.steps, trajectory.checkpoints, strict=True)
    solvers = {p.tensor.name: p.solver for p in plan.tensors}
    tensors = {}
    for tensor in trajectory.trained:
        fits = weights.components.get(tensor.name, ())
        tensors[tensor.name] = {
            "shape": list(tensor.shape),
            "solver": solvers[tensor.name],
            "frozen": not weights.tensors[tensor.name].any() if spectral else None,
            "components": [
                {
                    "sigma": c.sigma,
                    "explained_variance": c.explained_variance,
                    "slope": c.slope,
                    "intercept": c.intercept,
                    "r2": c.r2,
                    "parameters": list(c.parameters),
                }
                for c in fits
            ],
        }
    return {
        "format": FORMAT,
        "versions": {"relex_ext": __version__, "numpy": np.__version__},
        "base": recorded(trajectory.base.folder),
        "checkpoints": {str(s): recorded(c.folder) for s, c in pairs},
        "identities": identities_of(trajectory),
        "targets": dict(zip(names, weights.targets, strict=True)),
        "options": {**options, "backend": choice.name},
        "strengths": dict(zip(names, weights.strengths, strict=False)),
        "devices": choice.device_names(),
        "explained_variance": pooled(weights, "explained_variance"),
        "r2": pooled(weights, "r2"),
        "carried": list(weights.carried),
        "tensors": tensors,
    }


def pooled(weights: Weights, what: str) -> float | None:
    """A fit's leading ``explained_variance`` or ``r2``, averaged over tensors by their energy."""
    fits = [c[0] for c in weights.components.values() if c and getattr(c[0], what) is not None]
    energies = [c.sigma**2 / c.explained_variance for c in fits]
    if not fits:
        return None
    values = [getattr(c, what) for c in fits]
    return float(np.average(values, weights=energies))
