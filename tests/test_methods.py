"""Every method and option of a forecast, against its definition on the stacked deltas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
from folders import RunFolder, Spec, make_run
from oracle import Float64
from relex_ext import InputError, Scan, forecast, scan
from relex_ext.fits import FITS, Course
from relex_ext.forecasts import Source, Weights
from relex_ext.methods import METHODS, Options, weigh

IRREGULAR = (3, 10, 12, 40, 41, 90, 95, 130)
EVEN = tuple(range(5, 45, 5))
TARGETS = (150.0, 62.5, -10.0, 400.0)


def drift(rows: int, columns: int = 300) -> Float64:
    """Three directions that grow in different ways: singular values well apart."""
    rng = np.random.default_rng(rows)
    time = np.linspace(0.1, 1, rows)
    shapes = np.stack([time, 0.3 * np.sin(5 * time), 0.1 * np.cos(9 * time)])
    return shapes.T @ rng.normal(size=(3, columns)) + 0.002 * rng.normal(size=(rows, columns))


def moved(
    m: Float64, steps: tuple[int, ...], targets: tuple[float, ...], **options: Any
) -> Float64:
    """θ̂ − θ₀ by the package, from an exact Gram matrix."""
    given = Options(**options)
    given.check(steps, targets)
    found, _ = weigh(Source("w", m @ m.T), steps, targets, given, given.strengths(targets))
    assert found.shape == (len(targets), len(steps))
    return found @ m


def assert_close(found: Float64, expected: Float64) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-7 * np.abs(expected).max()


SPECTRAL = [
    {"method": "relex"},
    {"method": "relex", "window": 5},
    {"method": "relex", "window": 2},
    {"method": "relex", "fit": "polynomial"},
    {"method": "relex", "fit": "polynomial", "degree": 3, "window": 6},
    {"method": "relex", "step_scale": 1.5, "window": 4},
    {"method": "pinned"},
    {"method": "pinned", "window": 3},
    {"method": "pinned", "fit": "polynomial", "degree": 1},
    {"method": "pinned", "step_scale": 2.0},
]
OBSERVED = [
    {"method": "reconstruct"},
    {"method": "fit-reconstruct"},
    {"method": "fit-reconstruct", "fit": "polynomial", "degree": 4},
]
PLAIN = [
    {"method": "latest"},
    {"method": "secant"},
    {"method": "secant", "step_scale": 0.5},
    {"method": "two-point"},
    {"method": "two-point", "window": 1},
    {"method": "two-point", "window": 3, "step_scale": 2.0},
    {"method": "first-update"},
    {"method": "first-update", "alpha": 12.5},
    {"method": "ema"},
    {"method": "ema", "decay": 0.99},
    {"method": "ema", "decay": 1.0},
]


@pytest.mark.parametrize("steps", [IRREGULAR, EVEN], ids=["irregular", "even"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("options", SPECTRAL, ids=str)
def test_forecasts(steps: tuple[int, ...], rank: int, options: dict[str, Any]) -> None:
    m = drift(len(steps))
    expected = oracle.movement(m=m, steps=steps, targets=TARGETS, rank=rank, **options)
    assert_close(moved(m, steps, TARGETS, rank=rank, **options), expected)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("options", OBSERVED, ids=str)
def test_reconstructions(rank: int, options: dict[str, Any]) -> None:
    m = drift(len(IRREGULAR))
    targets = (130.0, 3.0, 40.0)
    expected = oracle.movement(m=m, steps=IRREGULAR, targets=targets, rank=rank, **options)
    assert_close(moved(m, IRREGULAR, targets, rank=rank, **options), expected)


def test_a_reconstruction_of_full_rank_is_the_checkpoint() -> None:
    m = drift(4)
    assert_close(moved(m, (1, 2, 5, 6), (5.0, 1.0), method="reconstruct", rank=4), m[[2, 0]])


@pytest.mark.parametrize("steps", [IRREGULAR, EVEN, (7, 9)], ids=["irregular", "even", "two"])
@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_methods_without_a_spectrum(steps: tuple[int, ...], options: dict[str, Any]) -> None:
    if len(steps) == 2:
        options = {name: value for name, value in options.items() if name != "window"}
    m = drift(len(steps))
    expected = oracle.movement(m=m, steps=steps, targets=TARGETS, **options)
    assert_close(moved(m, steps, TARGETS, **options), expected)


def test_every_method_is_tested() -> None:
    assert {o["method"] for o in (*SPECTRAL, *OBSERVED, *PLAIN)} == set(METHODS)
    spectral = {o["method"] for o in (*SPECTRAL, *OBSERVED)}
    assert {name for name, method in METHODS.items() if method.spectral} == spectral


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("options", [*SPECTRAL[:2], *SPECTRAL[6:7], *PLAIN], ids=str)
def test_strength(strength: float, options: dict[str, Any]) -> None:
    m = drift(len(IRREGULAR))
    full = oracle.movement(m=m, steps=IRREGULAR, targets=TARGETS, **options)
    found = moved(m, IRREGULAR, TARGETS, strength=strength, **options)
    assert_close(found, m[-1] + strength * (full - m[-1]))


@pytest.mark.parametrize("options", [*SPECTRAL, {"method": "reconstruct"}], ids=str)
def test_a_frozen_tensor_stays_frozen(options: dict[str, Any]) -> None:
    """At every strength: nothing has to be read for it."""
    given = Options(**options, strength=0.5)
    targets = (IRREGULAR[3],) * 1
    source = Source("w", np.zeros((8, 8)))
    found, fits = weigh(source, IRREGULAR, targets, given, (0.5,))
    assert not found.any() and fits == ()


@pytest.mark.parametrize("method", ["relex", "pinned", "fit-reconstruct"])
def test_forecasts_along_a_sine(method: str) -> None:
    steps = tuple(range(4, 64, 3))
    x = np.array(steps, np.float64)
    rng = np.random.default_rng(3)
    m = np.outer(5 + np.sin(2 * np.pi * 0.03 * x + 1), rng.normal(size=80))
    m += 1e-3 * rng.normal(size=m.shape)
    targets = (61.0, 7.0) if method == "fit-reconstruct" else (90.0, 75.5)
    expected = oracle.movement(method, m, steps, targets, fit="sine")
    found = moved(m, steps, targets, method=method, fit="sine")
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


# ---- step by step ------------------------------------------------------------------------------


@pytest.mark.parametrize("refit", [1, 3, 7])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("fit", ["linear", "polynomial"])
def test_refit_at_steps(refit: int, window: int | None, fit: str) -> None:
    """On the steps' own axis each prediction is made where it belongs."""
    rng = np.random.default_rng(5)
    values = np.cumsum(rng.normal(1, 0.3, len(IRREGULAR)))
    times, known = [float(s) for s in IRREGULAR], values.tolist()
    width = window or len(IRREGULAR)
    predicted = {}
    for n, step in enumerate(range(131, 151)):
        if n % refit == 0:
            x, y = np.array(times[-width:]), np.array(known[-width:])
            current = oracle.curve(x, y, fit)
        predicted[step] = float(current(np.array([step]))[0])
        times.append(float(step))
        known.append(predicted[step])
    at = (150.0, 131.0, 140.0)
    found, first = Course(fit, window=window, refit=refit).follow(IRREGULAR, values, at)
    assert np.allclose(found, [predicted[int(s)] for s in at], rtol=1e-9)
    alone = Course(fit, window=window).fitted(IRREGULAR, values)
    assert first.parameters == alone.parameters


