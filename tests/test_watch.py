"""A run watched while it trains: the scan that grows, and what it does when the run changes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import folders
import tolerances
from logs import warnings_in
from oracle import Float64
from relex_ext import InputError, Scan, cli, extrapolate, judge, scan
from relex_ext.integrations import growing
from relex_ext.integrations.standing import furthest, standing_of
from relex_ext.integrations.watch import Watch

STEPS = (10, 20, 35, 40, 70)


@pytest.fixture
def run(tmp_path: Path) -> folders.RunFolder:
    return folders.make_run(tmp_path, STEPS)


def watch_of(run: folders.RunFolder, steps: Sequence[int] = ()) -> Watch:
    watch = Watch(run.base, run.checkpoints, threads=1)
    for step in steps:
        watch.add(step, run.folder(step))
    return watch


def float64_gram(run: folders.RunFolder, name: str, steps: Sequence[int]) -> Float64:
    base = run.base_tensors[name].values
    deltas = np.array([run.step_tensors[step][name].values - base for step in steps])
    return deltas @ deltas.T


def check_grams(found: Scan, run: folders.RunFolder, steps: Sequence[int]) -> None:
    assert found.steps == tuple(steps)
    for name, gram in found.grams.items():
        expected = float64_gram(run, name, steps)
        sizes = np.sqrt(np.diag(expected))
        assert np.array_equal(gram, gram.T), name
        assert np.all(np.abs(gram - expected) <= tolerances.GRAM * np.outer(sizes, sizes)), name


def drifting(root: Path, steps: Sequence[int]) -> folders.RunFolder:
    """A run so straight that forecasts are a go."""
    model = {"model.a": folders.Spec((64, 32)), "model.b": folders.Spec((48,), "F32", ("F32",))}
    return folders.make_run(root, steps, model, noise=2.0, step_size=1e-4)


# ---- the Gram matrix ---------------------------------------------------------------------------


def test_grown_row_by_row_it_is_the_float64_gram(run: folders.RunFolder) -> None:
    watch = watch_of(run)
    for i, step in enumerate(STEPS):
        watch.add(step, run.folder(step))
        assert watch.scan is not None
        check_grams(watch.scan, run, STEPS[: i + 1])
    fresh = scan(run.base, run.checkpoints, progress=False)
    assert watch.scan.identities == fresh.identities
    assert watch.scan.elements == fresh.elements
    for name, gram in fresh.grams.items():
        assert np.allclose(watch.scan.grams[name], gram, rtol=1e-6, atol=0.0), name


def test_a_tensor_that_does_not_fit_memory_grows_the_same(run: folders.RunFolder) -> None:
    """Windows that are read and let go, one after the other, instead of all kept."""
    whole, windows = (
        watch_of(run, STEPS),
        Watch(
            run.base,
            run.checkpoints,
            file=run.base.parent / "other",
            threads=1,
            memory_limit="2MiB",
        ),
    )
    for step in STEPS:
        windows.add(step, run.folder(step))
    assert whole.scan is not None and windows.scan is not None
    for name, gram in whole.scan.grams.items():
        assert np.array_equal(windows.scan.grams[name], gram), name


@pytest.mark.parametrize("scale", [1e-24, 1e16])
def test_deltas_whose_squares_leave_float32(tmp_path: Path, scale: float) -> None:
    run = folders.make_run(
        tmp_path, STEPS, {"w": folders.Spec((40, 30), "F32", ("F32",))}, step_size=scale
    )
    zeros = {"w": folders.raw(np.zeros((40, 30), np.uint32), "F32")}
    run.base_tensors |= zeros
    folders.write_model(run.base, zeros)
    for step in STEPS:
        values = np.random.default_rng(step).normal(0, scale, (40, 30)).astype(np.float32)
        run.step_tensors[step]["w"] = folders.raw(values.view(np.uint32), "F32")
        folders.write_model(run.folder(step), run.step_tensors[step])
    watch = watch_of(run, STEPS)
    assert watch.scan is not None
    check_grams(watch.scan, run, STEPS)


def test_many_at_once_are_one_scan_bit_for_bit(run: folders.RunFolder) -> None:
    watch = watch_of(run)
    assert watch.catch_up() == STEPS
    fresh = scan(run.base, run.checkpoints, progress=False)
    assert watch.scan is not None
    for name, gram in fresh.grams.items():
        assert np.array_equal(watch.scan.grams[name], gram), name


def test_several_new_rows_are_computed_together(run: folders.RunFolder) -> None:
    watch = watch_of(run, STEPS[:2])
    watch.add_all({step: run.folder(step) for step in STEPS[2:]})
    assert watch.scan is not None
    check_grams(watch.scan, run, STEPS)


def test_a_new_row_takes_one_pass(run: folders.RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only G's new column is computed: a Gram matrix would be another plan."""
    watch = watch_of(run, STEPS[:-1])
    monkeypatch.setattr(growing, "_scan_all", None)
    watch.add(STEPS[-1], run.folder(STEPS[-1]))
    assert watch.steps == STEPS


