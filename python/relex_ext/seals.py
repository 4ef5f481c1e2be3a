"""relex.json's digest of itself: nothing that it says can be damaged without a trace."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SEAL = "record"
"""Its name among ``sha256``: the digest of the file as it is with zeros in its place."""

_BLANK = "0" * 64


def sealed(record: dict[str, Any]) -> bytes:
    """The text of relex.json. Its seal is put into ``record["sha256"]``."""
    digests = record["sha256"]
    digests[SEAL] = _BLANK
    digests[SEAL] = hashlib.sha256(_text(record)).hexdigest()
    return _text(record)


def is_sealed(data: bytes, seal: str) -> bool:
    """Whether these are the very bytes that :func:`sealed` made."""
    blank = data.replace(seal.encode(), _BLANK.encode())
    return hashlib.sha256(blank).hexdigest() == seal


def _text(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
