"""What fuzzing has found worth keeping, once more: see tests/fuzz/fuzz_headers.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz.parser_properties import File, check_header, check_index

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
FILE = File()
CHECKS: dict[str, Callable[[bytes], bool]] = {
    "headers": lambda data: check_header(data, FILE),
    "indexes": check_index,
}


@pytest.mark.parametrize("target", CHECKS)
def test_what_holds_of_every_file_holds_of_these(target: str) -> None:
    """And they are of both kinds: a corpus of refusals alone would test little."""
    outcomes = Counter(CHECKS[target](path.read_bytes()) for path in (CORPUS / target).iterdir())
    assert outcomes[True] >= 3
    assert outcomes[False] >= 15