def test_not_finite(run: folders.RunFolder) -> None:
    watch = watch_of(run, STEPS[:4])
    tensors = dict(run.step_tensors[70])
    name = "model.layers.0.norm.bias"
    words = tensors[name].words.copy()
    words[5] = 0x7C00
    tensors[name] = folders.raw(words, "F16")
    folders.write_model(run.folder(70), tensors)
    with pytest.raises(InputError, match=rf"tensor {name}: 1 NaN or Inf in step 70"):
        watch.add(70, run.folder(70))
    assert watch.steps == STEPS[:4]


# ---- the file ----------------------------------------------------------------------------------


def test_the_file_answers_for_extrapolate(run: folders.RunFolder, tmp_path: Path) -> None:
    watch = watch_of(run, STEPS)
    assert watch.scan is not None
    assert watch.file == run.checkpoints / "relex" / "scan.safetensors"
    loaded = Scan.load(watch.file)
    assert {n: g.tolist() for n, g in loaded.grams.items()} == {
        n: g.tolist() for n, g in watch.scan.grams.items()
    }
    given = extrapolate(
        run.base, run.checkpoints, 100, tmp_path / "given", scan=watch.file, progress=False
    )
    made = watch.forecast(100, tmp_path / "made")
    fresh = extrapolate(run.base, run.checkpoints, 100, tmp_path / "fresh", progress=False)
    assert folders.model_digest(made.folders[100.0]) == folders.model_digest(given.folders[100.0])
    assert made.weights is not None and fresh.weights is not None
    for name, weights in fresh.weights.tensors.items():
        assert np.allclose(made.weights.tensors[name], weights, rtol=1e-5, atol=1e-7), name


def test_it_goes_on_where_it_ended(run: folders.RunFolder) -> None:
    watch_of(run, STEPS[:3])
    again = watch_of(run)
    assert again.steps == STEPS[:3]
    again.add(40, run.folder(40))
    again.add(70, run.folder(70))
    assert again.scan is not None
    check_grams(again.scan, run, STEPS)


def test_a_file_of_another_base_is_refused(run: folders.RunFolder, tmp_path: Path) -> None:
    watch = watch_of(run, STEPS)
    other = folders.make_run(tmp_path / "other", STEPS, seed=1)
    with pytest.raises(InputError, match="made from another base"):
        Watch(other.base, run.checkpoints, file=watch.file)
    with pytest.raises(InputError, match="expected a scan file"):
        Watch(run.base, run.checkpoints, file=run.folder(10) / "model.safetensors")


# ---- runs that change --------------------------------------------------------------------------


def test_a_step_twice_is_recorded_once(run: folders.RunFolder) -> None:
    watch = watch_of(run, STEPS)
    before = folders.digest(watch.file.parent)
    watch.add(35, run.folder(35))
    assert watch.steps == STEPS
    assert folders.digest(watch.file.parent) == before


def test_a_step_with_other_files_and_one_out_of_order(run: folders.RunFolder) -> None:
    watch = watch_of(run, (10, 35, 40))
    with pytest.raises(InputError, match=r"expected a step after 40, found 20; .*rewind\(19\)"):
        watch.add(20, run.folder(20))
    os.utime(run.folder(40) / "model.safetensors", ns=(0, 0))
    with pytest.raises(InputError, match=r"step 40 was recorded with other files; .*rewind\(39\)"):
        watch.add(40, run.folder(40))
    with pytest.raises(InputError, match="scan: step 40 has other files now"):
        watch.add(70, run.folder(70))
    watch.rewind(19)
    assert watch.steps == (10,)
    for step in STEPS[1:]:
        watch.add(step, run.folder(step))
    assert watch.scan is not None
    check_grams(watch.scan, run, STEPS)


