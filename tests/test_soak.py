"""A few runs of the soak test, which has to be found by its file's name otherwise."""

from __future__ import annotations

import soak


def test_soak() -> None:
    tally, footprint = soak.go(runs=25, seed=0)
    tally.check()
    assert len(set(footprint.descriptors)) == 1
