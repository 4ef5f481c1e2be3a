"""From a Gram matrix to weights, against the SVD of M itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import oracle
import tolerances
from folders import RunFolder, Spec, make_run
from oracle import Float64
from relex_ext import InputError, Scan, forecast, scan
from relex_ext.forecasts import Source, fit_line
from relex_ext.methods import Options, weigh

IRREGULAR = (3, 10, 12, 40, 41, 90)


def exact_weights(
    m: Float64,
    steps: tuple[int, ...],
    targets: tuple[float, ...],
    **options: object,
) -> tuple[Float64, tuple]:
    """The package's weights from an exact Gram matrix."""
    given = Options(**options)
    source = Source("w", m @ m.T)
    return weigh(source, steps, targets, given, given.strengths(targets))


def drift(rows: int, columns: int = 400, seed: int = 0) -> Float64:
    """Three directions that grow in different ways, with noise: singular values well apart."""
    rng = np.random.default_rng([seed, rows])
    time = np.linspace(0.1, 1, rows)
    shapes = np.stack([time, 0.3 * np.sin(5 * time), 0.1 * np.cos(9 * time)])
    return shapes.T @ rng.normal(size=(3, columns)) + 0.002 * rng.normal(size=(rows, columns))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("rows", [2, 3, 5, 17, 75])
@pytest.mark.parametrize("axis", ["step", "index"])
@pytest.mark.parametrize("scale", [1.0, 0.5, -2.0])
def test_against_the_svd(rank: int, rows: int, axis: str, scale: float) -> None:
    m = drift(rows)
    steps = tuple(int(s) for s in np.cumsum(np.random.default_rng(rows).integers(1, 30, rows)))
    targets = (0.0, 500.0, 62.5, -10.0)
    x, at = steps, np.array(targets) * scale
    if axis == "index":
        x, at = oracle.on_rows(steps, targets, scale)
    expected = oracle.forecast(np.zeros(m.shape[1]), list(m), x, at, rank)
    weights, fits = exact_weights(m, steps, targets, rank=rank, time_axis=axis, step_scale=scale)
    size = np.abs(expected.weights).max()
    assert np.allclose(weights, expected.weights, rtol=0, atol=1e-8 * size)
    assert np.allclose(weights @ m, expected.theta, rtol=0, atol=1e-8 * np.abs(m).max() * size)
    assert len(fits) == min(rank, rows)
    for k, fit in enumerate(fits):
        assert fit.sigma == pytest.approx(expected.sigma[k], rel=1e-9)
        assert fit.explained_variance == pytest.approx(expected.explained_variance[k], rel=1e-9)
        assert fit.slope == pytest.approx(expected.slope[k], rel=1e-8, abs=1e-12)
        assert fit.intercept == pytest.approx(expected.intercept[k], rel=1e-8, abs=1e-10)
        assert fit.r2 == pytest.approx(expected.r2[k], rel=0, abs=1e-8)


def test_rank_above_the_number_of_rows() -> None:
    m = drift(3)
    three, fits = exact_weights(m, (1, 2, 3), (9.0,), rank=3)
    many, more = exact_weights(m, (1, 2, 3), (9.0,), rank=10)
    assert np.array_equal(three, many)
    assert fits == more


def test_full_rank_on_a_line_reproduces_the_line() -> None:
    """Exactly linear deltas: every target is met exactly, the observed steps among them."""
    direction = np.random.default_rng(1).normal(size=50)
    m = np.outer(IRREGULAR, direction)
    weights, fits = exact_weights(m, IRREGULAR, (41.0, 1000.0))
    assert np.allclose(weights @ m, [41 * direction, 1000 * direction], rtol=1e-12)
    assert fits[0].r2 == pytest.approx(1.0, abs=tolerances.EXACT)
    assert fits[0].explained_variance == pytest.approx(1.0, abs=tolerances.EXACT)
    assert len(exact_weights(m, IRREGULAR, (41.0,), rank=3)[1]) == 1, "σ₂ = 0 is no component"


def test_the_sign_of_u_changes_nothing() -> None:
    m = drift(6)
    plus, fits = exact_weights(m, IRREGULAR, (200.0,))
    minus, same = exact_weights(-m, IRREGULAR, (200.0,))
    assert np.allclose(plus, minus, rtol=1e-10)
    assert fits[0].slope == pytest.approx(same[0].slope, rel=1e-10)
    assert fits[0].slope > 0, "Σ u ≥ 0 and the drift grows: so must c"


