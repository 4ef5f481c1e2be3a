"""Max-min fair sharing: nobody can have more without somebody with less having less still."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fair_shares(most: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """What each of several clients gets of ``total`` if it takes ``most`` of it at most."""
    if most.sum() <= total:
        return most
    order = np.sort(most)
    served = np.concatenate(([0.0], np.cumsum(order)[:-1]))
    # If the i smallest have what they can take, the others share the rest: the level is the first
    # that the next smallest reaches.
    levels = (total - served) / np.arange(len(order), 0, -1)
    level = levels[np.argmax(levels <= order)]
    shares: NDArray[np.float64] = np.minimum(most, level)
    return shares
