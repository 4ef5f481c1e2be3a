"""extrapolate end to end against the oracle: the numbers in the files and in relex.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import oracle
import tolerances
from compare import Tally, checked_distance
from folders import MODEL, SHARDS, RunFolder, Spec, make_run, raw, read_model, write_model
from relex_ext import Weights, combine, extrapolate, scan
from tables import BACKENDS

TARGETS = (100.0, 62.5, 5.0)
TRAINED = [n for n, s in MODEL.items() if s.kind == "trained"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Sharded checkpoints over a base in one file."""
    return make_run(tmp_path_factory.mktemp("values"), shards=SHARDS)


def force(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """Make that ISA (or the reference) the one extrapolate uses; returns the backend's name."""
    if name == "reference":
        return "reference"
    monkeypatch.setenv("RELEX_ISA", name)
    return "cpu"


def assert_folder(
    folder: Path,
    run: RunFolder,
    target: float,
    names: Sequence[str] = tuple(TRAINED),
    dtype: str | None = None,
    **options: object,
) -> None:
    """A written model is the oracle's, rounded: pooled over tensors for the share of bits."""
    found = read_model(folder)
    assert set(found) == set(run.base_tensors)
    tally = Tally()
    steps = options.get("steps") or run.steps
    for name in names:
        out = dtype or run.step_tensors[max(steps)][name].dtype
        assert (found[name].dtype, found[name].shape) == (out, run.base_tensors[name].shape)
        answer = run.forecast(name, [target], **options)
        rows = [run.step_tensors[s][name].values for s in steps]
        base = run.base_tensors[name].values
        tally.add(out, checked_distance(found[name].words, out, base, rows, answer))
    tally.check()


def test_the_run_moves(run: RunFolder) -> None:
    """Otherwise the rest would compare copies of the base."""
    for name in TRAINED:
        if run.base_tensors[name].data:
            theta = run.forecast(name, [100.0]).theta[0]
            base = run.base_tensors[name]
            moved = np.mean(oracle.round_to(theta, base.dtype) != base.words)
            assert moved > 0.5, name


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("solver", ["gram", "power"])
def test_against_the_oracle(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, solver: str
) -> None:
    backend = force(monkeypatch, name)
    done = extrapolate(
        run.base, run.checkpoints, TARGETS, tmp_path / "out",
        backend=backend, solver=solver, progress=False,
    )  # fmt: skip
    assert {p.solver for p in done.plan.tensors} == {solver}
    assert list(done.folders) == list(TARGETS)
    for target, folder in done.folders.items():
        assert_folder(folder, run, target)
    assert done.record["options"]["backend"] == backend


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2},
        {"until": 40},
        {"steps": [35, 10, 70]},
        {"step_scale": 1.25},
        {"time_axis": "index"},
    ],
)
def test_options_against_the_oracle(
    run: RunFolder, tmp_path: Path, options: dict[str, object]
) -> None:
    extrapolate(run.base, run.checkpoints, 90, tmp_path / "out", progress=False, **options)
    steps = {"until": (10, 20, 35, 40), "steps": (10, 35, 70)}.get(next(iter(options)), run.steps)
    # A weak second direction is known to fp32's error in the first: not to float32's last bit.
    names = [n for n in TRAINED if "rank" not in options or MODEL[n].rows[-1] != "F32"]
    axis, at = steps, 90.0
    if "time_axis" in options:
        axis, (at,) = oracle.on_rows(steps, [90.0])
    assert_folder(
        tmp_path / "out" / "step_90", run, at, names, rank=options.get("rank", 1), steps=steps,
        step_scale=options.get("step_scale", 1.0), axis=tuple(axis),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "name"), [("float32", "F32"), ("torch.float16", "F16"), ("bf16", "BF16")]
)
def test_dtype_of_the_output(run: RunFolder, tmp_path: Path, dtype: str, name: str) -> None:
    extrapolate(run.base, run.checkpoints, 100, tmp_path / "out", dtype=dtype, progress=False)
    folder = tmp_path / "out" / "step_100"
    assert_folder(folder, run, 100.0, dtype=name)
    config = json.loads((folder / "config.json").read_text())
    torch_name = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[name]
    assert config == {"model_type": "toy", "torch_dtype": torch_name}
    assert read_model(folder)["model.layers.0.position_ids"].dtype == "I64"


