"""What a search's folder is made of, and whether a folder is one.

OUT/search.json      what is searched for, the forecasts of the pass under way, and the result
OUT/scores.csv       every evaluation: the truth, from which all else follows
OUT/scan.safetensors the scan, unless it is kept elsewhere
OUT/pass/            the forecasts written but not evaluated yet, as relex_ext.combine leaves them
OUT/best/            the best forecast so far, if it beats the newest checkpoint
OUT/candidates/      with ``keep="all"``, the others
OUT/logs/            what the evaluation command printed
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from relex_ext.errors import InputError, OutputError
from relex_ext.output import SCAN
from relex_ext.searches.strategy import Candidate

FORMAT = "relex-search/1"
STATE, SCORES = "search.json", "scores.csv"
PASS, BEST, CANDIDATES, LOGS = "pass", "best", "candidates", "logs"
OURS = (STATE, SCORES, SCAN, PASS, BEST, CANDIDATES, LOGS)
HIDDEN = tuple(f".{name}." for name in OURS)
"""What begins so is half-written or half-removed: a killed run's."""


def check_folder(out: Path, inputs: Iterable[Path]) -> bool:
    """Whether ``out`` holds a search to be taken up, and not, as it may, nothing.

    Raises:
        OutputError: ``out`` holds something else, or inputs.
    """
    real = Path(os.path.realpath(out))
    for folder in inputs:
        if real in (source := Path(os.path.realpath(folder)), *source.parents):
            raise OutputError(
                f"{out}: expected a folder apart from the inputs, found {folder} in it"
            )
    if not os.path.lexists(out):
        return False
    if not out.is_dir():
        raise OutputError(f"{out}: expected a folder to make, found a file")
    if (out / STATE).is_file():
        return True
    for found in sorted(entry.name for entry in out.iterdir()):
        if found != SCAN and not found.startswith(HIDDEN):
            raise OutputError(f"{out}: exists already, with {found} and no search in it")
    return False


def remove_search(out: Path) -> None:
    """Remove an earlier search, its description last, so that this can be interrupted too."""
    for name in (*OURS[1:], STATE):
        place = out / name
        if place.is_dir():
            discard(place, out)
        else:
            place.unlink(missing_ok=True)


def discard(folder: Path, out: Path) -> None:
    """Remove a folder of the search in ``out``; at no time does it look whole and is not."""
    hidden = out / f".{PASS}.old-{secrets.token_hex(4)}"
    folder.rename(hidden)
    shutil.rmtree(hidden)


def read_state(out: Path, described: Mapping[str, Any]) -> list[Candidate]:
    """The pass under way of the search in ``out``.

    Raises:
        InputError: it searches for something else, or its file is damaged.
    """
    path = out / STATE
    try:
        state = json.loads(path.read_bytes())
        if state["format"] != FORMAT:
            raise InputError(f"{path}: expected format {FORMAT}, found {state['format']}")
        earlier = dict(state["search"])
        planned = [Candidate(float(step), float(strength)) for step, strength in state["pass"]]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: a damaged search: {error!r}") from error
    for name, value in described.items():
        if earlier.get(name) != value:
            differs = _difference(name, earlier.get(name), value)
            raise InputError(f"{out}: holds another search: {differs}; choose another folder")
    return planned


def _difference(name: str, earlier: Any, value: Any) -> str:
    if name == "inputs":
        changed = [key for key in value if dict(earlier or {}).get(key) != value[key]]
        where = "the base" if changed[:1] == ["base"] else f"step {', '.join(changed[:1])}"
        return f"made from other files than {where} has now"
    if isinstance(earlier, dict) and isinstance(value, dict):
        name = next(key for key in value if earlier.get(key) != value[key])
        earlier, value = earlier.get(name), value[name]
    was, found = (json.dumps(one, ensure_ascii=False) for one in (earlier, value))
    return f"{name}: expected {was}, found {found}"
