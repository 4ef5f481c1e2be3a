"""A repository at one commit: the names of its files, and the files that are needed of it."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, constants

from relex_ext import __version__
from relex_ext.adapters import opening as adapters
from relex_ext.adapters import settings
from relex_ext.checkpoints import CONFIG, INDEX, SINGLE, parse_index
from relex_ext.companions import COMPANIONS
from relex_ext.errors import InputError
from relex_ext.hub.failures import FAILURES, telling, unreachable
from relex_ext.hub.names import HubName
from relex_ext.output import CARD

SMALL = ".gitattributes"
"""A file that every repository has: with it, the cache learns a revision's commit."""

WORKERS = 8
"""Files of one commit that are fetched at a time."""


def api() -> HfApi:
    return HfApi(library_name="relex", library_version=__version__)


@dataclass(frozen=True, slots=True)
class File:
    """One of the Hub's: its size, and the name under which its contents are known there."""

    size: int
    blob: str


@dataclass(frozen=True, slots=True)
class Repository:
    """``name``: at its commit; ``files``: path → file, of the whole commit; None where nobody can
    be asked: then ``folder``, the commit's in the cache, has whatever there is."""

    name: HubName
    folder: Path
    files: Mapping[str, File] | None

    def place(self, folder: str) -> HubName:
        return HubName(self.name.repo, self.name.revision, folder)

    def names(self) -> list[str]:
        """The paths of its files, or of those that the cache has."""
        if self.files is not None:
            return list(self.files)
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in found]

    def fetch(self, paths: Iterable[str], cache: Path | None = None) -> Path:
        """Into the cache, or another one; what is there already is not asked for again. The
        commit's folder there."""
        with telling(self.name):
            place = api().snapshot_download(
                self.name.repo, revision=self.name.revision, max_workers=WORKERS, cache_dir=cache,
                allow_patterns=[SMALL, *map(glob.escape, paths)],
            )  # fmt: skip
        return Path(place)

    def needed(self, folder: str, companions: bool) -> list[str]:
        """The paths of a model's weights, its config and, if asked for, what lies beside them.
        Fetches the index, which says what its shards are.

        Raises:
            InputError: the index is none, or nobody can be asked and something is missing.
        """
        at = f"{folder}/" if folder else ""
        if at + INDEX not in self.names():
            return self._with_beside(folder, [SINGLE], {CONFIG}, companions)
        self.fetch([at + INDEX])
        try:
            shards = sorted({*parse_index((self.folder / at / INDEX).read_bytes())[0].values()})
        except ValueError as error:
            raise InputError(f"{self.place(folder)}: {INDEX}: {error}") from error
        return self._with_beside(folder, shards, {CONFIG, INDEX}, companions)

    def needed_of_adapter(self, folder: str, companions: bool) -> list[str]:
        """The same of a LoRA adapter."""
        return self._with_beside(folder, [adapters.WEIGHTS], {settings.CONFIG}, companions)

    def _with_beside(
        self, folder: str, weights: list[str], wanted: set[str], companions: bool
    ) -> list[str]:
        at = f"{folder}/" if folder else ""
        known = self.names()
        missing = [name for name in weights if at + name not in known]
        if missing:
            raise InputError(f"{self.place(folder)}: {self._absent(missing)}")
        patterns = (*COMPANIONS, CARD) if companions else ()
        beside = (path.removeprefix(at) for path in known if path.startswith(at))
        wanted |= {n for n in beside if any(fnmatchcase(n, p) for p in patterns) and "/" not in n}
        return [at + name for name in [*weights, *sorted(wanted)] if at + name in known]

    def _absent(self, names: list[str]) -> str:
        what = ", ".join(names if len(names) < 4 else [*names[:3], "…"])
        if self.files is not None:
            return f"expected {what}, named by its index, found none"
        return f"{what}: {not_cached()}"


def not_cached() -> str:
    """What is said of a file that the cache lacks, where nobody can be asked."""
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
    return f"not in the Hub's cache, and {why}"


def open_repository(name: HubName) -> Repository:
    """Find the commit of a revision and the names of its files, or what the cache has of it.

    Raises:
        InputError: there is none, it may not be seen, or the Hub cannot be reached and the cache
            knows nothing of it.
    """
    with telling(name):
        found = api().snapshot_download(name.repo, revision=name.revision, allow_patterns=SMALL)
    folder = Path(found)
    commit = HubName(name.repo, folder.name)
    return Repository(commit, folder, None if constants.HF_HUB_OFFLINE else _files_of(commit))


def _files_of(name: HubName) -> dict[str, File] | None:
    with telling(name):
        try:
            info = api().model_info(name.repo, revision=name.revision, files_metadata=True)
        except FAILURES as error:
            if unreachable(error):
                return None  # the cache may have all of it
            raise
    return {
        file.rfilename: File(
            file.size or 0, (file.blob_id or "") if file.lfs is None else file.lfs.sha256
        )
        for file in info.siblings or []
    }