def test_refit_on_a_line_changes_nothing() -> None:
    m = np.outer(IRREGULAR, np.random.default_rng(1).normal(size=30))
    once = moved(m, IRREGULAR, (200.0,))
    for method in ("relex", "pinned"):
        assert_close(moved(m, IRREGULAR, (200.0,), method=method, refit=5, window=4), once)


# ---- from scans --------------------------------------------------------------------------------

SMALL = {"w": Spec((60, 50)), "v": Spec((999,), "F32", ("F32",)), "z": Spec((8,), kind="frozen")}
STEPS = (3, 10, 12, 40, 41, 90)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("methods"), STEPS, SMALL)


@pytest.fixture(scope="module")
def whole(run: RunFolder) -> Scan:
    return scan(run.base, run.checkpoints, progress=False)


@pytest.fixture(scope="module")
def power(run: RunFolder) -> Scan:
    return scan(run.base, run.checkpoints, solver="power", rank=2, progress=False)


def assert_same(a: Weights, b: Weights) -> None:
    for name in SMALL:
        scale = max(1.0, np.abs(b.tensors[name]).max())
        assert np.allclose(a.tensors[name], b.tensors[name], rtol=0, atol=1e-5 * scale), name


@pytest.mark.parametrize(
    "options",
    [*SPECTRAL[:2], *SPECTRAL[6:8], {"method": "reconstruct", "rank": 2}, OBSERVED[1], *PLAIN],
    ids=str,
)
def test_power_iteration_serves_every_method(
    whole: Scan, power: Scan, options: dict[str, Any]
) -> None:
    assert_same(forecast(power, 90, **options), forecast(whole, 90, **options))