def test_constant_coefficients_have_no_r2() -> None:
    m = np.ones((4, 10))
    weights, fits = exact_weights(m, (1, 2, 3, 4), (100.0,))
    assert fits[0].slope == pytest.approx(0.0, abs=1e-12)
    assert 0.0 <= fits[0].r2 <= 1.0
    assert np.allclose(weights @ m, np.ones(10))


def test_frozen_tensor() -> None:
    weights, fits = exact_weights(np.zeros((4, 10)), (1, 2, 3, 4), (100.0, 200.0), rank=2)
    assert weights.shape == (2, 4) and not weights.any()
    assert fits == ()


def test_scale_of_the_deltas_changes_no_weight() -> None:
    m = drift(5)
    expected, _ = exact_weights(m, (1, 2, 3, 4, 5), (50.0,))
    for scale in (1e-60, 1e-25, 1e25, 1e60):
        found, fits = exact_weights(m * scale, (1, 2, 3, 4, 5), (50.0,))
        assert np.allclose(found, expected, rtol=1e-9)
        assert fits[0].sigma == pytest.approx(np.linalg.norm(m, 2) * scale, rel=1e-9)


def test_fit_line_against_lstsq() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        x, y = np.sort(rng.integers(0, 10**6, 9)).astype(np.float64), rng.normal(size=9)
        slope, intercept, r2 = fit_line(x, y)
        design = np.stack([x, np.ones(9)], axis=1)
        a, b = np.linalg.lstsq(design, y, rcond=None)[0]
        assert (slope, intercept) == pytest.approx((a, b), rel=1e-9)
        assert r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=1e-9)


# ---- on folders --------------------------------------------------------------------------------

SMALL = {"w": Spec((60, 50)), "v": Spec((999,), "F32", ("F32",)), "z": Spec((8,), kind="frozen")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("forecast"), IRREGULAR, SMALL)


@pytest.fixture(scope="module")
def whole(run: RunFolder) -> Scan:
    return scan(run.base, run.checkpoints, progress=False)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize(("axis", "scale"), [("step", 1.0), ("index", 1.0), ("step", 1.5)])
def test_forecast_of_a_scan(
    run: RunFolder, whole: Scan, rank: int, axis: str, scale: float
) -> None:
    targets = [150.0, 90.0]
    found = forecast(whole, targets, rank=rank, time_axis=axis, step_scale=scale)
    assert (found.steps, found.targets) == (IRREGULAR, tuple(targets))
    for name in ("w", "v"):
        x, at = IRREGULAR, [target * scale for target in targets]
        if axis == "index":
            x, at = oracle.on_rows(IRREGULAR, targets, scale)
        expected = run.forecast(name, at, rank, axis=tuple(x))
        m = oracle.deltas(
            run.base_tensors[name].values,
            [run.step_tensors[s][name].values for s in IRREGULAR],
        )
        moved, wanted = found.tensors[name] @ m, expected.weights @ m
        error = np.linalg.norm(moved - wanted) / np.linalg.norm(wanted)
        assert error <= rank * tolerances.LINE
        fit = found.components[name][0]
        assert fit.sigma == pytest.approx(expected.sigma[0], rel=tolerances.SIGMA)
        assert fit.slope == pytest.approx(expected.slope[0], rel=tolerances.LINE)
        assert fit.r2 == pytest.approx(expected.r2[0], abs=tolerances.LINE)
    assert not found.tensors["z"].any() and found.components["z"] == ()


