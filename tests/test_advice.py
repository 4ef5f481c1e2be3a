"""What a run says about its forecasts: printed, in relex.json, on the model card."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from folders import RunFolder, Spec, listing, make_run
from relex_ext import InputError, Scan, Verdict, combine, extrapolate, forecast, judge, scan
from relex_ext.advice import advice
from test_cli import relex

STEPS = tuple(range(1, 31))
SMALL = {"a.weight": Spec((70, 60), "F32", ("F32",)), "b.weight": Spec((999,), "F32", ("F32",))}


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A line in noise of its own size."""
    return make_run(tmp_path_factory.mktemp("drifting"), STEPS, SMALL, noise=1.0)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("few"), (1, 2, 3), SMALL)


def test_everywhere_the_same(drifting: RunFolder, tmp_path: Path) -> None:
    done = extrapolate(
        drifting.base, drifting.checkpoints, [45, 90], tmp_path / "out", progress=False
    )
    kept = Scan.load(tmp_path / "out" / "scan.safetensors")
    recorded = json.loads((tmp_path / "out" / "relex.json").read_text())["verdicts"]
    assert set(recorded) == {"step_45", "step_90"}
    for target in (45.0, 90.0):
        verdict = judge(kept, target)
        assert done.verdicts[target] == verdict
        assert recorded[f"step_{target:g}"] == json.loads(json.dumps(verdict.record()))
        card = (tmp_path / "out" / f"step_{target:g}" / "README.md").read_text()
        assert f"**Verdict on a forecast of this step: {verdict.sentence}**" in card
        differs = advice(verdict, "relex", 1.0)
        assert (f"not what it recommends: {differs}." in card) == bool(differs)
        assert card.startswith("---\nlibrary_name: transformers\n")
        assert "30 checkpoints" in card and "steps 1 to 30" in card
        for reason in verdict.reasons:
            assert f"| {reason.what} | {reason.found:.3g} |" in card
    assert done.verdicts[45.0].decision in ("go", "go shrunk"), "a line is no random walk"


def test_a_kept_scan_gives_the_same(drifting: RunFolder, tmp_path: Path) -> None:
    where = (drifting.base, drifting.checkpoints, 45)
    first = extrapolate(*where, tmp_path / "a", scan=tmp_path / "kept", progress=False)
    again = extrapolate(*where, tmp_path / "b", scan=tmp_path / "kept", progress=False)
    assert first.verdicts == again.verdicts and len(first.verdicts) == 1


def test_it_warns_and_never_refuses(
    few: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "relex_ext"):
        extrapolate(few.base, few.checkpoints, 500, tmp_path / "out", progress=False)
    said = [r for r in caplog.records if "verdict" in r.getMessage()]
    assert [r.levelname for r in said] == ["WARNING"]
    assert "step 500: no-go: 3 checkpoints are too few" in said[0].getMessage()
    assert (tmp_path / "out" / "step_500" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "power"},
        {"method": "latest"},
        {"method": "reconstruct", "target_steps": 20},
        {"target_steps": 15},
        {"target_steps": 30},
    ],
)
def test_what_cannot_be_judged(drifting: RunFolder, tmp_path: Path, options: dict) -> None:
    """A scan without Gram matrices, methods that do not look ahead, targets that are not ahead."""
    target = options.pop("target_steps", 45)
    done = extrapolate(
        drifting.base, drifting.checkpoints, target, tmp_path / "out", progress=False, **options
    )
    assert done.verdicts == {} and done.record["verdicts"] == {}
    assert "Verdict" not in (done.folders[float(target)] / "README.md").read_text()


def test_power_iteration_says_why(
    drifting: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "relex_ext"):
        extrapolate(
            drifting.base, drifting.checkpoints, 45, tmp_path / "out", solver="power",
            progress=False,
        )  # fmt: skip
    assert "no verdict: the scan holds power iteration's vectors, solver gram gives one" in [
        r.getMessage() for r in caplog.records
    ]


def test_a_card_of_weights_names_their_method(drifting: RunFolder, tmp_path: Path) -> None:
    where = (drifting.base, drifting.checkpoints)
    weights = forecast(scan(*where, progress=False), 45, method="pinned", strength=0.5)
    own = replace(weights, method="", strengths=())
    for given, said in ((weights, "`pinned`, strength λ = 0.5"), (own, "`given weights`")):
        done = combine(*where, given, tmp_path / "out", overwrite=True, progress=False)
        card = (done.folders[45.0] / "README.md").read_text()
        assert f"method {said}" in card and "Verdict" not in card


