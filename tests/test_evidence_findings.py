"""Repeated checkpoints, jumps and gaps: planted ones are found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import walks
from folders import RunFolder, make_run, write_model
from oracle import Float64
from relex_ext import scan
from relex_ext.evidence import gather
from relex_ext.evidence.findings import gaps, jumps, repeats
from tables import BACKENDS


def sizes(d: Float64) -> Float64:
    return np.asarray((d**2).sum(axis=1))


KINDS = {
    "drift": {"drift": 1.0},
    "walk": {},
    "momentum": {"momentum": 0.9},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [12, 75])
def test_jumps_of_five_times_and_nothing_else(kind: str, count: int) -> None:
    """1000 trajectories of a tensor as small as 50 elements."""
    rng = np.random.default_rng(count)
    false = found = 0
    for _ in range(1000):
        d = walks.updates(rng, count, 50, **KINDS[kind])
        false += bool(jumps(sizes(d), range(1, count + 1)))
        at = int(rng.integers(count))
        d[at] *= 5
        flagged = dict(jumps(sizes(d), range(1, count + 1)))
        found += list(flagged) == [at + 1] and 3.5 < flagged[at + 1] < 7
    assert false <= 10
    assert found >= 950


def test_jumps_take_the_distance_into_account() -> None:
    rng = np.random.default_rng(1)
    steps = np.cumsum(rng.choice([1, 2, 5, 30], 40))
    for drift in (0.0, 0.2, 1.0):
        m = np.cumsum(walks.updates(rng, steps[-1], 100, drift=drift), axis=0)[steps - 1]
        d = np.diff(m, axis=0, prepend=0.0)
        assert jumps(sizes(d), steps.tolist()) == ()
        wide = int(np.flatnonzero(np.diff(steps) == 30)[0]) + 1
        d[wide] *= 40
        assert [step for step, _ in jumps(sizes(d), steps.tolist())] == [steps[wide]]


def test_too_few_updates_for_a_jump() -> None:
    assert jumps(np.array([1.0, 1.0, 1.0, 1e4]), [1, 2, 3, 4]) == ()
    assert jumps(np.array([1.0, 1.0, 1.0, 1.0, 1e4]), [1, 2, 3, 4, 5]) == ((5, 100.0),)
    assert jumps(np.zeros(9), range(1, 10)) == ()
    assert jumps(np.array([0.0] * 8 + [1.0]), range(1, 10)) == ()


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        (range(10, 110, 10), ()),
        ([10, 20, 40, 50], ((20, 40),)),
        ([100, 110, 120, 130], ((0, 100),)),
        ([10, 20, 30, 44], ()),
        ([1, 2], ()),
        ([1, 9], ((1, 9),)),
        ([0, 1, 2, 3], ()),
        ([0, 10, 20, 40], ((20, 40),)),
        ([3, 10, 12, 40, 41, 90], ((3, 10), (12, 40), (41, 90))),
    ],
)
def test_gaps(steps: list[int], found: tuple[tuple[int, int], ...]) -> None:
    assert gaps(list(steps)) == found


# ---- repeated checkpoints ------------------------------------------------------------------------


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_small_updates_are_no_repeats(drift: float) -> None:
    """Updates that shrink to 1/1000 of the first, in float32 products."""
    rng = np.random.default_rng(2)
    d = walks.updates(rng, 300, 500, drift=drift) * np.geomspace(1, 1e-3, 300)[:, None]
    m = np.cumsum(d, axis=0).astype(np.float32)
    gram = np.float64(m @ m.T)
    if drift:
        assert not repeats(gram[None]).any()
    m[100] = m[99]
    m[0] = 0.0
    gram = np.float64(m @ m.T)
    found = repeats(gram[None])
    assert found[0] and found[100]
    assert found.sum() == 2 or not drift
    other = np.float64(np.eye(300))
    assert not repeats(np.stack([gram, other])).any(), "a tensor that moves"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("repeats")
    made = make_run(root, [10, 20, 30, 40, 50, 60, 70])
    write_model(made.folder(10), made.base_tensors)
    write_model(made.folder(40), made.step_tensors[30])
    return made


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeats_in_folders(
    run: RunFolder, backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A base saved as a first checkpoint and a checkpoint saved twice, whatever computes G."""
    if backend != "reference":
        monkeypatch.setenv("RELEX_ISA", backend)
    kind = "reference" if backend == "reference" else "cpu"
    found = scan(run.base, run.checkpoints, backend=kind, progress=False)
    evidence = gather(found, draws=9)
    assert evidence.duplicates == ((0, 10), (30, 40))
    assert evidence.jumps == () and evidence.gaps == ()
    assert "model.layers.0.frozen" in evidence.frozen
    assert gather(found, steps=[10, 30, 50], draws=9).duplicates == ((0, 10),)
