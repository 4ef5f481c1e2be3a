"""Models on the Hub → folders of its cache here, each revision pinned to its commit.

Which folders of a repository are steps, and which have weights, is decided on its outline: folders
and empty files under the names that its commit has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from relex_ext.adapters.opening import adapter_folder, check_weights
from relex_ext.checkpoints import weights_folder
from relex_ext.errors import InputError
from relex_ext.hub.bars import bars
from relex_ext.hub.mirror import Mirror
from relex_ext.hub.names import HubName, hub_name, inside, origin_of, told
from relex_ext.hub.repositories import Repository, not_cached, open_repository
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
    *,
    progress: bool,
) -> tuple[Path, dict[int, Path]]:
    """A base and the checkpoints to use as folders here, in the cache or a mirror. Of the others,
    nothing is fetched. ``progress``: show it where whole checkpoints are.

    Raises:
        InputError: something cannot be had, or is no model.
    """
    with TemporaryDirectory(prefix="relex-hub-") as scratch, _Outlines(Path(scratch)) as outlines:
        found = outlines.of(checkpoints)
        start = outlines.of([base])[0]
        chosen = select(resolve(found), until, steps, least)
        models = [Path(start), *chosen.values()]
        outlines.check_cached(models)
        adapters = models[1:] if all(map(adapter_folder, models[1:])) else []
        folders = outlines.fetch(models, {models[0], models[-1]}, adapters, mirror, progress)
        return folders[0], dict(zip(chosen, folders[1:], strict=True))


@contextmanager
def outlined(
    checkpoints: Checkpoints,
) -> Iterator[tuple[dict[int, Path], dict[int, Path | InputError], dict[Path, HubName]]]:
    """Of weights on the Hub only the headers are fetched: step → its folder, or the outline of one;
    step → the folder here that has its headers, or why there is none; and what folders stand for.

    Raises:
        InputError: a repository cannot be had, or what is given is no run.
    """
    with TemporaryDirectory(prefix="relex-hub-") as scratch, _Outlines(Path(scratch)) as outlines:
        found = resolve(outlines.of(checkpoints))
        mirror = Mirror(limit=0)

        def opened(step: Path) -> Path | InputError:
            try:
                return outlines.headers(step, mirror)
            except InputError as error:
                return error

        with bars(False):  # for all threads at once
            folders = dict(zip(found, _each(opened, list(found.values())), strict=True))
        here = {place: origin_of(place) for place in folders.values() if isinstance(place, Path)}
        names = {place: name for place, name in here.items() if name is not None}
        yield found, folders, {**names, **outlines.names}


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
            text = told(str(error), self.names)
            if text != str(error):
                raise InputError(text) from error

    @property
    def names(self) -> dict[Path, HubName]:
        return {root: repository.name for root, repository in self._by_root.items()}

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

    def check_cached(self, models: Iterable[Path]) -> None:
        """Where nobody can be asked, what is missing says nothing about the repository."""
        for model in models:
            root = self._root(model)
            if root is None or next(model.rglob("*.safetensors"), None) is not None:
                continue
            repository = self._by_root[root]
            if repository.files is None:
                place = repository.place(inside(model, root))
                raise InputError(f"{place}: its weights are {not_cached()}")

    def fetch(
        self,
        models: Sequence[Path],
        whole: Collection[Path],
        adapters: Collection[Path],
        mirror: Mirror | None,
        progress: bool,
    ) -> list[Path]:
        """Model folders of outlines → those in the cache or a mirror, some with what lies beside
        their weights; some of them adapters. Folders here stay what they are."""
        wanted: dict[Path, list[str]] = {}
        places: list[tuple[Path | None, str]] = []
        for model in models:
            root = self._root(model)
            if root is None:
                places.append((None, str(model)))
                continue
            with bars(False):
                at, paths = self._needed(model, root, model in adapters, model in whole)
            wanted.setdefault(root, []).extend(paths)
            places.append((root, at))

        def bring(root: Path) -> Path:
            repository = self._by_root[root]
            if mirror is None:
                return repository.fetch(wanted[root])
            return mirror.add(repository, wanted[root])

        roots = list(wanted)
        with bars(progress and mirror is None):
            brought = dict(zip(roots, _each(bring, roots), strict=True))
        return [Path(at) if root is None else brought[root] / at for root, at in places]

    def headers(self, model: Path, mirror: Mirror) -> Path:
        """A folder in which the headers of a model or an adapter can be read."""
        root = self._root(model)
        if root is None:
            return model
        self.check_cached([model])
        adapters = [model] if adapter_folder(model) else []
        asked = None if self._by_root[root].files is None else mirror
        return self.fetch([model], [], adapters, asked, progress=False)[0]

    def _needed(
        self, model: Path, root: Path, adapter: bool, companions: bool
    ) -> tuple[str, list[str]]:
        """The folder of a model's or an adapter's weights in its repository, and the paths that are
        needed of it."""
        repository = self._by_root[root]
        place = adapter_folder(model) if adapter else None
        if place is None:
            at = inside(weights_folder(model), root)
            return at, repository.needed(at, companions)
        if repository.files is not None:  # else it has what the cache has, which says nothing
            check_weights(place)
        at = inside(place, root)
        return at, repository.needed_of_adapter(at, companions)

    def _open(self, names: Sequence[HubName]) -> None:
        asked = {HubName(name.repo, name.revision) for name in names} - self._opened.keys()
        left = sorted(asked, key=str)
        with bars(False):
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


def _each(work: Callable[[Given], Any], given: Sequence[Given]) -> list[Any]:
    """The results, a few at a time. The first failure ends it."""
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="relex-hub") as threads:
        try:
            return list(threads.map(work, given))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
