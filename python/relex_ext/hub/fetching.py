"""Models on the Hub → folders of its cache here, each revision pinned to its commit.

Which folders of a repository are steps, and which have weights, is decided on its outline: folders
and empty files under the names that its commit has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from relex_ext.checkpoints import weights_folder
from relex_ext.errors import InputError
from relex_ext.hub.mirror import Mirror
from relex_ext.hub.names import HubName, hub_name
from relex_ext.hub.repositories import Repository, open_repository
from relex_ext.steps import Checkpoints, PathLike, resolve, select

AT_A_TIME = 4
"""Revisions that are asked about, or fetched, at a time."""

Given = TypeVar("Given")


def fetch(
    base: PathLike,
    checkpoints: Checkpoints,
    until: int | None,
    steps: Sequence[int] | None,
    least: int,
    mirror: Mirror | None = None,
) -> tuple[Path, dict[int, Path]]:
    """A base and the checkpoints to use as folders here, in the cache or a mirror. Of the others,
    nothing is fetched.

    Raises:
        InputError: something cannot be had, or is no model.
    """
    with TemporaryDirectory(prefix="relex-hub-") as scratch, _Outlines(Path(scratch)) as outlines:
        found = outlines.of(checkpoints)
        start = outlines.of([base])[0]
        chosen = select(resolve(found), until, steps, least)
        models = [Path(start), *chosen.values()]
        folders = outlines.fetch(models, {models[0], models[-1]}, mirror)
        return folders[0], dict(zip(chosen, folders[1:], strict=True))


@dataclass
class _Outlines:
    """Outlines of repositories, where each may be looked at. A context manager: errors about an
    outline are told about what it stands for."""

    scratch: Path
    _opened: dict[HubName, Repository] = field(default_factory=dict)
    _by_root: dict[Path, Repository] = field(default_factory=dict)

    def __enter__(self) -> _Outlines:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            text = str(error)
            for root, repository in self._by_root.items():
                text = text.replace(str(root), str(repository.name))
            if text != str(error):
                raise InputError(text) from error

    def of(self, given: Any) -> Any:
        """The same with every name of the Hub's replaced by a folder to look at."""
        if isinstance(given, Mapping):
            return dict(zip(given, self.of(list(given.values())), strict=True))
        if not isinstance(given, Sequence) or isinstance(given, str):
            return self.of([given])[0]
        places = [one[1] if isinstance(one, tuple) else one for one in given]
        names = [hub_name(place) for place in places]
        self._open([name for name in names if name is not None])
        folders = [
            place if name is None else self._folder(name)
            for place, name in zip(places, names, strict=True)
        ]
        return [
            (one[0], folder) if isinstance(one, tuple) else folder
            for one, folder in zip(given, folders, strict=True)
        ]

    def fetch(
        self, models: Sequence[Path], whole: Collection[Path], mirror: Mirror | None
    ) -> list[Path]:
        """Model folders of outlines → those in the cache or a mirror, some with what lies beside
        their weights. Folders here stay what they are."""
        wanted: dict[Path, list[str]] = {}
        places: list[tuple[Path | None, str]] = []
        for model in models:
            root = self._root(model)
            if root is None:
                places.append((None, str(model)))
                continue
            repository = self._by_root[root]
            inside = _inside(weights_folder(model), root)
            wanted.setdefault(root, []).extend(repository.needed(inside, model in whole))
            places.append((root, inside))

        def bring(root: Path) -> Path:
            repository = self._by_root[root]
            if mirror is None:
                return repository.fetch(wanted[root])
            return mirror.add(repository, wanted[root])

        roots = list(wanted)
        brought = dict(zip(roots, _each(bring, roots), strict=True))
        return [Path(at) if root is None else brought[root] / at for root, at in places]

    def _open(self, names: Sequence[HubName]) -> None:
        asked = {HubName(name.repo, name.revision) for name in names} - self._opened.keys()
        left = sorted(asked, key=str)
        for name, repository in zip(left, _each(open_repository, left), strict=True):
            self._opened[name] = repository

    def _folder(self, name: HubName) -> Path:
        repository = self._opened[HubName(name.repo, name.revision)]
        root = self.scratch / str(len(self._by_root)) / repository.name.repo.replace("/", "--")
        for known, other in self._by_root.items():
            if other.name == repository.name:
                root = known
        if root not in self._by_root:
            _draw(root, repository.names())
            self._by_root[root] = repository
        return root / name.folder

    def _root(self, model: Path) -> Path | None:
        return next((root for root in self._by_root if root in (model, *model.parents)), None)


def _draw(root: Path, paths: Sequence[str]) -> None:
    """Without the notes (.txt) in which trainers say what is finished: a commit is."""
    root.mkdir(parents=True)
    for path in paths:
        if ".." in path.split("/") or path.startswith("/"):
            raise InputError(f"{root}: expected paths inside the repository, found {path}")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if not path.endswith(".txt"):
            (root / path).touch()


def _inside(place: Path, root: Path) -> str:
    return "" if place == root else place.relative_to(root).as_posix()


def _each(work: Callable[[Given], Any], given: Sequence[Given]) -> list[Any]:
    """The results, a few at a time. The first failure ends it."""
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="relex-hub") as threads:
        try:
            return list(threads.map(work, given))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
