"""Shards → G, and the file it is kept in.

A scan file is a safetensors file with ``gram/<tensor>`` (F64, T × T) for every trained tensor, or
``u/<tensor>`` (F64, T × k), ``sigma/<tensor>`` (F64, k) and ``energy/<tensor>`` (F64, scalar) where
power iteration was used; its metadata names the steps and identifies the files it was made from.
``sha256`` (U8, tensors × 32) has the digest of each tensor's numbers, in that order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext.errors import InputError, OutputError
from relex_ext.forecasts import Source, Spectrum
from relex_ext.headers import TensorEntry, check_unchanged, header_of
from relex_ext.identities import elements_of, identities_of
from relex_ext.layout import make_folder, remove_folders, replace_durably
from relex_ext.plainfiles import opened, read_at
from relex_ext.scanfile import DIGESTS, FORMAT, Found, data_of, is_finite, parts_of, scan_layout
from relex_ext.steps import PathLike, few_of
from relex_ext.trajectory import Trajectory


@dataclass(frozen=True)
class Scan:
    """What one pass over a trajectory leaves: per tensor its Gram matrix or leading spectrum.

    ``grams``: name → G (T, T) float64, symmetric; ``spectra``: name → what power iteration found;
    ``steps``: the T steps; ``identities``: ``"base"`` and each step (as text) → :func:`identity`;
    ``elements``: name → numbers in that tensor, empty where an older file does not say;
    ``delta_dtype``: what deltas were rounded to; ``nonfinite``: tensors that hold NaN or Inf, of
    which nothing is known.
    """

    steps: tuple[int, ...]
    grams: Mapping[str, NDArray[np.float64]]
    spectra: Mapping[str, Spectrum]
    identities: Mapping[str, str]
    elements: Mapping[str, int] = field(default_factory=dict)
    delta_dtype: str = "F32"
    nonfinite: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.grams, *self.spectra)

    def rows_of(self, steps: Sequence[int]) -> list[int]:
        """The rows that hold ``steps``."""
        missing = [step for step in steps if step not in self.steps]
        if missing:
            noun = "step" if len(missing) == 1 else "steps"
            raise InputError(
                f"the scan lacks {noun} {few_of(missing)}; it has {few_of(self.steps)}"
            )
        return [self.steps.index(step) for step in steps]

    @classmethod
    def of(
        cls,
        trajectory: Trajectory,
        found: Mapping[str, Found],
        delta_dtype: str,
    ) -> Scan:
        """What a run has found, in the trajectory's order."""
        ordered = {tensor.name: found[tensor.name] for tensor in trajectory.trained}
        return cls._sorted_out(
            trajectory.steps, ordered, identities_of(trajectory), elements_of(trajectory),
            delta_dtype,
        )  # fmt: skip

    @classmethod
    def _sorted_out(
        cls,
        steps: tuple[int, ...],
        found: Mapping[str, Found],
        identities: Mapping[str, str],
        elements: Mapping[str, int],
        delta_dtype: str,
    ) -> Scan:
        known = {name: one for name, one in found.items() if is_finite(one)}
        grams = {name: one for name, one in known.items() if not isinstance(one, Spectrum)}
        spectra = {name: one for name, one in known.items() if isinstance(one, Spectrum)}
        nonfinite = tuple(name for name in found if name not in known)
        return cls(steps, grams, spectra, identities, elements, delta_dtype, nonfinite)

    def chosen(
        self, until: int | None = None, steps: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Its steps up to ``until``, or of ``steps`` those.

        Raises:
            InputError: a step that it lacks, or one twice.
        """
        found = self.steps if steps is None else tuple(sorted(steps))
        self.rows_of(found)
        if len(set(found)) != len(found):
            raise InputError(f"steps: expected each step once, found {list(found)}")
        return tuple(step for step in found if until is None or step <= until)

    def source(self, name: str, steps: Sequence[int] | None = None) -> Source:
        """What is known of a tensor, over all steps or some of them."""
        if name not in self.grams and name not in self.spectra:
            raise InputError(f"scan: tensor {name}: missing")
        found = self.grams[name] if name in self.grams else self.spectra[name]
        rows = None if steps is None else self.rows_of(steps)
        return Source(name, found, None if rows == list(range(len(self.steps))) else rows)

    def spectrum(self, name: str, rank: int, steps: Sequence[int] | None = None) -> Spectrum:
        """The leading ``rank`` pairs of a tensor, over all steps or some of them."""
        return self.source(name, steps).spectrum(rank)

    def check(self, trajectory: Trajectory, delta_dtype: str = "F32") -> None:
        """Refuse a scan that was made from other files or deltas, or lacks a tensor or step."""
        if self.delta_dtype != delta_dtype:
            raise InputError(
                f"scan: expected deltas in {delta_dtype}, found {self.delta_dtype}; scan again"
            )
        self.rows_of(trajectory.steps)
        for name in (tensor.name for tensor in trajectory.trained):
            if name not in {*self.names, *self.nonfinite}:
                raise InputError(f"scan: tensor {name}: missing")
        found = identities_of(trajectory)
        for key, digest in found.items():
            if self.identities.get(key) != digest:
                what = "the base" if key == "base" else f"step {key}"
                raise InputError(f"scan: made from other files than {what} has now; scan again")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scan file, whole or not at all."""
        place = Path(path)
        if place.is_dir():
            raise OutputError(f"{place}: expected a file to write, found a folder")
        spectra = {name: len(spectrum.sigma) for name, spectrum in self.spectra.items()}
        layout = scan_layout(
            self.steps, list(self.grams), spectra, self.identities, self.elements, self.delta_dtype
        )
        data = bytearray(layout.size)
        data[: len(layout.header)] = layout.header
        held: dict[str, Found] = {**self.grams, **self.spectra}
        for i, (name, found) in enumerate(held.items()):
            digest = hashlib.sha256()
            for part, numbers in data_of(name, found).items():
                at = layout.offsets[part]
                data[at : at + len(numbers)] = numbers
                digest.update(numbers)
            at = layout.offsets[DIGESTS] + 32 * i
            data[at : at + 32] = digest.digest()
        created = make_folder(place.absolute().parent)
        try:
            replace_durably(place, bytes(data))
        except OSError as error:
            remove_folders(created)
            raise OutputError(f"{place}: cannot be written: {error.strerror}") from error

    @classmethod
    def given(cls, scan: Scan | PathLike) -> Scan:
        """A scan, or that of a file."""
        return scan if isinstance(scan, Scan) else cls.load(scan)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scan:
        """Read a scan file.

        Raises:
            InputError: not a safetensors file, not one written by :meth:`save`, or damaged.
        """
        place = Path(path)
        if not os.path.lexists(place):
            raise InputError(f"{place}: expected a scan file, found none")
        header = header_of(place)
        if header.metadata.get("format") != FORMAT:
            found = header.metadata.get("format", "none")
            raise InputError(f"{place}: expected a scan file ({FORMAT}), found format {found}")
        with opened(place) as (descriptor, info):  # not mapped: one that shrinks would be SIGBUS
            data = read_at(place, descriptor, 0, info.st_size)
        check_unchanged([header.shard])
        try:
            return cls._read(memoryview(data), header.entries, json.loads(header.metadata["scan"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{place}: a damaged scan file: {error!r}") from error

    @classmethod
    def _read(
        cls, data: memoryview, entries: Sequence[TensorEntry], described: dict[str, Any]
    ) -> Scan:
        parts = {e.name: data[e.offset : e.offset + e.nbytes] for e in entries}
        _check_digests(parts)
        arrays = {
            e.name: np.frombuffer(parts[e.name], "<f8").reshape(e.shape)
            for e in entries
            if e.name != DIGESTS
        }
        found: dict[str, Found] = {}
        for part, array in arrays.items():
            kind, _, name = part.partition("/")
            if kind == "gram":
                found[name] = array
            elif kind == "u":
                energy = float(arrays[f"energy/{name}"].reshape(()))
                found[name] = Spectrum(array, arrays[f"sigma/{name}"], energy)
        return cls._sorted_out(
            tuple(described["steps"]), found, described["identities"],
            described.get("elements", {}), described.get("delta_dtype", "F32"),
        )  # fmt: skip


def _check_digests(parts: Mapping[str, memoryview]) -> None:
    """Earlier versions wrote none."""
    if DIGESTS not in parts:
        return
    names = [(n.partition("/")[2], n.startswith("u/")) for n in parts if n[:2] in ("gr", "u/")]
    digests = parts[DIGESTS]
    if len(digests) != 32 * len(names):
        raise ValueError(f"{len(digests)} bytes of digests for {len(names)} tensors")
    for i, (name, power) in enumerate(names):
        found = hashlib.sha256(b"".join(parts[part] for part in parts_of(name, power)))
        if found.digest() != digests[32 * i : 32 * i + 32]:
            raise ValueError(f"tensor {name}: its digest is another")
