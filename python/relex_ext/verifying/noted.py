"""What relex.json notes of its output, read as what anybody may have written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relex_ext import strictjson
from relex_ext.dtypes import CODES
from relex_ext.errors import InputError
from relex_ext.output import RECORD, SCAN, WEIGHTS
from relex_ext.plainfiles import read_small
from relex_ext.record import FORMAT
from relex_ext.seals import SEAL, is_sealed

OTHER = "its bytes are not those that were written"

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Model:
    """A target's folder. ``tensors``: name → digest of its bytes; ``files``: name → digest, of a
    shard's header and of all of any other."""

    folder: Path
    tensors: Mapping[str, str]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Noted:
    """What relex.json says. ``targets``: name → step; ``models``: by the same names; ``files``:
    beside them, name → digest; ``base``, ``checkpoints``, ``identities``: the inputs; ``dtype``:
    the weights', if one was asked for; ``half``: deltas were rounded to float16; ``carried``:
    tensors copied from the newest checkpoint."""

    out: Path
    targets: Mapping[str, float]
    models: Mapping[str, Model]
    files: Mapping[str, str]
    base: str
    checkpoints: Mapping[int, str]
    identities: Mapping[str, str]
    dtype: str | None
    half: bool
    carried: frozenset[str]


def read_record(out: Path) -> Noted:
    """Read ``out``'s relex.json.

    Raises:
        InputError: there is none, or it is not as relex wrote it.
    """
    path = out / RECORD
    if not os.path.lexists(path):
        raise InputError(f"{out}: expected an output of relex, found no {RECORD} in it")
    data = read_small(path, strictjson.LONGEST, out)
    try:
        record = strictjson.load(data, floats=True)
        if record["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, found {record['format']}")
        digests = record.get("sha256", {})
        if SEAL not in digests:
            raise ValueError("expected digests, found none: an earlier version wrote it")
        if not is_sealed(data, _digest(SEAL, digests[SEAL])):
            raise ValueError(OTHER)
        return _noted(out, record)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: a damaged record: {error!r}") from error


def _noted(out: Path, record: dict[str, Any]) -> Noted:
    digests, options = record["sha256"], record["options"]
    targets = digests["tensors"]
    if targets.keys() != record["targets"].keys():
        raise ValueError("expected digests of each target's tensors, found those of others")
    files: dict[str, dict[str, str]] = {"": {}, **{_plain(target): {} for target in targets}}
    for place, digest in digests["files"].items():
        target, _, name = place.rpartition("/")
        files[target][_plain(name)] = _digest(place, digest)
    beside = files.pop("")
    if not beside.keys() <= {SCAN, WEIGHTS}:
        raise ValueError(f"expected digests of {SCAN} and {WEIGHTS}, found {', '.join(beside)}")
    kept = WEIGHTS not in beside  # a search's forecast: its record lies beside its shards
    if kept and len(targets) != 1:
        raise ValueError(f"expected one forecast where there is no {WEIGHTS}, found {len(targets)}")
    models = {
        target: Model(
            out if kept else out / target,
            {name: _digest(name, digest) for name, digest in tensors.items()},
            files[target],
        )
        for target, tensors in targets.items()
    }
    if options["dtype"] not in (None, *CODES):
        raise ValueError(f"options: dtype: expected {', '.join(CODES)}, found {options['dtype']}")
    checkpoints = {int(step): str(folder) for step, folder in record["checkpoints"].items()}
    return Noted(
        out,
        dict(record["targets"]),
        models,
        beside,
        str(record["base"]),
        dict(sorted(checkpoints.items())),
        dict(record["identities"]),
        options["dtype"],
        options["delta_dtype"] == "F16",
        frozenset(record["carried"]),
    )


def _digest(name: str, found: str) -> str:
    if not _SHA256.fullmatch(found):
        raise ValueError(f"{name}: expected a SHA-256 digest, found {found}")
    return found


def _plain(name: str) -> str:
    if Path(name).name != name or name == "..":
        raise ValueError(f"expected a plain name, found {name!r}")
    return name
