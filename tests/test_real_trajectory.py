"""The training run shipped with the example: a real GRPO trajectory, on every ISA."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import oracle
import tolerances
from compare import Tally, checked_distance
from folders import Raw, read_model
from relex_ext import extrapolate, scan
from tables import BACKENDS

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "tiny_grpo"

pytestmark = pytest.mark.skipif(
    not (EXAMPLE / "trajectory.relexrun").is_file(), reason="the example's run is not here"
)

Models = dict[int, dict[str, Raw]]
FIT_UNTIL = 50


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("tiny_grpo_pack", EXAMPLE / "pack.py")
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return Path(pack.unpack(tmp_path_factory.mktemp("real") / "run"))


@pytest.fixture(scope="module")
def models(real: Path) -> Models:
    """Step → tensors; the base is step 0."""
    found = {0: read_model(real / "base")}
    for folder in real.glob("checkpoint-*"):
        step = int(folder.name.removeprefix("checkpoint-"))
        if step <= FIT_UNTIL:
            found[step] = read_model(folder)
    return dict(sorted(found.items()))


def answer(models: Models, name: str, target: float) -> oracle.Forecast:
    steps = [step for step in models if step]
    rows = [models[step][name].values for step in steps]
    return oracle.forecast(models[0][name].values, rows, steps, [target])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("solver", ["gram", "power"])
def test_values(
    real: Path,
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    solver: str,
) -> None:
    if name != "reference":
        monkeypatch.setenv("RELEX_ISA", name)
    done = extrapolate(
        real / "base", real, 150, tmp_path / "out", until=FIT_UNTIL, solver=solver,
        backend="reference" if name == "reference" else "cpu", progress=False,
    )  # fmt: skip
    found = read_model(done.folders[150.0])
    assert set(found) == set(models[0])
    steps = [step for step in models if step]
    tally = Tally()
    for tensor, raw in found.items():
        expected = answer(models, tensor, 150.0)
        base, rows = models[0][tensor].values, [models[s][tensor].values for s in steps]
        tally.add(raw.dtype, checked_distance(raw.words, raw.dtype, base, rows, expected))
        fits = done.record["tensors"][tensor]["components"]
        assert len(fits) == len(expected.sigma)
        for fit in fits:
            assert fit["sigma"] == pytest.approx(expected.sigma[0], rel=tolerances.SIGMA)
            assert fit["slope"] == pytest.approx(expected.slope[0], rel=tolerances.LINE)
            assert fit["r2"] == pytest.approx(expected.r2[0], abs=tolerances.LINE)
    tally.check()
    moved = sum(np.count_nonzero(found[n].words != models[0][n].words) for n in found)
    assert moved > 0.01 * sum(tally.count.values()), "the forecast must differ from the base"


def test_gram_of_every_isa(real: Path, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step for step in models if step]
    for isa in (n for n in BACKENDS if n != "reference"):
        monkeypatch.setenv("RELEX_ISA", isa)
        found = scan(real / "base", real, until=FIT_UNTIL, progress=False)
        assert found.steps == tuple(steps)
        for tensor, gram in found.grams.items():
            rows = [models[step][tensor].values for step in steps]
            m = oracle.deltas(models[0][tensor].values, rows)
            norms = np.linalg.norm(m, axis=1)
            bound = tolerances.GRAM * np.outer(norms, norms)
            assert (np.abs(gram - m @ m.T) <= bound).all(), (isa, tensor)
