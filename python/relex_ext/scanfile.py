"""A scan file being written: laid out in advance, filled tensor by tensor. See scans.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relex_ext import __version__
from relex_ext.forecasts import Spectrum
from relex_ext.identities import elements_of, identities_of
from relex_ext.journal import Journal
from relex_ext.layout import Layout, SizedFile, lay_out
from relex_ext.plan import Plan
from relex_ext.trajectory import Trajectory

FORMAT = "relex-scan/1"

DIGESTS = "sha256"

SCANNED = "scanned"
"""The journal's word for a tensor whose matrix is in the file."""

Found = NDArray[np.float64] | Spectrum


class ScanFile:
    """A new one, or one that an earlier run has begun. A context manager: it closes the file."""

    def __init__(self, path: Path, layout: Layout, journal: Journal, made: bool = False) -> None:
        """``made``: another process has made it and puts some of the tensors there."""
        self.path = path
        self._journal = journal
        self._file = SizedFile(path, layout, made)
        names = [name for name in layout.offsets if name.startswith(("gram/", "u/"))]
        self._order = {name.partition("/")[2]: i for i, name in enumerate(names)}

    def __enter__(self) -> ScanFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.abandon()

    def put(self, name: str, found: Found) -> None:
        """From any thread."""
        digest = hashlib.sha256()
        for part, data in data_of(name, found).items():
            self._file.write(self._file.layout.offsets[part], data)
            digest.update(data)
        self._file.write(self._digest_place(name), digest.digest())
        self._journal.add(SCANNED, name, [digest.hexdigest()])

    def take(self, name: str, rows: int, rank: int) -> Found | None:
        """What an earlier run found, if it noted that and it still is what it noted."""
        noted = self._journal.done.get((SCANNED, name))
        if noted is None:
            return None
        power = f"u/{name}" in self._file.layout.offsets
        k = min(rank, rows)
        shapes = [(rows, k), (k,), ()] if power else [(rows, rows)]
        digest = hashlib.sha256()
        arrays = []
        for part, shape in zip(parts_of(name, power), shapes, strict=True):
            data = self._file.read(self._file.layout.offsets[part], 8 * int(np.prod(shape)))
            digest.update(data)
            arrays.append(data)
        if [digest.hexdigest()] != noted:
            return None
        self._journal.confirm(SCANNED, name)
        self._file.write(self._digest_place(name), digest.digest())  # a crash may have lost only it
        found = [np.frombuffer(a, "<f8").reshape(s) for a, s in zip(arrays, shapes, strict=True)]
        return Spectrum(found[0], found[1], float(found[2])) if power else found[0]

    def _digest_place(self, name: str) -> int:
        return self._file.layout.offsets[DIGESTS] + 32 * self._order[name]

    def flush(self) -> None:
        """Make durable what this process has put there."""
        self._file.flush()

    def complete(self) -> None:
        """The same, at the end."""
        self._file.close()


def planned_layout(
    trajectory: Trajectory, plan: Plan, rank: int, delta_dtype: str = "F32"
) -> Layout:
    """The scan file of a run, known before it starts."""
    grams = [p.tensor.name for p in plan.tensors if p.solver == "gram"]
    k = min(rank, len(trajectory.steps))
    spectra = {p.tensor.name: k for p in plan.tensors if p.solver == "power"}
    found = identities_of(trajectory)
    return scan_layout(
        trajectory.steps, grams, spectra, found, elements_of(trajectory), delta_dtype
    )


def scan_layout(
    steps: Sequence[int],
    grams: Sequence[str],
    spectra: Mapping[str, int],
    identities: Mapping[str, str],
    elements: Mapping[str, int],
    delta_dtype: str,
) -> Layout:
    t = len(steps)
    tensors: list[tuple[str, str, tuple[int, ...], int]] = []
    for name in grams:
        tensors.append((f"gram/{name}", "F64", (t, t), 8 * t * t))
    for name, k in spectra.items():
        tensors.append((f"u/{name}", "F64", (t, k), 8 * t * k))
        tensors.append((f"sigma/{name}", "F64", (k,), 8 * k))
        tensors.append((f"energy/{name}", "F64", (), 8))
    count = len(grams) + len(spectra)
    tensors.append((DIGESTS, "U8", (count, 32), 32 * count))
    described = {
        "steps": list(steps),
        "identities": dict(identities),
        "elements": dict(elements),
        "delta_dtype": delta_dtype,
        "version": __version__,
    }
    return lay_out(tensors, {"format": FORMAT, "scan": json.dumps(described)})


def parts_of(name: str, power: bool) -> list[str]:
    """The entries of a scan file that are about one tensor."""
    return [f"u/{name}", f"sigma/{name}", f"energy/{name}"] if power else [f"gram/{name}"]


def data_of(name: str, found: Found) -> dict[str, bytes]:
    """Entry of the file → its bytes."""
    if not isinstance(found, Spectrum):
        return {f"gram/{name}": _bytes(found)}
    parts = [found.u, found.sigma, np.array(found.energy)]
    return dict(zip(parts_of(name, power=True), map(_bytes, parts), strict=True))


def _bytes(values: NDArray[np.float64]) -> bytes:
    return np.ascontiguousarray(values, "<f8").tobytes()


def is_finite(found: Found) -> bool:
    """False for what stands for a tensor that holds NaN or Inf."""
    return bool(np.isfinite(found.energy if isinstance(found, Spectrum) else found).all())