def test_integers_come_from_the_base_and_frozen_bits_stay(run: RunFolder, tmp_path: Path) -> None:
    extrapolate(run.base, run.checkpoints, TARGETS, tmp_path / "out", progress=False)
    frozen = run.base_tensors["model.layers.0.frozen"]
    assert (frozen.words == 0x8000).any(), "a −0 to lose"
    for folder in (tmp_path / "out").glob("step_*"):
        found = read_model(folder)
        for name in ("model.layers.0.position_ids", "model.layers.0.mask"):
            assert found[name] == run.base_tensors[name]
            assert found[name].data != run.step_tensors[70][name].data
        assert found["model.layers.0.frozen"] == frozen


def test_record(run: RunFolder, tmp_path: Path) -> None:
    done = extrapolate(run.base, run.checkpoints, TARGETS, tmp_path / "out", progress=False)
    record = json.loads((tmp_path / "out" / "relex.json").read_text())
    assert record == json.loads(json.dumps(done.record))
    assert record["targets"] == {"step_100": 100.0, "step_62.5": 62.5, "step_5": 5.0}
    assert record["base"] == str(run.base)
    assert list(record["checkpoints"]) == ["10", "20", "35", "40", "70"]
    assert set(record["tensors"]) == {n for n, s in MODEL.items() if s.kind != "integer"}
    energies, shares, r2s = [], [], []
    for name in TRAINED:
        found = record["tensors"][name]
        assert found["shape"] == list(MODEL[name].shape)
        expected = run.forecast(name, TARGETS)
        assert len(found["components"]) == len(expected.sigma)
        assert found["frozen"] is not bool(expected.sigma.size)
        for fit in found["components"]:
            assert fit["sigma"] == pytest.approx(expected.sigma[0], rel=tolerances.SIGMA)
            for key in ("explained_variance", "r2"):
                value = getattr(expected, key)[0]
                assert fit[key] == pytest.approx(value, rel=tolerances.LINE), (name, key)
            assert fit["slope"] == pytest.approx(expected.slope[0], rel=tolerances.LINE)
            size = abs(expected.slope[0]) * 70
            assert fit["intercept"] == pytest.approx(
                expected.intercept[0], abs=tolerances.LINE * size
            )
            energies.append(expected.sigma[0] ** 2 / expected.explained_variance[0])
            shares.append(expected.explained_variance[0])
            r2s.append(expected.r2[0])
    assert record["tensors"]["model.layers.0.frozen"]["frozen"] is True
    for key, values in (("explained_variance", shares), ("r2", r2s)):
        pooled = np.average(values, weights=energies)
        assert record[key] == pytest.approx(pooled, rel=tolerances.LINE)


def test_weights_of_the_run_are_the_oracles(run: RunFolder, tmp_path: Path) -> None:
    done = extrapolate(run.base, run.checkpoints, TARGETS, tmp_path / "out", progress=False)
    assert done.weights is not None
    for name in TRAINED:
        expected = run.forecast(name, TARGETS).weights
        scale = np.abs(expected).max()
        assert np.allclose(
            done.weights.tensors[name], expected, rtol=0, atol=tolerances.VECTOR * scale
        )


@pytest.mark.parametrize("columns", [1, 17, 65535, 65536, 65537, 200001])
@pytest.mark.parametrize("rows", [2, 9])
def test_one_tensor_of_every_size(tmp_path: Path, columns: int, rows: int) -> None:
    model = {"w": Spec((columns,))}
    run = make_run(tmp_path, range(10, 10 * rows + 1, 10), model, seed=columns)
    extrapolate(run.base, run.checkpoints, 150, tmp_path / "out", progress=False)
    assert_folder(tmp_path / "out" / "step_150", run, 150.0, ["w"])


# ---- combine with weights made by hand ---------------------------------------------------------


