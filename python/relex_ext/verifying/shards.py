"""An output's files and tensors against the digests that its relex.json has of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from relex_ext.applied import read_weights
from relex_ext.checkpoints import INDEX, open_checkpoint
from relex_ext.errors import InputError
from relex_ext.headers import TensorEntry, header_of
from relex_ext.output import SCAN, WEIGHTS
from relex_ext.scans import Scan
from relex_ext.verifying.noted import OTHER, Model, Noted
from relex_ext.verifying.reading import Reader

SHARD = ".safetensors"


class Recorded(NamedTuple):
    """A file, and what relex.json has of it. ``target``: None for one beside the targets."""

    path: Path
    digest: str
    target: str | None


def recorded(noted: Noted) -> list[Recorded]:
    """Every file that relex.json has a digest of."""
    files = [Recorded(noted.out / name, digest, None) for name, digest in noted.files.items()]
    for target, model in noted.models.items():
        files += [Recorded(model.folder / n, digest, target) for n, digest in model.files.items()]
    return files


class Contents:
    """What is found in an output. ``entries``: target → the tensors of its sound shards;
    ``damages``: one line each."""

    def __init__(self, noted: Noted, reader: Reader) -> None:
        self.entries: dict[str, dict[str, TensorEntry]] = {target: {} for target in noted.models}
        self.damages: list[str] = []
        self._noted = noted
        self._reader = reader
        self._broken: set[str | None] = set()

    def check(self) -> None:
        """Headers and other files, what else lies in the targets' folders, every tensor."""
        models = self._noted.models
        for target, model in models.items():
            if not model.folder.is_dir():
                self._broken.add(target)
                self.damages.append(f"{model.folder}: expected a model folder, found none")
        files = [file for file in recorded(self._noted) if file.target not in self._broken]
        there = [target for target in models if target not in self._broken]
        self.damages += self._reader.each(self._file, files)
        for target in there:
            self.damages += self._folder(target, models[target])
        tensors = [
            (entry, digest)
            for target in there
            for name, digest in models[target].tensors.items()
            if (entry := self.entries[target].get(name)) is not None
        ]
        self.damages += self._reader.each(self._tensor, tensors)

    def _file(self, file: Recorded) -> str | None:
        try:
            self._check_file(file)
        except InputError as error:
            self._broken.add(file.target)
            return str(error)
        return None

    def _check_file(self, file: Recorded) -> None:
        path, folder = file.path, file.path.parent
        if file.target is not None and path.name.endswith(SHARD):
            header = header_of(path, folder)
            size = header.shard.size - sum(entry.nbytes for entry in header.entries)
            if self._reader.sha256(path, folder, 0, size) != file.digest:
                raise InputError(f"{path}: its header is not the one that was written")
            self.entries[file.target].update({entry.name: entry for entry in header.entries})
            return
        if self._reader.sha256(path, folder) != file.digest:
            raise InputError(f"{path}: {OTHER}")
        if file.target is None:
            {SCAN: Scan.load, WEIGHTS: read_weights}[path.name](path)

    def _folder(self, target: str, model: Model) -> list[str]:
        """What loaders would find there beside or instead of what was written."""
        found = [
            f"{path}: not written by relex, and loaders would take it for weights"
            for path in sorted(model.folder.iterdir())
            if path.name not in model.files and path.name.endswith((SHARD, INDEX))
        ]
        if found or target in self._broken:
            return found
        held, noted = self.entries[target].keys(), model.tensors.keys()
        found += [f"{model.folder}: tensor {n}: missing" for n in sorted(noted - held)]
        found += [f"{model.folder}: tensor {n}: not written by relex" for n in sorted(held - noted)]
        try:
            open_checkpoint(model.folder)
        except InputError as error:
            found.append(str(error))
        return found

    def _tensor(self, item: tuple[TensorEntry, str]) -> str | None:
        entry, digest = item
        path = entry.shard.path
        try:
            found = self._reader.sha256(path, path.parent, entry.offset, entry.nbytes)
        except InputError as error:
            return f"{error} (tensor {entry.name})"
        if found == digest:
            return None
        return f"{path}: tensor {entry.name}: {OTHER}"
