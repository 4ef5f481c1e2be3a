"""SIGKILL at calls and at any time, and Ctrl-C: a sample of ``python -m faults``."""

from __future__ import annotations

from collections import defaultdict

import pytest

from faults.sampling import Row, disturbed
from faults.scenarios import BENCHES

RANDOM = 4
"""Kills at any time, of each scenario and way of reading."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    """Of each harness, none of whose cases ended as it must not."""
    harnesses = ("kill", "take-up", "kill-twice", "kill-at-random", "interrupt")
    folder = tmp_path_factory.mktemp("kills")
    found = defaultdict(list)
    for row in disturbed(folder, *harnesses, "--every", "70", "--count", str(RANDOM)):
        found[row["harness"]].append(row)
    return found


def total(rows: list[Row], what: str) -> int:
    return sum(row[what] for row in rows)


@pytest.mark.parametrize(("harness", "least"), [("kill", 100), ("kill twice", 80)])
def test_kills_at_calls(rows: dict[str, list[Row]], harness: str, least: int) -> None:
    found = rows[harness]
    assert len(found) == len(BENCHES)
    assert total(found, "killed") >= least
    assert total(found, "not reached") <= 0.02 * total(found, "cases")


def test_what_was_done_is_taken_up(rows: dict[str, list[Row]]) -> None:
    assert total(rows["take up"], "killed") == sum(io == "mmap" for _, io in BENCHES)


def test_kills_at_any_time(rows: dict[str, list[Row]]) -> None:
    found = rows["kill at random"]
    assert total(found, "cases") == RANDOM * len(BENCHES)
    assert total(found, "killed") > 0, "of the others, a later run came to its end"


def test_ctrl_c(rows: dict[str, list[Row]]) -> None:
    found = rows["Ctrl-C"]
    assert total(found, "interrupted") > 0.9 * total(found, "cases") > 40
    assert all(row["slowest"] < 1.0 for row in found)