def test_it_says_where_the_written_is_not_the_advised() -> None:
    shrunk = Verdict("go shrunk", "go, shrunk to λ = 0.4", (), "pinned", 0.4, 80.0, None, 100.0)
    assert advice(shrunk, "pinned", 0.4) == advice(shrunk, "pinned", 0.42) == ""
    expected = "written is λ = 1 by relex, advised --strength 0.4 --method pinned"
    assert advice(shrunk, "relex", 1.0) == expected
    assert advice(shrunk, "pinned", 1.0) == expected.replace("relex", "pinned")
    never = Verdict("no-go", "no-go: …", (), "relex", 0.0, None, None, 100.0)
    assert advice(never, "relex", 1.0) == "written is λ = 1 by relex all the same"
    assert advice(never, "relex", 0.0) == "", "λ = 0 is the newest checkpoint"


# ---- the command -------------------------------------------------------------------------------


def test_extrapolate_prints_it(drifting: RunFolder, tmp_path: Path) -> None:
    found = relex(
        "extrapolate", "--base", drifting.base, "--checkpoints", drifting.checkpoints,
        "--target-step", 45, "--out", tmp_path / "out",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    verdict = judge(tmp_path / "out" / "scan.safetensors", 45)
    line = next(x for x in found.stdout.splitlines() if x.startswith("verdict on step 45: "))
    assert verdict.sentence in line
    assert all(str(reason) in line for reason in verdict.reasons)


def test_verdict(drifting: RunFolder, tmp_path: Path) -> None:
    place = tmp_path / "a.scan"
    scan(drifting.base, drifting.checkpoints, out=place, progress=False)
    text = relex("verdict", place, "--target-step", 45, "--target-step", 60)
    assert (text.returncode, text.stderr) == (0, "")
    expected = [judge(place, 45), judge(place, 60)]
    lines = text.stdout.splitlines()
    assert [x.split(":")[0] for x in lines] == ["step 45", "step 60"]
    assert all(v.sentence in x for v, x in zip(expected, lines, strict=True))
    found = relex(
        "verdict", place, "--target-step", 45, "--until", 20, "--method", "pinned", "--json"
    )
    from relex_ext.methods import Options

    early = judge(place, 45, Options(method="pinned"), steps=range(1, 21))
    assert json.loads(found.stdout) == [{"target": 45.0, **early.record()}]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target-step", "30"], "target_step: expected more than 30, found 30"),
        (["--target-step", "45", "--method", "ema"], "method: expected one that looks ahead"),
        (["--target-step", "nan"], "target_steps: expected a finite step, found nan"),
        (["--target-step", "45", "--until", "0"], "expected at least"),
    ],
)
def test_bad_questions(drifting: RunFolder, tmp_path: Path, more: list[str], message: str) -> None:
    place = tmp_path / "a.scan"
    scan(drifting.base, drifting.checkpoints, out=place, progress=False)
    before = listing(tmp_path)
    found = relex("verdict", place, *more)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1 and message in found.stderr
    assert listing(tmp_path) == before


def test_power_iteration_cannot_be_judged(drifting: RunFolder, tmp_path: Path) -> None:
    place = tmp_path / "a.scan"
    scan(drifting.base, drifting.checkpoints, out=place, solver="power", progress=False)
    with pytest.raises(InputError, match="needs a scan with solver gram"):
        judge(place, 45)
    found = relex("verdict", place, "--target-step", 45)
    assert found.returncode == 2 and "needs a scan with solver gram" in found.stderr
    assert relex("verdict", tmp_path / "none", "--target-step", 45).returncode == 2


def test_a_walk_stands_beside_the_fit(drifting: RunFolder, tmp_path: Path) -> None:
    """Against the walk's own definition: the sizes of the updates, each orthogonal to the rest."""
    done = extrapolate(drifting.base, drifting.checkpoints, 45, tmp_path / "out", progress=False)
    base = {n: drifting.base_tensors[n].values for n in SMALL}
    path = [np.concatenate([drifting.step_tensors[s][n].values - base[n] for n in SMALL])
            for s in STEPS]  # fmt: skip
    sizes = np.linalg.norm(np.diff(np.array(path), axis=0, prepend=0.0), axis=1)
    u, sigma, _ = np.linalg.svd(np.tril(np.ones((30, 30))) * sizes)
    fitted = np.corrcoef(np.array(STEPS), u[:, 0])[0, 1] ** 2
    walk = done.record["random_walk"]
    assert walk["explained_variance"] == pytest.approx(sigma[0] ** 2 / np.sum(sigma**2), rel=1e-5)
    assert walk["r2"] == pytest.approx(fitted, rel=1e-4)