def weights_for(run: RunFolder, targets: Sequence[float], row: list[list[float]]) -> Weights:
    trained = [n for n, s in MODEL.items() if s.kind != "integer"]
    return Weights(run.steps, tuple(targets), {n: np.array(row) for n in trained}, {})


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_combine_average_and_latest(run: RunFolder, tmp_path: Path, io: str) -> None:
    rows = [[0.25] * 5, [0.0, 0.0, 0.0, 0.0, 1.0]]
    done = combine(
        run.base, run.checkpoints, weights_for(run, (1, 2), rows), tmp_path / "out",
        io=io, progress=False,
    )  # fmt: skip
    average, latest = (read_model(done.folders[t]) for t in (1.0, 2.0))
    for name in TRAINED:
        base = run.base_tensors[name].values
        values = np.stack([run.step_tensors[s][name].values for s in run.steps])
        out = average[name].dtype
        want = oracle.round_to(base + 0.25 * (values - base).sum(axis=0), out)
        distance = oracle.ulps(average[name].words, want, out)
        assert distance.max(initial=0) <= tolerances.ULP
        assert np.count_nonzero(distance) <= max(1, 1e-4 * want.size)
        newest = run.step_tensors[70][name].words
        assert oracle.ulps(latest[name].words, newest, out).max(initial=0) <= tolerances.ULP
        assert latest[name].words.size == 0 or not np.array_equal(latest[name].words, want)


def test_rows_without_weight_are_not_read(tmp_path: Path) -> None:
    """NaN in them would spoil the sum: 0 × NaN is NaN."""
    run = make_run(tmp_path)
    for step in (10, 20, 35, 40):
        tensors = dict(run.step_tensors[step])
        for name in TRAINED:
            old = tensors[name]
            nan = oracle.round_to(np.full(old.words.size, np.nan), old.dtype)
            tensors[name] = raw(nan, old.dtype, old.shape)
        write_model(run.folder(step), tensors)
    latest = weights_for(run, (70,), [[0.0, 0.0, 0.0, 0.0, 1.0]])
    done = combine(run.base, run.checkpoints, latest, tmp_path / "out", progress=False)
    found = read_model(done.folders[70.0])
    for name in TRAINED:
        newest = run.step_tensors[70][name]
        assert oracle.ulps(found[name].words, newest.words, newest.dtype).max(initial=0) <= 1


def test_zero_weights_write_the_base(run: RunFolder, tmp_path: Path) -> None:
    nothing = weights_for(run, (0,), [[0.0] * 5])
    done = combine(run.base, run.checkpoints, nothing, tmp_path / "out", progress=False)
    found = read_model(done.folders[0.0])
    for name in TRAINED:
        base = run.base_tensors[name]
        assert found[name].data == oracle.round_to(base.values, found[name].dtype).tobytes()


def test_power_scan_serves_extrapolate(run: RunFolder, tmp_path: Path) -> None:
    found = scan(run.base, run.checkpoints, solver="power", rank=1, progress=False)
    done = extrapolate(run.base, run.checkpoints, 100, tmp_path / "out", scan=found, progress=False)
    assert {p.solver for p in done.plan.tensors} == {"none"}
    assert_folder(tmp_path / "out" / "step_100", run, 100.0)


@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("scale", [1e-25, 1e-18, 1e18, 1e25])
def test_deltas_whose_squares_leave_fp32(tmp_path: Path, solver: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    direction, noise = rng.normal(size=3000), rng.normal(0, 0.1, (4, 3000))
    base = np.zeros(3000)
    rows = [oracle.round_to((direction * (t + 1) + noise[t]) * scale, "F32") for t in range(4)]
    write_model(tmp_path / "base", {"w": raw(oracle.round_to(base, "F32"), "F32")})
    for t, row in enumerate(rows):
        write_model(tmp_path / "run" / f"step_{t + 1}", {"w": raw(row, "F32")})
    extrapolate(
        tmp_path / "base", tmp_path / "run", 9, tmp_path / "out", solver=solver, progress=False
    )
    values = [oracle.to_float64(row, "F32") for row in rows]
    answer = oracle.forecast(base, values, [1, 2, 3, 4], [9.0])
    found = read_model(tmp_path / "out" / "step_9")["w"].words
    checked_distance(found, "F32", base, values, answer)
    assert np.abs(answer.theta).max() > scale
