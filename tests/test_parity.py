"""What the authors' scripts do, option by option, against a transcription of their arithmetic."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize

import oracle
from folders import RunFolder, Spec, digest, make_run, raw, read_model, write_model
from oracle import Float64
from relex_ext import InputError, Scan, combine, extrapolate, forecast, scan
from relex_ext.forecasts import Source
from relex_ext.methods import Options, weigh

EVERY = tuple(range(1, 13))
SPARSE = (10, 20, 30, 45, 50, 80)


def script(
    m: Float64,
    steps: tuple[int, ...],
    label: int,
    mode: str = "extrapolate",
    rank: int = 1,
    fit: str = "linear",
    degree: int = 2,
    window: int = -1,
    future_window: int = -1,
    factor: float = 1.0,
) -> Float64:
    """The predicted delta at ``label`` as the extrapolation script arrives at it, in float64.

    Time is the row number within the window, whatever the steps are.
    """
    u, sigma, vt = np.linalg.svd(m, full_matrices=False)
    degree = 1 if fit == "linear" else degree
    predicted = np.zeros(m.shape[1])
    for k in range(rank):
        if k >= len(sigma) or sigma[k] <= 1e-6 * sigma[0]:
            break
        history = list(sigma[k] * u[:, k])
        if mode == "reconstruct":
            value = history[steps.index(label)]
        elif mode == "fit_reconstruct":
            value = np.polyval(np.polyfit(range(len(history)), history, degree), steps.index(label))
        else:
            recent = history if window == -1 else history[-window:]
            width = len(recent)
            model = np.polyfit(range(width), recent, degree)
            if future_window == -1:
                query = width - 1 + (round(label * factor) - steps[-1])
                value = np.polyval(model, query)
            else:
                since_fit = 0
                for _ in range(steps[-1] + 1, label + 1):
                    if since_fit == future_window:
                        model, since_fit = np.polyfit(range(width), recent, degree), 0
                    value = np.polyval(model, width)
                    recent = [*recent[1:], value]
                    since_fit += 1
        predicted += value * vt[k]
    return predicted


def drift(rows: int) -> Float64:
    rng = np.random.default_rng(rows)
    time = np.linspace(0.1, 1, rows)
    shapes = np.stack([time, 0.3 * np.sin(5 * time), 0.1 * np.cos(9 * time)])
    return shapes.T @ rng.normal(size=(3, 200)) + 0.002 * rng.normal(size=(rows, 200))


def moved(m: Float64, steps: tuple[int, ...], label: float, **options: Any) -> Float64:
    given = Options(time_axis=options.pop("time_axis", "index"), **options)
    given.check(steps, (label,))
    found, _ = weigh(Source("w", m @ m.T), steps, (label,), given, (1.0,))
    return (found @ m)[0]


def assert_close(found: Float64, expected: Float64) -> None:
    assert np.abs(found - expected).max() <= 1e-7 * np.abs(expected).max()


FITTED = [{}, {"fit": "polynomial"}, {"fit": "polynomial", "degree": 3}]


@pytest.mark.parametrize("steps", [EVERY, SPARSE], ids=["every", "sparse"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("fit", FITTED, ids=str)
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("factor", [1.0, 2.0, 0.7, 1.5])
def test_extrapolation(
    steps: tuple[int, ...], rank: int, fit: dict[str, Any], window: int | None, factor: float
) -> None:
    m = drift(len(steps))
    for label in (steps[-1] + 1, 101, 205):  # 101 · 1.5 lies between two steps
        expected = script(m, steps, label, rank=rank, window=window or -1, factor=factor, **fit)
        found = moved(m, steps, label, rank=rank, window=window, step_scale=factor, **fit)
        assert_close(found, expected)


@pytest.mark.parametrize("steps", [EVERY, SPARSE], ids=["every", "sparse"])
@pytest.mark.parametrize("refit", [1, 2, 5, 1000])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("fit", FITTED[:2], ids=str)
def test_the_autoregressive_loop(
    steps: tuple[int, ...], refit: int, window: int | None, fit: dict[str, Any]
) -> None:
    m = drift(len(steps))
    for label in (steps[-1] + 1, steps[-1] + 2, steps[-1] + 6, steps[-1] + 11):
        expected = script(m, steps, label, rank=2, window=window or -1, future_window=refit, **fit)
        found = moved(m, steps, label, rank=2, window=window, refit=refit, **fit)
        assert_close(found, expected)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("fit", FITTED, ids=str)
def test_reconstructions(rank: int, fit: dict[str, Any]) -> None:
    m = drift(len(SPARSE))
    for label in (10, 45, 80):
        found = moved(m, SPARSE, label, rank=rank, method="fit-reconstruct", **fit)
        assert_close(found, script(m, SPARSE, label, "fit_reconstruct", rank, **fit))
        found = moved(m, SPARSE, label, rank=rank, method="reconstruct", time_axis="step")
        assert_close(found, script(m, SPARSE, label, "reconstruct", rank))


def test_with_every_step_both_axes_agree_and_else_they_do_not() -> None:
    m = drift(len(EVERY))
    for options in ({}, {"window": 5}, {"fit": "polynomial"}, {"method": "pinned"}):
        by_row = moved(m, EVERY, 40, **options)
        assert_close(by_row, moved(m, EVERY, 40, time_axis="step", **options))
    m = drift(len(SPARSE))
    by_row, by_step = moved(m, SPARSE, 160), moved(m, SPARSE, 160, time_axis="step")
    assert np.abs(by_row - by_step).max() > 0.5 * np.abs(by_step).max()


@pytest.mark.parametrize("seed", range(6))
def test_sin_fft_where_curve_fit_converges(seed: int) -> None:
    """Not the same search, but the same minimum wherever theirs is the lowest."""
    rng = np.random.default_rng(seed)
    x = np.arange(30.0)
    y = 2 * np.sin(2 * np.pi * rng.uniform(0.04, 0.2) * x + rng.uniform(-1, 1)) + 4
    y += 0.05 * rng.normal(size=30)

    def wave(t: Float64, a: float, f: float, phase: float, c: float) -> Float64:
        return a * np.sin(2 * np.pi * f * t + phase) + c

    peak = np.fft.rfftfreq(30)[1:][np.abs(np.fft.rfft(y - y.mean()))[1:].argmax()]
    start = [3 * y.std() / np.sqrt(2), peak, 0.0, y.mean()]
    theirs, _ = optimize.curve_fit(wave, x, y, p0=start, maxfev=10000)
    m = np.outer(y, rng.normal(size=50))
    size = np.linalg.norm(m, axis=1)[0] / abs(y[0])
    steps = tuple(range(1, 31))
    found = moved(m, steps, 47, fit="sine")
    assert np.sum((y - wave(x, *theirs)) ** 2) < 0.2, "these seeds are ones where it finds the wave"
    direction = m[0] / y[0] / size
    assert found @ direction / size == pytest.approx(wave(46.0, *theirs), rel=1e-4)


# ---- fp16 deltas -------------------------------------------------------------------------------

MODEL = {
    "bf16": Spec((70, 60)),
    "f16": Spec((999,), "F16", ("F16",)),
    "f32": Spec((40, 33), "F32", ("F32",)),
    "mixed": Spec((3000,), "F32", ("BF16", "F16")),
    "frozen": Spec((64,), kind="frozen"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("parity"), SPARSE, MODEL)


def stored(run: RunFolder, name: str) -> Float64:
    """The delta store: weights to fp16, their difference to fp16."""
    base = run.base_tensors[name].values.astype(np.float16)
    rows = [run.step_tensors[step][name].values.astype(np.float16) for step in SPARSE]
    return np.stack([row - base for row in rows]).astype(np.float64)


def assert_bits(run: RunFolder, folder: Path, movement: dict[str, Float64]) -> None:
    written = read_model(folder)
    assert set(written) == set(MODEL)
    for name, found in written.items():
        expected = oracle.round_to(run.base_tensors[name].values + movement[name], found.dtype)
        distance = oracle.ulps(found.words, expected, found.dtype)
        assert distance.max() <= 1
        assert (distance == 0).mean() >= (0.999 if found.dtype == "F32" else 1.0), name


@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_fp16_deltas_to_the_bits(run: RunFolder, tmp_path: Path, solver: str, io: str) -> None:
    done = extrapolate(
        run.base, run.checkpoints, 200, tmp_path / "out", time_axis="index", solver=solver, io=io,
        delta_dtype="float16", progress=False,
    )  # fmt: skip
    movement = {name: script(stored(run, name), SPARSE, 200) for name in MODEL if name != "frozen"}
    movement["frozen"] = np.zeros(64)
    if solver == "gram":  # power iteration is exact to 1e-6 only
        assert_bits(run, done.folders[200.0], movement)
    other = extrapolate(
        run.base, run.checkpoints, 200, tmp_path / "other", time_axis="index", solver=solver,
        backend="reference", progress=False,
    )  # fmt: skip
    here, there = (read_model(d.folders[200.0]) for d in (done, other))
    differing = {n for n in MODEL if here[n].data != there[n].data}
    assert differing == set(MODEL) - {"frozen"}, "otherwise the option does nothing"
    assert done.record["options"]["delta_dtype"] == "F16"
    assert done.record["options"]["backend"] == "reference"


def test_fp16_deltas_without_a_scan(run: RunFolder, tmp_path: Path) -> None:
    """combine rounds them, too, and adds them to the base as it is."""
    options = {"delta_dtype": "float16", "progress": False}
    done = extrapolate(run.base, run.checkpoints, 80, tmp_path / "out", method="latest", **options)
    assert_bits(run, done.folders[80.0], {name: stored(run, name)[-1] for name in MODEL})
    assert done.weights is not None
    again = combine(run.base, run.checkpoints, done.weights, tmp_path / "again", **options)
    assert digest(again.folders[80.0]) == digest(done.folders[80.0])


def test_a_scan_belongs_to_its_deltas(run: RunFolder, tmp_path: Path) -> None:
    files = {}
    for dtype in ("float32", "float16"):
        files[dtype] = tmp_path / dtype
        made = scan(run.base, run.checkpoints, out=files[dtype], delta_dtype=dtype, progress=False)
        assert made.delta_dtype == Scan.load(files[dtype]).delta_dtype
    half = Scan.load(files["float16"])
    assert half.delta_dtype == "F16"
    for name in MODEL:
        m = stored(run, name)
        assert np.allclose(half.grams[name], m @ m.T, rtol=1e-12)
    half.save(tmp_path / "copy")
    assert Scan.load(tmp_path / "copy").delta_dtype == "F16"
    for given, wanted in (("float32", "float16"), ("float16", "float32")):
        with pytest.raises(InputError, match=r"scan: expected deltas in .*; scan again"):
            extrapolate(
                run.base, run.checkpoints, 200, tmp_path / "out", scan=files[given],
                delta_dtype=wanted, progress=False,
            )  # fmt: skip
    assert not (tmp_path / "out").exists()
    from_file = extrapolate(
        run.base, run.checkpoints, 200, tmp_path / "out", scan=files["float16"],
        delta_dtype="float16", progress=False,
    )  # fmt: skip
    whole = forecast(half, 200)
    for name in MODEL:
        assert np.array_equal(whole.tensors[name], from_file.weights.tensors[name])


def test_auto_takes_the_reference_and_says_so(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "relex_ext"):
        scan(run.base, run.checkpoints, delta_dtype="fp16", progress=False)
    assert "backend reference (numpy float64, fp16 deltas): delta_dtype float16" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cpu"}, "backend: expected auto or reference with delta_dtype float16"),
        ({"backend": "cuda"}, "backend: expected auto or reference with delta_dtype float16"),
        ({"backend": "gpu"}, "backend: expected one of"),
        ({"device": "cuda:0"}, "device: expected none with delta_dtype float16"),
        ({"delta_dtype": "bfloat16"}, "delta_dtype: expected float32 or float16, found bfloat16"),
        ({"delta_dtype": "int8"}, "delta_dtype: expected float32 or float16, found int8"),
    ],
)
def test_bad_deltas(run: RunFolder, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    given = {"delta_dtype": "float16", "progress": False, **options}
    with pytest.raises(InputError, match=message):
        extrapolate(run.base, run.checkpoints, 200, tmp_path / "out", **given)
    with pytest.raises(InputError, match=message):
        scan(run.base, run.checkpoints, **given)
    assert not (tmp_path / "out").exists()


def test_weights_beyond_fp16(tmp_path: Path) -> None:
    """In range for bf16, Inf in fp16: an error that names tensor and step, not a warning."""
    folders = {}
    for step in (0, 1, 2):
        values = np.array([1e5 + 4096.0 * step, 1.0 + step])
        words = oracle.round_to(values, "BF16")
        folders[step] = write_model(tmp_path / f"step_{step}", {"w": raw(words, "BF16")})
    base = folders.pop(0)
    scan(base, folders, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            InputError, match="tensor w: numbers beyond the deltas' dtype in step 1"
        ):
            scan(base, folders, delta_dtype="float16", progress=False)
