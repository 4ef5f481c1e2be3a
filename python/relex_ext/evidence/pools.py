"""What was measured of single tensors, pooled: by module type, by layer, for the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from relex_ext.evidence.measures import RANKS, Measures, line_r2
from relex_ext.evidence.nulls import Flips, Float64, share_reaching
from relex_ext.evidence.portraits import Compared, Portrait

WHOLE = "model"


class Pool:
    """Portraits of any of the tensors that move.

    ``names`` (n): those tensors; ``parts``: their measures and ``reached``: their straightness in
    every draw, (…, 1 + draws), both in that order. Draws flip all tensors alike, so that what
    tensors have in common is in the draws of their mean as well.
    """

    def __init__(
        self,
        names: Sequence[str],
        energies: Mapping[str, float],
        elements: Mapping[str, int],
        parts: Sequence[Measures],
        reached: Sequence[Float64],
    ) -> None:
        self._names = list(names)
        self._energies = np.array([energies[name] for name in names], np.float64)
        self._elements = [elements.get(name) for name in names]
        self._measured = {
            what: np.concatenate([getattr(part, what) for part in parts])
            for what in (field.name for field in fields(Measures) if parts)
        }
        self._reached = np.concatenate(reached) if reached else np.zeros((0, 0))

    def groups(self, group_of: Mapping[str, str]) -> tuple[Portrait, ...]:
        """One portrait for each group of tensors, in the order in which they first appear."""
        members: dict[str, list[int]] = {}
        row = {name: i for i, name in enumerate(self._names)}
        for name, group in group_of.items():
            members.setdefault(group, []).append(row[name])
        return tuple(self._portrait(group, rows) for group, rows in members.items())

    def whole(self, updates: Float64, flips: Flips, steps: Sequence[int]) -> Portrait:
        """All of them, with p of explained variance and R² from the summed H (T, T)."""
        if not self._names:
            return self._nothing(flips, len(steps))
        found = self._portrait(WHOLE, range(len(self._names)))
        if flips.signs.shape[1] < 2:
            return found
        shares, vectors = flips.spectra(updates, len(found.explained_variance))
        r2 = line_r2(np.array(steps, np.float64), vectors)
        return replace(
            found,
            explained_variance=tuple(
                replace(one, p=share_reaching(shares[:, k]))
                for k, one in enumerate(found.explained_variance)
            ),
            r2=replace(found.r2, p=share_reaching(r2)),
        )

    def _nothing(self, flips: Flips, checkpoints: int) -> Portrait:
        """Of a model that never moves: zeros, which every walk reaches."""
        none = Compared(0.0, 0.0, share_reaching(np.zeros(flips.signs.shape[1])))
        shares = (none,) * min(RANKS, checkpoints)
        return Portrait(WHOLE, 0, 0, 0.0, shares, none, None, none)

    def _portrait(self, name: str, rows: Sequence[int]) -> Portrait:
        energies = self._energies[rows]
        energy = float(energies.sum())
        weights = energies / energy

        def mean(what: str) -> Float64:
            return np.asarray(weights @ self._measured[what][rows])

        shares = zip(mean("shares"), mean("null_shares"), strict=True)
        varied = float(mean("varied"))
        elements = [self._elements[row] for row in rows]
        known = [count for count in elements if count is not None]
        return Portrait(
            name=name,
            tensors=len(rows),
            elements=sum(known) if len(known) == len(rows) else None,
            energy=energy,
            explained_variance=tuple(Compared(float(v), float(n)) for v, n in shares),
            r2=Compared(float(mean("r2")), float(mean("null_r2"))),
            r2_outside=1.0 - float(mean("missed")) / varied if varied > 0.0 else None,
            straightness=Compared(
                float(mean("straightness")), 1.0, share_reaching(weights @ self._reached[rows])
            ),
        )