def test_deleted_checkpoints_are_left_out(
    run: folders.RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    watch = watch_of(run, STEPS[:4])
    for step in (10, 20):
        shutil.rmtree(run.folder(step))
    with caplog.at_level(logging.WARNING, "relex_ext"):
        watch.add(70, run.folder(70))
    (line,) = warnings_in(caplog)
    assert "the checkpoints of steps 10, 20 are gone" in line and "save_total_limit" in line
    assert watch.scan is not None
    check_grams(watch.scan, run, (35, 40, 70))
    check_grams(Scan.load(watch.file), run, (35, 40, 70))


def test_deleted_before_it_was_resumed(
    run: folders.RunFolder, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    watch_of(run, STEPS[:4])
    shutil.rmtree(run.folder(20))
    again = watch_of(run)
    assert again.steps == STEPS[:4]  # their rows are still known
    with pytest.raises(InputError, match="the checkpoints of steps 20 are gone"):
        again.forecast(100, tmp_path / "out")
    with caplog.at_level(logging.WARNING, "relex_ext"):
        again.add(70, run.folder(70))
    assert again.scan is not None
    check_grams(again.scan, run, (10, 35, 40, 70))


def test_a_checkpoint_that_is_being_written_waits(run: folders.RunFolder) -> None:
    path = run.folder(40) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    watch = watch_of(run)
    assert watch.catch_up() == STEPS[:3]
    path.write_bytes(whole)
    assert watch.catch_up() == (40, 70)
    assert watch.catch_up() == ()


# ---- what it says ------------------------------------------------------------------------------


def test_verdict_and_reach_are_those_of_a_fresh_scan(tmp_path: Path) -> None:
    run = drifting(tmp_path, range(2, 42, 2))
    watch = watch_of(run, run.steps)
    fresh = scan(run.base, run.checkpoints, progress=False)
    reach = watch.reach()
    assert reach is not None and reach > 41
    assert reach == furthest(fresh)
    assert judge(fresh, reach).decision == "go"
    assert judge(fresh, reach + 1).decision != "go"
    assert watch.verdict(reach + 1).decision == judge(fresh, reach + 1).decision
    logs = watch.standing().logs()
    total = sum(float64_gram(run, name, run.steps) for name in run.base_tensors)
    values, vectors = np.linalg.eigh(total)
    assert logs["relex/ev"] == pytest.approx(values[-1] / values.sum(), rel=1e-6)
    fit = np.corrcoef(run.steps, vectors[:, -1])[0, 1] ** 2
    assert logs["relex/r2"] == pytest.approx(fit, rel=1e-6)
    updates = np.diff(np.pad(total, ((1, 0), (1, 0))), axis=0)
    updates = np.diff(updates, axis=1)
    straightness = updates.sum() / np.trace(updates)
    assert logs["relex/straightness"] == pytest.approx(straightness, rel=1e-5)
    assert (logs["relex/reach"], logs["relex/verdict_go"]) == (reach, 1.0)
    assert watch.standing(reach + 1).logs()["relex/verdict_go"] == 0.0


def test_a_phase_counts_from_its_own_base(tmp_path: Path) -> None:
    """The same run, once from step 0 and once as a phase that begins at step 100."""
    run = drifting(tmp_path, range(2, 42, 2))
    plain = watch_of(run, run.steps)
    moved = Watch(run.base, run.checkpoints, file=tmp_path / "phase.scan", after=100, threads=1)
    for step in run.steps:
        moved.add(100 + step, run.folder(step))
    assert moved.steps == tuple(100 + step for step in run.steps)
    there, here = moved.standing(160), plain.standing(60)
    assert there.reach is not None and here.reach is not None
    assert (there.step, there.reach) == (here.step + 100, here.reach + 100)
    assert there.verdict is not None and here.verdict is not None
    assert there.verdict.target == 160
    assert there.verdict.reasons == here.verdict.reasons
    assert there.verdict.horizon == pytest.approx(here.verdict.horizon + 100)
    far = (moved.verdict(900).sentence, plain.verdict(800).sentence)
    assert far[0] != far[1] and "step 1" in far[0]
    made = moved.forecast(160, tmp_path / "moved").folders[60.0]
    assert folders.model_digest(made) == folders.model_digest(
        plain.forecast(60, tmp_path / "plain").folders[60.0]
    )


def test_too_few_to_say(run: folders.RunFolder) -> None:
    watch = watch_of(run)
    with pytest.raises(InputError, match="no checkpoint recorded yet"):
        watch.standing()
    watch.add(10, run.folder(10))
    assert watch.standing().logs() == {
        "relex/step": 10.0, "relex/ev": 1.0, "relex/verdict_go": 0.0, "relex/reach": 10.0
    }  # fmt: skip
    watch.add(20, run.folder(20))
    found = watch.standing()
    assert found.reach is None and found.straightness is None
    assert "2 checkpoints are too few" in str(found)


def test_a_scan_without_drift_has_no_reach(tmp_path: Path) -> None:
    run = folders.make_run(
        tmp_path, range(1, 21), {"w": folders.Spec((64, 64), "F32", ("F32",))}, step_size=0.0
    )
    rng = np.random.default_rng(3)
    values = run.base_tensors["w"].values.astype(np.float32)
    for step in run.steps:
        values = values + rng.normal(0, 1e-4, values.shape).astype(np.float32)
        run.step_tensors[step]["w"] = folders.raw(values.view(np.uint32), "F32", (64, 64))
        folders.write_model(run.folder(step), run.step_tensors[step])
    found = standing_of(scan(run.base, run.checkpoints, progress=False))
    assert found.reach is None and not found.go
    assert "wander like a random walk" in str(found)


def test_steps_saved_again_are_recorded_again(
    run: folders.RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    watch = watch_of(run, STEPS[:4])
    shutil.move(run.folder(70), run.base.parent / "kept")
    other = folders.make_run(run.base.parent / "other", STEPS, seed=1)
    for name, tensor in run.base_tensors.items():  # another branch, from the same base
        if tensor.dtype == "BF16" and tensor.data:
            run.step_tensors[40][name] = other.step_tensors[40][name]
    folders.write_model(run.folder(40), run.step_tensors[40], companions=folders.COMPANIONS)
    assert watch.catch_up() == ()
    shutil.move(run.base.parent / "kept", run.folder(70))
    with caplog.at_level(logging.WARNING, "relex_ext"):
        assert watch.catch_up() == (40, 70)
    assert warnings_in(caplog) == ["step 40 was saved again: recorded anew from there on"]
    assert watch.scan is not None
    check_grams(watch.scan, run, STEPS)


# ---- relex watch -------------------------------------------------------------------------------


def test_command_once(run: folders.RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["watch", str(run.checkpoints), "--base", str(run.base), "--once"]
    assert cli.main([*inputs, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    fresh = standing_of(scan(run.base, run.checkpoints, progress=False))
    assert printed == pytest.approx(fresh.logs(), rel=1e-9)
    shutil.rmtree(run.folder(10))
    folders.make_run(run.base.parent / "more", (*STEPS, 80))
    shutil.move(run.base.parent / "more" / "run" / "checkpoint-80", run.folder(80))
    assert cli.main(inputs) == 0
    out, err = capsys.readouterr()
    assert out.startswith(
        "step 80, 5 checkpoints: a forecast reaches no step ahead; step 81: no-go"
    )
    assert "relex: " in err and "the checkpoints of steps 10 are gone" in err


def test_command_errors(run: folders.RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = run.base.parent / "nowhere"
    assert cli.main(["watch", str(nowhere), "--base", str(run.base)]) == 2
    assert "expected a folder of checkpoints, found no folder" in capsys.readouterr().err
    nowhere.mkdir()
    assert cli.main(["watch", str(nowhere), "--base", str(run.base), "--once"]) == 2
    assert "no checkpoint recorded yet" in capsys.readouterr().err


def test_command_goes_on_until_interrupted(run: folders.RunFolder) -> None:
    shutil.move(run.folder(70), run.base.parent / "kept")
    command = [sys.executable, "-m", "relex_ext", "watch", str(run.checkpoints), "--every", "0.05"]
    with subprocess.Popen(
        [*command, "--base", str(run.base)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline().startswith("step 40, 4 checkpoints: ")
        shutil.move(run.base.parent / "kept", run.folder(70))
        assert child.stdout.readline().startswith("step 70, 5 checkpoints: ")
        child.send_signal(signal.SIGINT)
        assert child.wait() == 130
        assert child.stderr.read().endswith(
            f"relex: interrupted; the scan of 5 steps is in {run.checkpoints}/relex/"
            "scan.safetensors\n"
        )
