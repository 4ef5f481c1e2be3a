"""Names of models on the Hub: ``org/repo``, ``org/repo@revision``, ``hf://org/repo@rev/folder``.

What exists here is a path, whatever it looks like. Nothing in this module asks the Hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, unquote

from relex_ext.errors import InputError
from relex_ext.plainfiles import snapshot_of
from relex_ext.steps import Checkpoints, PathLike
from relex_ext.trainers import step_of

Revisions: TypeAlias = "str | Mapping[int, str]"
"""``step_{1..75}``, ``step_10,step_20`` or step → revision."""

PROTOCOL = "hf://"

# As huggingface_hub's parse_hf_uri has it, which is younger than the versions that serve here.
_PART = r"[\w](?:[\w.-]*[\w])?"
_NAME = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>refs/(?:pr/\d+|convert/[\w.-]+)|[^/@\s]+))?"
    r"(?:/(?P<folder>[^@]+))?",
    re.ASCII,
)
_BRACES = re.compile(r"(?P<before>[^{}]*)\{(?P<inside>[^{}]+)\}(?P<after>[^{}]*)")
_RANGE = re.compile(r"(?P<first>\d+)\.\.(?P<last>\d+)(?:\.\.(?P<by>\d+))?")
_NUMBER = re.compile(r"\d+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class HubName:
    """A model, or a folder of one, at a revision of its repository (the default branch)."""

    repo: str
    revision: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        if self.folder:
            return f"{PROTOCOL}{self.repo}{at}/{self.folder}"
        return f"{self.repo}{at}"


def hub_name(given: PathLike) -> HubName | None:
    """The model on the Hub that a name means; None for a path.

    Raises:
        InputError: it begins with ``hf://`` and is no such name.
    """
    text = os.fspath(given)
    if not text.startswith(PROTOCOL) and (not isinstance(given, str) or os.path.lexists(text)):
        return None
    match = _NAME.fullmatch(text.removeprefix(PROTOCOL))
    if match is None or (match["folder"] and not text.startswith(PROTOCOL)):
        if text.startswith(PROTOCOL):
            raise InputError(f"{text}: expected hf://org/repo, with @revision or /folder")
        return None
    folder = (match["folder"] or "").strip("/")
    if ".." in folder.split("/") or "//" in folder:
        raise InputError(f"{text}: expected a folder of the repository, found {folder}")
    revision = match["revision"]
    return HubName(match["repo"], None if revision is None else unquote(revision), folder)


def is_repository(text: str) -> bool:
    """Whether it is ``org/repo`` and no more."""
    match = _NAME.fullmatch(text)
    return match is not None and match["repo"] == text


def origin_of(folder: Path) -> HubName | None:
    """Where a folder of a Hub cache is from, at its commit."""
    place = snapshot_of(folder)
    if place is None or not _COMMIT.fullmatch(place.commit):
        return None
    repo = place.repository.name.removeprefix("models--").replace("--", "/")
    return HubName(repo, place.commit, place.folder)


def inside(folder: Path, root: Path) -> str:
    """The path of a folder in its repository: nothing for the repository itself."""
    return "" if folder == root else folder.relative_to(root).as_posix()


def stands_for(folder: Path, names: Mapping[Path, HubName]) -> HubName | Path:
    """The folder on the Hub that one here is: itself, where it is not below any of ``names``."""
    for place, name in names.items():
        if place in (folder, *folder.parents):
            below = "/".join(filter(None, (name.folder, inside(folder, place))))
            return HubName(name.repo, name.revision, below)
    return folder


def told(text: str, names: Mapping[Path, HubName]) -> str:
    """What is said about folders here, as said about what they stand for."""
    for place, name in names.items():
        text = text.replace(str(place), str(name))
    return text


def recorded(folder: PathLike) -> str:
    """A folder's name in relex.json: where on the Hub it is from, or its absolute path."""
    path = Path(folder).absolute()
    return str(origin_of(path) or path)


def any_on_hub(*given: Checkpoints) -> bool:
    return any(hub_name(place) is not None for one in given for place in _places(one))


def at_revisions(checkpoints: Checkpoints, revisions: Revisions | None) -> Checkpoints:
    """A repository with a revision for each step, as step → name.

    Raises:
        InputError: a pattern that says no steps, or checkpoints that are no repository.
    """
    if revisions is None:
        return checkpoints
    name = hub_name(checkpoints) if isinstance(checkpoints, str) else None
    if name is None or name.revision is not None:
        raise InputError(
            f"revisions: expected checkpoints of one repository, org/repo, found {checkpoints}"
        )
    steps = revisions if isinstance(revisions, Mapping) else expanded(revisions)
    return {step: str(HubName(name.repo, rev, name.folder)) for step, rev in steps.items()}


def expanded(pattern: str) -> dict[int, str]:
    """``step_{8..12..2}`` → ``{8: "step_8", 10: "step_10", 12: "step_12"}``; a list instead of a
    range, in the braces or without any, zeros before numbers as given.

    Raises:
        InputError: it is none of these, or names a step twice.
    """
    match = _BRACES.fullmatch(pattern)
    if match is not None:
        numbers = _numbers(pattern, match["inside"])
        pairs = [(int(n), f"{match['before']}{n}{match['after']}") for n in numbers]
    else:
        names = [name.strip() for name in pattern.split(",")]
        pairs = [(_step_in(pattern, name), name) for name in names]
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError(f"revisions: {pattern}: expected each step once")
    return found


def named(checkpoints: Checkpoints) -> Checkpoints:
    """Names whose revisions are steps, ``org/repo@step_10``, as (step, name) pairs."""
    if isinstance(checkpoints, (str, os.PathLike, Mapping)):
        return checkpoints
    pairs: list[Any] = []
    for given in checkpoints:
        name = None if isinstance(given, tuple) else hub_name(given)
        step = None if name is None or name.folder else step_of(name.revision or "")
        pairs.append(given if step is None else (step, given))
    return pairs


def _places(checkpoints: Checkpoints) -> Iterable[PathLike]:
    if isinstance(checkpoints, (str, os.PathLike)):
        return [checkpoints]
    given: Iterable[Any] = checkpoints
    if isinstance(checkpoints, Mapping):
        return list(checkpoints.values())
    return [one[1] if isinstance(one, tuple) else one for one in given]


def _numbers(pattern: str, inside: str) -> list[str]:
    """Decimal numbers as the braces write them."""
    match = _RANGE.fullmatch(inside)
    if match is None:
        numbers = [part.strip() for part in inside.split(",")]
        if all(number.isdecimal() for number in numbers):
            return numbers
        raise InputError(
            f"revisions: {pattern}: expected {{first..last}}, {{first..last..by}} or {{a,b,…}}"
        )
    first, last, by = int(match["first"]), int(match["last"]), int(match["by"] or 1)
    if not (first <= last < first + _MOST_STEPS * by):
        raise InputError(f"revisions: {pattern}: expected a range of steps upwards")
    ends = match["first"], match["last"]
    padded = any(end.startswith("0") and len(end) > 1 for end in ends)
    width = max(map(len, ends)) if padded else 0
    return [str(number).zfill(width) for number in range(first, last + 1, by)]


def _step_in(pattern: str, revision: str) -> int:
    step = step_of(revision)
    numbers = _NUMBER.findall(revision)
    if step is None and len(numbers) != 1:
        raise InputError(
            f"revisions: {pattern}: expected names with one number, the step, or a pattern like "
            "step_{1..75}"
        )
    return int(numbers[0]) if step is None else step
