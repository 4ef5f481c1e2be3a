"""The fuzz target of the compiled core (tests/fuzz/core): what a fuzzer found, and some luck."""

from __future__ import annotations

from pathlib import Path

import pytest

import children

pytest.importorskip("relex_ext._core_replay", reason="relex_ext was not built with RELEX_FUZZ=ON")

CORPUS = sorted((Path(__file__).parent / "fuzz/corpus/core").iterdir())

REPLAY = """
import sys
from pathlib import Path
from relex_ext._core_replay import replay

for path in map(Path, sys.argv[1:]):
    print(path.name, flush=True)
    replay(path.read_bytes())
"""


def test_the_corpus_holds() -> None:
    """A failure's name is the last that is printed."""
    assert len(CORPUS) > 100
    assert children.printed(REPLAY, *CORPUS).splitlines() == [path.name for path in CORPUS]


RANDOM = """
import random
from relex_ext._core_replay import replay

source = random.Random(7)
for _ in range(4000):
    data = source.randbytes(source.randrange(1, 120))
    print(data.hex(), flush=True)
    replay(data)
"""


def test_random_inputs_hold() -> None:
    assert len(children.printed(RANDOM).splitlines()) == 4000
