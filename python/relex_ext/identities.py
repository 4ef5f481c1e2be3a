"""What tells a trajectory's files, and a job on them, from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from relex_ext import __version__
from relex_ext.checkpoints import Checkpoint
from relex_ext.trajectory import Trajectory

if TYPE_CHECKING:
    from relex_ext.backends import Choice
    from relex_ext.forecasts import Weights
    from relex_ext.plan import Plan


def identity(checkpoint: Checkpoint) -> str:
    """A digest that changes when a checkpoint's files do: names, sizes, times, headers. What the
    Hub has under a name of its own is the same whenever and wherever it was fetched."""
    parts = [
        [s.path.name, s.size, s.blob or s.mtime_ns, s.header_sha256] for s in checkpoint.shards
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def identities_of(trajectory: Trajectory) -> dict[str, str]:
    pairs = zip(trajectory.steps, trajectory.checkpoints, strict=True)
    return {"base": identity(trajectory.base)} | {str(s): identity(c) for s, c in pairs}


def elements_of(trajectory: Trajectory) -> dict[str, int]:
    return {tensor.name: tensor.columns for tensor in trajectory.trained}


def job_of(
    trajectory: Trajectory,
    plan: Plan,
    choice: Choice,
    options: Mapping[str, Any],
    weights: Weights | None = None,
    targets: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Everything that decides the bytes of an output, for its journal. Threads and memory do not;
    the processor's instruction set and the kind of device do.

    ``weights``: where they are given; ``targets``: folder → step.
    """
    digest = None
    if weights is not None:
        hashed = hashlib.sha256()
        for name, table in sorted(weights.tensors.items()):
            hashed.update(name.encode() + b"\0")
            hashed.update(np.ascontiguousarray(table, "<f8").tobytes())
        digest = hashed.hexdigest()
    computing = [getattr(choice.backends[0], "isa", None), *choice.device_names()]
    return {
        "version": __version__,
        "inputs": identities_of(trajectory),
        "targets": dict(targets or {}),
        "options": dict(options),
        "weights": digest,
        "computes": [choice.name, *(name for name in computing if name is not None)],
        "span": plan.tensors[0].span,
        "solvers": {p.tensor.name: p.solver for p in plan.tensors},
    }
