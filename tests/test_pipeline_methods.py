"""Methods and options through extrapolate and the command: bytes, passes, records, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
import tolerances
from folders import (
    MODEL,
    RunFolder,
    digest,
    listing,
    make_run,
    model_digest,
    read_model,
    without_cards,
)
from relex_ext import InputError, Scan, extrapolate, forecast, scan
from relex_ext.cli import main
from relex_ext.fits import FITS
from relex_ext.methods import METHODS

STEPS = (10, 20, 35, 40, 70)
TRAINED = [n for n, s in MODEL.items() if s.kind == "trained"]
FLOATING = [n for n, s in MODEL.items() if s.kind != "integer"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("methods"), STEPS)


def assert_moved(folder: Path, run: RunFolder, **options: Any) -> None:
    """A written model is the oracle's, rounded."""
    found = read_model(folder)
    strength = options.pop("strength", 1.0)
    for name in TRAINED:
        base = run.base_tensors[name].values
        rows = [run.step_tensors[s][name].values for s in STEPS]
        m = oracle.deltas(base, rows)
        movement = m[-1]
        if m.size and strength != 0.0:
            whole = oracle.movement(m=m, steps=STEPS, **options)[0]
            movement = m[-1] + strength * (whole - m[-1])
        dtype = run.step_tensors[70][name].dtype
        expected = oracle.round_to(base + movement, dtype)
        # A sum that cancels has lost its bits in float64, too.
        left = np.abs(base + movement) > tolerances.CANCELLED * (np.abs(base) + np.abs(movement))
        distance = oracle.ulps(found[name].words, expected, dtype)[left]
        if dtype != "F32" and distance.size:
            assert distance.max() <= 1, name
            assert (distance == 0).mean() > 0.999, name
        elif distance.size:
            assert np.median(distance) <= 2, name


WRITTEN = [
    {"method": "pinned"},
    {"method": "relex", "fit": "polynomial", "window": 4},
    {"method": "relex", "strength": 0.5},
    {"method": "secant"},
    {"method": "two-point", "window": 2},
    {"method": "first-update", "alpha": 3.0},
    {"method": "ema", "decay": 0.95},
    {"method": "latest"},
    {"method": "secant", "strength": 0.25},
]


@pytest.mark.parametrize("options", WRITTEN, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_against_the_oracle(
    run: RunFolder, tmp_path: Path, options: dict[str, Any], backend: str
) -> None:
    done = extrapolate(
        run.base, run.checkpoints, 90, tmp_path / "out", backend=backend, progress=False, **options
    )
    assert_moved(tmp_path / "out" / "step_90", run, targets=[90.0], **options)
    given = done.record["options"]
    for name, value in options.items():
        assert given[name] == value
    assert set(given) >= {"rank", "fit", "degree", "window", "refit", "alpha", "decay", "strength"}
    assert done.record["strengths"] == {"step_90": options.get("strength", 1.0)}


def test_the_newest_is_itself(run: RunFolder, tmp_path: Path) -> None:
    """Weight 1 on the newest gives back its bits where 16 bits hold them."""
    extrapolate(run.base, run.checkpoints, 90, tmp_path / "out", method="latest", progress=False)
    found = read_model(tmp_path / "out" / "step_90")
    for name in TRAINED:
        newest = run.step_tensors[70][name]
        if newest.dtype != "F32":
            assert found[name].data == newest.data, name
    assert found["model.layers.0.frozen"].data == run.base_tensors["model.layers.0.frozen"].data


def test_reconstruction_of_two_steps(run: RunFolder, tmp_path: Path) -> None:
    extrapolate(
        run.base, run.checkpoints, [20, 70], tmp_path / "out", method="reconstruct", rank=2,
        solver="gram", progress=False,
    )  # fmt: skip
    for step in (20, 70):
        found = read_model(tmp_path / "out" / f"step_{step}")
        for name in ("model.embed_tokens.weight", "model.layers.0.attn.weight"):
            base = run.base_tensors[name].values
            m = oracle.deltas(base, [run.step_tensors[s][name].values for s in STEPS])
            moved = oracle.movement("reconstruct", m, STEPS, [step], rank=2)[0]
            distance = oracle.ulps(found[name].words, oracle.round_to(base + moved, "BF16"), "BF16")
            assert distance.max() <= 1 and (distance == 0).mean() > 0.999


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if not m.spectral])
def test_what_needs_no_spectrum_scans_nothing(
    run: RunFolder, tmp_path: Path, method: str, bytes_read: Callable[[], int]
) -> None:
    done = extrapolate(
        run.base, run.checkpoints, 90, tmp_path / "out", method=method, io="pread", progress=False
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "relex.json",
        "step_90",
        "weights.safetensors",
    ]
    rows = {"latest": [70], "secant": [70], "two-point": [10, 70], "first-update": [10]}
    used = [run.base_tensors, *(run.step_tensors[s] for s in rows.get(method, STEPS))]
    assert done.plan.bytes_read == sum(len(t[n].data) for t in used for n in FLOATING)
    for tensor in done.record["tensors"].values():
        assert (tensor["solver"], tensor["frozen"], tensor["components"]) == ("none", None, [])
    assert (done.record["explained_variance"], done.record["r2"]) == (None, None)
    with pytest.raises(InputError, match=f"nowhere: not there, and method {method} makes none"):
        extrapolate(
            run.base, run.checkpoints, 90, tmp_path / "b", method=method, progress=False,
            scan=tmp_path / "nowhere",
        )  # fmt: skip
    kept = scan(run.base, run.checkpoints, progress=False)
    again = extrapolate(
        run.base, run.checkpoints, 90, tmp_path / "b", method=method, scan=kept, progress=False
    )
    assert model_digest(tmp_path / "b" / "step_90") == model_digest(tmp_path / "out" / "step_90")
    assert again.plan.bytes_read == done.plan.bytes_read


