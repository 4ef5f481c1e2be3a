"""Things worth knowing before any statistics: repeated checkpoints, jumps, gaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from relex_ext.evidence.nulls import Float64

SAME = 1e-6
"""What an element G_ij of a scan may be off by, relative to √(G_ii G_jj): tests/tolerances.py."""

JUMP, SPREADS, NEIGHBOURS = 3.0, 6.0, 5


def distances_of(steps: Sequence[int]) -> Float64:
    """Steps from each checkpoint's predecessor, (T,); the first one's is the base, at step 0."""
    before = min(0, steps[0] - 1)  # a run may number a checkpoint 0
    return np.diff(np.array(steps, np.float64), prepend=before)


def repeats(grams: Float64) -> NDArray[np.bool_]:
    """Which checkpoints have their predecessor's weights, in all of a stack (n, T, T): (T,).

    Judged by the rows of G: ⟨Δ_t, Δ_j⟩ = ⟨Δ_{t−1}, Δ_j⟩ for all j, up to the rounding of G. The
    distance ‖d_t‖² alone would not do: it is a difference of far larger numbers, so the updates of
    a long run, 1/T² of ‖Δ_T‖² and less, drown in their rounding; in the rows they count 1/T.
    """
    own = np.sqrt(np.diagonal(grams, axis1=1, axis2=2))
    before = np.pad(own, ((0, 0), (1, 0)))[:, :-1]
    allowed = SAME * np.maximum(own, before)[:, :, None] * own[:, None, :]
    changed = np.abs(np.diff(grams, axis=1, prepend=0.0)) > allowed
    return np.asarray(~changed.any(axis=(0, 2)))


def duplicates(same: NDArray[np.bool_], steps: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Pairs (step before, step) from :func:`repeats`; the base is step 0."""
    before = (0, *steps[:-1])
    return tuple((before[t], steps[t]) for t in np.flatnonzero(same).tolist())


def jumps(sizes: Float64, steps: Sequence[int]) -> tuple[tuple[int, float], ...]:
    """Updates far larger than their neighbours: (step, times larger), from ‖d_t‖² (T,).

    An update is held against the median of what the five before and after it predict. A neighbour
    of length a over g steps predicts a·√r for r times as many steps if the run wanders, a·r if it
    drifts; it is given the benefit of the doubt, the larger of the two. A jump is over 3 times its
    prediction, and over 6 standard deviations (from the median absolute deviation, of logarithms)
    of all such quotients, for tensors so small that chance alone makes large ones. Fewer than four
    neighbours that move are no basis for a judgement.
    """
    lengths, distances = np.sqrt(sizes), distances_of(steps)
    quotients = np.zeros(len(steps))
    for t in np.flatnonzero(lengths):
        around = [
            u
            for u in range(max(0, t - NEIGHBOURS), min(len(steps), t + NEIGHBOURS + 1))
            if u != t and lengths[u] > 0.0
        ]
        if len(around) >= 4:
            ratio = distances[t] / distances[around]
            expected = np.median(lengths[around] * np.maximum(ratio, np.sqrt(ratio)))
            quotients[t] = lengths[t] / expected
    judged = np.flatnonzero(quotients)
    if not len(judged):
        return ()
    logs = np.log(quotients[judged])
    spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    limit = max(JUMP, float(np.exp(SPREADS * spread)))
    far = np.flatnonzero(quotients > limit)
    return tuple((steps[t], float(quotients[t])) for t in far.tolist())


def gaps(steps: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Neighbouring steps, the base's 0 among them, more than one and a half times as far apart as
    usual: the median distance, of an even number the lower."""
    distances = distances_of(steps)
    usual = np.sort(distances)[(len(steps) - 1) // 2]
    before = (0, *steps[:-1])
    wide = np.flatnonzero(distances > 1.5 * usual)
    return tuple((before[t], steps[t]) for t in wide.tolist())