@pytest.mark.parametrize(
    ("until", "steps", "left"),
    [
        (41, None, (3, 10, 12, 40, 41)),
        (None, [90, 3, 12], (3, 12, 90)),
        (40, [3, 12, 40, 90], (3, 12, 40)),
        (None, [10, 41], (10, 41)),
    ],
)
def test_part_of_a_scan_is_the_scan_of_that_part(
    run: RunFolder,
    whole: Scan,
    until: int | None,
    steps: list[int] | None,
    left: tuple[int, ...],
) -> None:
    fresh = scan(run.base, run.checkpoints, until=until, steps=steps, progress=False)
    assert fresh.steps == left
    rows = whole.rows_of(left)
    for name in whole.names:
        part = whole.grams[name][np.ix_(rows, rows)]
        assert np.allclose(part, fresh.grams[name], rtol=1e-6, atol=0)
    a = forecast(whole, 150, until=until, steps=steps)
    b = forecast(fresh, 150)
    assert a.steps == b.steps == left
    for name in whole.names:
        assert np.allclose(a.tensors[name], b.tensors[name], rtol=0, atol=tolerances.LINE)


def test_a_scan_survives_its_file(run: RunFolder, whole: Scan, tmp_path: Path) -> None:
    whole.save(tmp_path / "a.safetensors")
    again = Scan.load(tmp_path / "a.safetensors")
    assert (again.steps, again.names) == (whole.steps, whole.names)
    assert again.identities == whole.identities
    for name in whole.names:
        assert again.grams[name].tobytes() == whole.grams[name].tobytes()
    from_file = forecast(tmp_path / "a.safetensors", [7.0, 150.0])
    in_memory = forecast(whole, [7.0, 150.0])
    for name in whole.names:
        assert from_file.tensors[name].tobytes() == in_memory.tensors[name].tobytes()


@pytest.mark.parametrize("solver", ["gram", "power"])
def test_scan_to_a_file_is_the_scan_in_memory(run: RunFolder, tmp_path: Path, solver: str) -> None:
    in_memory = scan(run.base, run.checkpoints, solver=solver, rank=2, progress=False)
    place = tmp_path / "new" / "scan.safetensors"
    kept = scan(run.base, run.checkpoints, out=place, solver=solver, rank=2, progress=False)
    assert [p.name for p in place.parent.iterdir()] == ["scan.safetensors"]
    a, b = forecast(in_memory, 150, rank=2), forecast(kept, 150, rank=2)
    for name in in_memory.names:
        assert a.tensors[name].tobytes() == b.tensors[name].tobytes()
    with pytest.raises(InputError, match="exists already"):
        scan(run.base, run.checkpoints, out=place, progress=False)
    again = scan(run.base, run.checkpoints, out=place, overwrite=True, progress=False)
    assert set(again.grams) == set(SMALL)


def test_power_scan_agrees_with_gram(run: RunFolder, whole: Scan) -> None:
    found = scan(run.base, run.checkpoints, solver="power", rank=1, progress=False)
    assert set(found.spectra) == set(SMALL)
    a, b = forecast(found, 150), forecast(whole, 150)
    for name in SMALL:
        scale = np.abs(b.tensors[name]).max()
        assert np.allclose(a.tensors[name], b.tensors[name], rtol=0, atol=3e-6 * scale)
    with pytest.raises(InputError, match="subset needs a scan with solver gram"):
        forecast(found, 150, until=41)
    with pytest.raises(InputError, match="expected rank 2, found 1"):
        forecast(found, 150, rank=2)


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "at least one"),
        ([float("nan")], "finite"),
        ([float("inf")], "finite"),
        ([100, -float("inf")], "finite"),
        ([100, 200, 100.0], "twice"),
    ],
)
def test_bad_targets(whole: Scan, targets: list[float], message: str) -> None:
    with pytest.raises(InputError, match=f"target_steps: .*{message}"):
        forecast(whole, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": -1}, "rank"),
        ({"time_axis": "epoch"}, "time_axis"),
        ({"step_scale": float("nan")}, "step_scale"),
        ({"step_scale": float("inf")}, "step_scale"),
        ({"until": 3}, "at least 2 steps"),
        ({"steps": [3]}, "at least 2 steps"),
        ({"steps": [3, 4]}, "^the scan lacks step 4; it has 3, 10, "),
        ({"steps": [3, 3]}, "steps"),
        ({"steps": [3, 3, 10]}, "steps"),
    ],
)
def test_bad_options(whole: Scan, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        forecast(whole, 100, **options)


@pytest.mark.parametrize("targets", [500, 500.0, [500], (500,), range(500, 501), np.array([500])])
def test_ways_to_name_a_target(whole: Scan, targets: object) -> None:
    found = forecast(whole, targets)
    assert found.targets == (500.0,)