# ---- strength auto -----------------------------------------------------------------------------


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A strength for each target from what is asked; the list holds what was."""
    asked: list[Any] = []

    def answer(
        scan: Scan, steps: tuple[int, ...], targets: tuple[float, ...], options: Any
    ) -> tuple[float, ...]:
        asked.append((scan, steps, targets, options))
        return tuple(25.0 / target for target in targets)

    monkeypatch.setattr("relex_ext.evidence.verdict.auto_strength", answer, raising=False)
    return asked


@pytest.mark.parametrize("method", ["relex", "secant"])
@pytest.mark.parametrize("limit", ["1GiB", "2MiB"])
def test_strength_auto_scans_first(
    run: RunFolder, tmp_path: Path, auto: list[Any], method: str, limit: str
) -> None:
    options = {"method": method, "memory_limit": limit, "progress": False}
    plan = extrapolate(
        run.base, run.checkpoints, [100, 50], tmp_path / "out", strength="auto", dry_run=True,
        **options,
    ).plan  # fmt: skip
    assert auto == [] and not (tmp_path / "out").exists()
    assert (plan.apart, plan.passes) == (True, 2.0)
    assert not any(item.resident for item in plan.tensors)
    done = extrapolate(
        run.base, run.checkpoints, [100, 50], tmp_path / "out", strength="auto",
        scan=tmp_path / "kept", **options,
    )  # fmt: skip
    ((found, steps, targets, given),) = auto
    assert (steps, targets, given.method) == (STEPS, (100.0, 50.0), method)
    assert set(found.grams) == set(FLOATING)
    assert done.weights is not None and done.weights.strengths == (0.25, 0.5)
    assert done.record["strengths"] == {"step_100": 0.25, "step_50": 0.5}
    assert done.record["options"]["strength"] == "auto"
    for target, strength in ((100, 0.25), (50, 0.5)):
        place = tmp_path / f"fixed-{target}"
        extrapolate(
            run.base, run.checkpoints, target, place, strength=strength, solver="gram", **options
        )
        name = f"step_{target}"
        assert model_digest(place / name) == model_digest(tmp_path / "out" / name)
    alone = scan(run.base, run.checkpoints, out=tmp_path / "alone", progress=False)
    for file in (tmp_path / "kept", tmp_path / "out" / "scan.safetensors"):
        assert file.read_bytes() == (tmp_path / "alone").read_bytes()
    weights = forecast(alone, [100, 50], method=method, strength="auto")
    for name in FLOATING:
        assert np.array_equal(weights.tensors[name], done.weights.tensors[name])
    reused = extrapolate(
        run.base, run.checkpoints, [100, 50], tmp_path / "reused", strength="auto",
        scan=tmp_path / "kept", **options,
    )  # fmt: skip
    assert reused.plan.passes <= 1.0 and not reused.plan.apart
    assert digest(tmp_path / "reused" / "step_50") == digest(tmp_path / "out" / "step_50")


def test_strength_auto_and_power_iteration(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="solver: expected auto or gram with strength auto"):
        extrapolate(
            run.base, run.checkpoints, 90, tmp_path / "out", strength="auto", solver="power",
            progress=False,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_failing_auto_leaves_nothing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> tuple[float, ...]:
        raise InputError("strength: expected more checkpoints to tell by, found 5")

    monkeypatch.setattr("relex_ext.evidence.verdict.auto_strength", refuse, raising=False)
    before = listing(tmp_path)
    with pytest.raises(InputError, match="strength: "):
        extrapolate(
            run.base, run.checkpoints, 90, tmp_path / "a" / "out", strength="auto",
            scan=tmp_path / "b" / "kept", progress=False,
        )  # fmt: skip
    assert listing(tmp_path) == before


# ---- the command -------------------------------------------------------------------------------


def relex(run: RunFolder, out: Path, *more: object) -> int:
    inputs = ("--base", run.base, "--checkpoints", run.checkpoints, "--out", out)
    return main([str(part) for part in ("extrapolate", *inputs, *more)])


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (("--method", "pinned", "--window", 3, "--strength", 0.5),
         {"method": "pinned", "window": 3, "strength": 0.5}),
        (("--fit", "polynomial", "--degree", 3, "--rank", 2),
         {"fit": "polynomial", "degree": 3, "rank": 2}),
        (("--fit", "sine",), {"fit": "sine"}),
        (("--refit", 2, "--window", 4, "--time-axis", "index"),
         {"refit": 2, "window": 4, "time_axis": "index"}),
        (("--method", "first-update", "--alpha", 2.5), {"method": "first-update", "alpha": 2.5}),
        (("--method", "ema", "--decay", 0.5), {"method": "ema", "decay": 0.5}),
        (("--delta-dtype", "float16", "--step-scale", 2),
         {"delta_dtype": "float16", "step_scale": 2.0}),
        (("--strength", "auto"), {"strength": "auto"}),
    ],
    ids=str,
)  # fmt: skip
def test_flags_are_options(
    run: RunFolder, tmp_path: Path, auto: list[Any], flags: tuple[object, ...],
    options: dict[str, Any],
) -> None:  # fmt: skip
    assert relex(run, tmp_path / "a", "--target-step", 90, "-q", *flags) == 0
    extrapolate(run.base, run.checkpoints, 90, tmp_path / "b", progress=False, **options)
    assert without_cards(tmp_path / "a") == without_cards(tmp_path / "b")


def test_the_plan_and_the_summary_of_auto(
    run: RunFolder, tmp_path: Path, auto: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--target-step", 100, "--strength", "auto")
    assert relex(run, tmp_path / "out", *given, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "in 2.00 passes" in text
    assert "order:       all tensors are scanned before the first is written" in text
    assert relex(run, tmp_path / "out", *given, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["scan_first"] is True
    assert not (tmp_path / "out").exists()
    assert relex(run, tmp_path / "out", *given) == 0
    assert "strength step_100: 0.25" in capsys.readouterr().out
    assert relex(run, tmp_path / "latest", "--target-step", 100, "--method", "latest") == 0
    assert "explains" not in capsys.readouterr().out
    observed = ("--target-step", 40, "--method", "reconstruct")
    assert relex(run, tmp_path / "observed", *observed) == 0
    text = capsys.readouterr().out
    assert "rank 1 explains" in text and "R²" not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method", "magic"), "method: expected relex"),
        (("--fit", "cubic"), "fit: expected linear, polynomial or sine"),
        (("--degree", 2), "degree: expected none with fit linear"),
        (("--window", 6), "window: expected at most 5 checkpoints"),
        (("--refit", 0), "refit: expected at least 1"),
        (("--alpha", 1), "alpha: expected none with method relex"),
        (("--method", "ema", "--decay", "nan"), "decay: expected a finite number from 0 to 1"),
        (("--strength", -1), "strength: expected a finite number from 0 or auto"),
        (("--strength", "auto", "--solver", "power"), "solver: expected auto or gram"),
        (("--method", "reconstruct"), "target_steps: expected steps of 10, 20, 35, 40, 70"),
        (("--delta-dtype", "bf16"), "delta_dtype: expected float32 or float16"),
        (("--delta-dtype", "float16", "--backend", "cpu"), "backend: expected auto or reference"),
        (("--method", "latest", "--scan", "nowhere"), "scan: nowhere: not there"),
    ],
    ids=str,
)
def test_wrong_flags_are_one_line(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    flags: tuple[object, ...], message: str,
) -> None:  # fmt: skip
    assert relex(run, tmp_path / "out", "--target-step", 90, *flags) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("relex: error: ") and len(error.splitlines()) == 1
    assert message in error
    assert listing(tmp_path) == []


def test_strength_in_words_is_a_usage_error(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        relex(run, tmp_path / "out", "--target-step", 90, "--strength", "half")
    assert stop.value.code == 2


def test_help_names_every_method_and_fit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["extrapolate", "--help"])
    words = capsys.readouterr().out.replace("-\n", "-").replace("\n", " ")
    for name in (*METHODS, *FITS):
        assert name in " ".join(words.split()).replace("- ", "-"), name
