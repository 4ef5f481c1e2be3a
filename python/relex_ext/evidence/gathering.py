"""A scan → the evidence in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from relex_ext.errors import InputError
from relex_ext.evidence import findings
from relex_ext.evidence.groups import Place, place_of
from relex_ext.evidence.measures import measure
from relex_ext.evidence.nulls import (
    BYTES,
    Flips,
    Float64,
    cosine,
    memory_of,
    share_reaching,
    sizes_of,
    updates_of,
)
from relex_ext.evidence.pools import Pool
from relex_ext.evidence.portraits import Compared, Evidence
from relex_ext.scans import Scan


def gather(
    scan: Scan, steps: Sequence[int] | None = None, draws: int = 999, seed: int = 0
) -> Evidence:
    """Everything that a scan's Gram matrices say about the trajectory, by themselves.

    Args:
        scan: with solver gram for every tensor.
        steps: look at these checkpoints only.
        draws: random walks behind each p; with 0, every p is None.
        seed: of the draws. The same seed gives the same evidence.

    A value of several tensors is the mean over them by energy, and so is its null; r2_outside is
    1 − ΣSSE/ΣSST, since a mean of numbers without a lower bound would be its worst tensor's. p
    comes with the straightness of everything, and with the explained variance and R² of the whole
    model, where it belongs to the same number of all tensors taken as one vector. Tensors that
    never move are named in ``frozen`` and left out of everything else.

    Raises:
        InputError: a tensor with power iteration's vectors only, or fewer than two steps.
    """
    rows = _rows(scan, steps)
    chosen = tuple(scan.steps[row] for row in rows)
    energies = {name: float(np.diagonal(gram)[rows].sum()) for name, gram in scan.grams.items()}
    moving = [name for name, energy in energies.items() if energy > 0.0]
    frozen = tuple(name for name, energy in energies.items() if not energy > 0.0)
    total = np.zeros((len(rows), len(rows)))
    scale = sum(energies.values()) or 1.0
    for name in moving:
        total += scan.grams[name][np.ix_(rows, rows)] / scale
    updates = updates_of(total)
    flips = Flips(len(rows), memory_of(updates), draws, seed)

    same = np.ones(len(rows), np.bool_)
    parts, reached = [], []
    for stack in _stacks(scan, moving, energies, rows):
        same &= findings.repeats(stack)
        parts.append(measure(stack, chosen))
        reached.append(flips.straightness(updates_of(stack)))
    pool = Pool(moving, energies, scan.elements, parts, reached)
    places = {name: place_of(name) for name in moving}
    return Evidence(
        steps=chosen,
        whole=pool.whole(updates, flips, chosen),
        modules=pool.groups({name: place.module for name, place in places.items()}),
        layers=pool.groups(_layers(places)),
        tensors=pool.groups({name: name for name in moving}),
        persistence=_persistence(updates, flips),
        frozen=frozen,
        duplicates=findings.duplicates(same, chosen),
        jumps=findings.jumps(sizes_of(total), chosen),
        gaps=findings.gaps(chosen),
    )


def _rows(scan: Scan, steps: Sequence[int] | None) -> list[int]:
    if scan.spectra:
        name = next(iter(scan.spectra))
        raise InputError(
            f"scan: tensor {name}: holds power iteration's vectors; "
            "evidence needs a scan with solver gram"
        )
    chosen = scan.steps if steps is None else sorted(steps)
    if len(set(chosen)) != len(chosen):
        raise InputError(f"steps: expected each step once, found {list(chosen)}")
    if len(chosen) < 2:
        raise InputError(f"scan: expected at least 2 steps, found {len(chosen)}")
    return scan.rows_of(chosen)


def _stacks(
    scan: Scan, names: Sequence[str], energies: Mapping[str, float], rows: Sequence[int]
) -> Iterator[Float64]:
    """Gram matrices (n, T, T) of as many tensors as memory allows, each with a trace of one."""
    many = max(1, BYTES // (8 * len(rows) ** 2))
    block = np.ix_(rows, rows)
    for i in range(0, len(names), many):
        yield np.stack([scan.grams[n][block] / energies[n] for n in names[i : i + many]])


def _persistence(updates: Float64, flips: Flips) -> dict[int, Compared]:
    gaps = [2**k for k in range((len(updates) - 1).bit_length())]
    draws = flips.cosines(updates, gaps)
    return {
        gap: Compared(cosine(updates, gap), 0.0, share_reaching(row))
        for gap, row in zip(gaps, draws, strict=True)
    }


def _layers(places: Mapping[str, Place]) -> dict[str, str]:
    """Tensor → its layer's name, in the order of layers. A model with one stack numbers its layers
    ``layer 3``; with several they keep the stack's name."""
    inside = {name: place for name, place in places.items() if place.layer is not None}
    stacks = list(dict.fromkeys(place.stack for place in inside.values()))
    ordered = sorted(inside, key=lambda n: (stacks.index(inside[n].stack), inside[n].layer))
    if len(stacks) == 1:
        return {name: f"layer {inside[name].layer}" for name in ordered}
    return {name: f"{inside[name].stack}.{inside[name].layer}" for name in ordered}