def test_what_power_iteration_cannot_serve(whole: Scan, power: Scan) -> None:
    with pytest.raises(InputError, match="expected rank 3, found 2"):
        forecast(power, 90, rank=3)
    for method in ("relex", "pinned", "reconstruct", "fit-reconstruct"):
        with pytest.raises(InputError, match="subset needs a scan with solver gram"):
            forecast(power, 41, until=41, method=method)
    for options in PLAIN:
        if options.get("window", 1) < 3:
            part = forecast(power, 150, until=41, **options)
            assert_same(part, forecast(whole, 150, until=41, **options))
    with pytest.raises(InputError, match=r"tensor w: .*needs a scan with solver gram"):
        _ = power.source("w").gram


def test_sources_of_a_scan(whole: Scan) -> None:
    part = whole.source("w", (10, 41))
    assert np.array_equal(part.gram, whole.grams["w"][np.ix_([1, 4], [1, 4])])
    assert np.array_equal(whole.source("w", STEPS).gram, whole.grams["w"])
    with pytest.raises(InputError, match="tensor x: missing"):
        whole.source("x")


def test_strength_auto_is_asked_once(whole: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def auto(*given: Any) -> tuple[float, ...]:
        asked.append(given)
        return (0.25, 0.5)

    monkeypatch.setattr("relex_ext.evidence.verdict.auto_strength", auto, raising=False)
    found = forecast(whole, [150, 300], until=41, strength="auto", method="pinned")
    assert found.strengths == (0.25, 0.5)
    ((asked_scan, steps, targets, options),) = asked
    assert asked_scan is whole
    assert (steps, targets, options.method) == (STEPS[:5], (150.0, 300.0), "pinned")
    for i, (target, strength) in enumerate(((150, 0.25), (300, 0.5))):
        one = forecast(whole, target, until=41, strength=strength, method="pinned")
        for name in SMALL:
            assert np.array_equal(one.tensors[name][0], found.tensors[name][i])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method: expected relex, pinned, .* or ema, found magic"),
        ({"fit": "cubic"}, "fit: expected linear, polynomial or sine, found cubic"),
        ({"degree": 3}, "degree: expected none with fit linear, found 3"),
        ({"fit": "polynomial", "degree": 0}, "degree: expected 1 to 9, found 0"),
        ({"fit": "polynomial", "degree": 2.5}, "degree: expected 1 to 9, found 2.5"),
        ({"fit": "polynomial", "degree": 6}, "checkpoints: expected at least 7 to fit, found 6"),
        ({"fit": "polynomial", "window": 2}, "window: expected at least 3 to fit, found 2"),
        ({"fit": "sine", "window": 4}, "window: expected at least 5 to fit, found 4"),
        ({"window": 0}, "window: expected at least 1, found 0"),
        ({"window": 1}, "window: expected at least 2 to fit, found 1"),
        ({"window": 7}, "window: expected at most 6 checkpoints, found 7"),
        ({"method": "two-point", "window": 6}, "window: expected at most 5, found 6"),
        ({"refit": 0}, "refit: expected at least 1, found 0"),
        ({"refit": True}, "refit: expected at least 1, found True"),
        ({"refit": 2, "step_scale": 2.0}, "step_scale: expected none with refit, found 2.0"),
        ({"refit": 2, "target_steps": 99.5}, "target_steps: expected whole steps.* found 99.5"),
        ({"refit": 2, "target_steps": 1e9}, "target_steps: .* at most 100090, .* found 1e\\+09"),
        ({"alpha": 2.0}, "alpha: expected none with method relex, found 2.0"),
        ({"method": "first-update", "alpha": float("nan")}, "alpha: expected a finite number"),
        (
            {"method": "first-update", "alpha": 2.0, "step_scale": 3.0},
            "step_scale: expected none with alpha, found 3.0",
        ),
        ({"decay": 0.5}, "decay: expected none with method relex, found 0.5"),
        ({"method": "ema", "decay": 1.5}, "decay: expected a finite number from 0 to 1, found 1.5"),
        ({"strength": -0.5}, "strength: expected a finite number from 0 or auto, found -0.5"),
        ({"strength": float("inf")}, "strength: expected a finite number"),
        ({"strength": "auto", "method": "ema"}, "strength: expected a number with method ema"),
        (
            {"strength": "auto", "method": "latest"},
            "strength: expected a number with method latest",
        ),
        (
            {"strength": "auto", "method": "reconstruct", "target_steps": 40},
            "strength: expected a number with method reconstruct",
        ),
        ({"strength": "half"}, "strength: expected a finite number from 0 or auto, found half"),
        ({"method": "latest", "rank": 2}, "rank: expected none with method latest, found 2"),
        ({"method": "ema", "step_scale": 2.0}, "step_scale: expected none with method ema"),
        ({"method": "secant", "time_axis": "index"}, "time_axis: expected none with method secant"),
        ({"method": "reconstruct", "fit": "sine"}, "fit: expected none with method reconstruct"),
        ({"method": "fit-reconstruct", "window": 3}, "window: expected none"),
        (
            {"method": "reconstruct", "target_steps": [40, 50]},
            "target_steps: expected steps of 3, 10, 12, 40, 41, 90, found 50",
        ),
        ({"method": "fit-reconstruct"}, "target_steps: expected steps of 3, .*, found 150"),
    ],
    ids=str,
)
def test_bad_options(whole: Scan, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as error:
        forecast(whole, **{"target_steps": 150, **options})
    assert "\n" not in str(error.value)


def test_steps_of_zero() -> None:
    """Which only Python can name: a folder's step is never negative, and the base is step 0."""
    m = drift(3)
    with pytest.raises(InputError, match="steps other than 0 for method secant"):
        moved(m, (-20, -10, 0), (5.0,), method="secant")
    with pytest.raises(InputError, match="steps other than 0 for method first-update"):
        moved(m, (0, 10, 20), (5.0,), method="first-update")
    moved(m, (0, 10, 20), (5.0,), method="first-update", alpha=1.0)


def test_the_docs_name_every_method_and_fit() -> None:
    text = (Path(__file__).parent.parent / "docs" / "method.md").read_text()
    for name in (*METHODS, *FITS):
        assert re.search(rf"`{name}`", text), name
