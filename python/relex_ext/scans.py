"""Shards → G, and the file it is kept in.

A scan file is a safetensors file with ``gram/<tensor>`` (F64, T × T) for every trained tensor, or
``u/<tensor>`` (F64, T × k), ``sigma/<tensor>`` (F64, k) and ``energy/<tensor>`` (F64, scalar) where
power iteration was used; its metadata names the steps and identifies the files it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relex_ext import __version__
from relex_ext.checkpoints import Checkpoint, PathLike, TensorEntry, few_of, read_header
from relex_ext.errors import InputError, OutputError
from relex_ext.forecasts import Source, Spectrum
from relex_ext.layout import (
    Layout,
    SizedFile,
    lay_out,
    make_folder,
    remove_folders,
    sync_folder,
)
from relex_ext.plan import Plan
from relex_ext.trajectory import Trajectory

FORMAT = "relex-scan/1"


def identity(checkpoint: Checkpoint) -> str:
    """A digest that changes when a checkpoint's files do: names, sizes, times, headers."""
    parts = [[s.path.name, s.size, s.mtime_ns, s.header_sha256] for s in checkpoint.shards]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Scan:
    """What one pass over a trajectory leaves: per tensor its Gram matrix or leading spectrum.

    ``grams``: name → G (T, T) float64, symmetric; ``spectra``: name → what power iteration found;
    ``steps``: the T steps; ``identities``: ``"base"`` and each step (as text) → :func:`identity`;
    ``elements``: name → numbers in that tensor, empty where an older file does not say;
    ``delta_dtype``: what deltas were rounded to.
    """

    steps: tuple[int, ...]
    grams: Mapping[str, NDArray[np.float64]]
    spectra: Mapping[str, Spectrum]
    identities: Mapping[str, str]
    elements: Mapping[str, int] = field(default_factory=dict)
    delta_dtype: str = "F32"

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
        found: Mapping[str, NDArray[np.float64] | Spectrum],
        delta_dtype: str,
    ) -> Scan:
        """What a run has found, in the trajectory's order."""
        ordered = [(tensor.name, found[tensor.name]) for tensor in trajectory.trained]
        grams = {name: one for name, one in ordered if not isinstance(one, Spectrum)}
        spectra = {name: one for name, one in ordered if isinstance(one, Spectrum)}
        return cls(
            trajectory.steps, grams, spectra, identities_of(trajectory), elements_of(trajectory),
            delta_dtype,
        )  # fmt: skip

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
            if name not in self.grams and name not in self.spectra:
                raise InputError(f"scan: tensor {name}: missing")
        found = identities_of(trajectory)
        for key, digest in found.items():
            if self.identities.get(key) != digest:
                what = "the base" if key == "base" else f"step {key}"
                raise InputError(f"scan: made from other files than {what} has now; scan again")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scan file, whole or not at all."""
        spectra = {n: len(s.sigma) for n, s in self.spectra.items()}
        layout = scan_layout(
            self.steps, list(self.grams), spectra, self.identities, self.elements, self.delta_dtype
        )
        with ScanFile.beside(Path(path), layout) as file:
            for name, gram in self.grams.items():
                file.put_gram(name, gram)
            for name, spectrum in self.spectra.items():
                file.put_spectrum(name, spectrum)
            file.publish()

    @classmethod
    def given(cls, scan: Scan | PathLike) -> Scan:
        """A scan, or that of a file."""
        return scan if isinstance(scan, Scan) else cls.load(scan)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scan:
        """Open a scan file; its matrices are mapped and read when they are used.

        Raises:
            InputError: not a safetensors file, or not one written by :meth:`save`.
        """
        place = Path(path)
        if not place.is_file():
            raise InputError(f"{place}: expected a scan file, found none")
        _, entries = read_header(place)
        memory = np.memmap(place, np.uint8, "r")
        length = int.from_bytes(memory[:8].tobytes(), "little")
        metadata = json.loads(memory[8 : 8 + length].tobytes()).get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            found = metadata.get("format", "none")
            raise InputError(f"{place}: expected a scan file ({FORMAT}), found format {found}")
        try:
            return cls._read(memory, entries, json.loads(metadata["scan"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{place}: a damaged scan file: {error!r}") from error

    @classmethod
    def _read(
        cls, memory: NDArray[np.uint8], entries: Sequence[TensorEntry], described: dict[str, Any]
    ) -> Scan:
        arrays = {
            e.name: memory[e.offset : e.offset + e.nbytes].view(np.float64).reshape(e.shape)
            for e in entries
        }
        grams = {n.removeprefix("gram/"): a for n, a in arrays.items() if n.startswith("gram/")}
        spectra = {}
        for name in (n.removeprefix("u/") for n in arrays if n.startswith("u/")):
            energy = float(arrays[f"energy/{name}"].reshape(()))
            spectra[name] = Spectrum(arrays[f"u/{name}"], arrays[f"sigma/{name}"], energy)
        return cls(
            tuple(described["steps"]), grams, spectra, described["identities"],
            described.get("elements", {}), described.get("delta_dtype", "F32"),
        )  # fmt: skip


def identities_of(trajectory: Trajectory) -> dict[str, str]:
    pairs = zip(trajectory.steps, trajectory.checkpoints, strict=True)
    return {"base": identity(trajectory.base)} | {str(s): identity(c) for s, c in pairs}


def elements_of(trajectory: Trajectory) -> dict[str, int]:
    return {tensor.name: tensor.columns for tensor in trajectory.trained}


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
    described = {
        "steps": list(steps),
        "identities": dict(identities),
        "elements": dict(elements),
        "delta_dtype": delta_dtype,
        "version": __version__,
    }
    return lay_out(tensors, {"format": FORMAT, "scan": json.dumps(described)})


class ScanFile:
    """A scan file being written tensor by tensor under a temporary name."""

    def __init__(self, path: Path, layout: Layout, final: Path | None = None) -> None:
        self.path = path
        self._final = final
        self._created: list[Path] = []
        self._file = SizedFile(path, layout)

    @classmethod
    def beside(cls, path: Path, layout: Layout) -> ScanFile:
        """To be published at ``path``."""
        if path.is_dir():
            raise OutputError(f"{path}: expected a file to write, found a folder")
        folder = path.absolute().parent
        created = make_folder(folder)
        partial = folder / f".{path.name}.partial-{secrets.token_hex(4)}"
        try:
            file = cls(partial, layout, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            remove_folders(created)
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        file._created = created
        return file

    def __enter__(self) -> ScanFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.abandon()
        if self._final is not None:
            self.path.unlink(missing_ok=True)
            remove_folders(self._created)

    def put_gram(self, name: str, gram: NDArray[np.float64]) -> None:
        self._put(f"gram/{name}", gram)

    def put_spectrum(self, name: str, spectrum: Spectrum) -> None:
        self._put(f"u/{name}", spectrum.u)
        self._put(f"sigma/{name}", spectrum.sigma)
        self._put(f"energy/{name}", np.array(spectrum.energy))

    def _put(self, key: str, values: NDArray[np.float64]) -> None:
        data = np.ascontiguousarray(values, "<f8").tobytes()
        self._file.write(self._file.layout.offsets[key], data)

    def publish(self) -> None:
        """Make it durable and, if it has one, give it its final name."""
        self._file.close()
        if self._final is not None:
            self.path.replace(self._final)
            sync_folder(self._final.absolute().parent)
            self._final = None
