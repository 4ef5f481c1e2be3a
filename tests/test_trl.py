"""A run that TRL's GRPOTrainer really wrote. Unsloth's trainers are this one: the folders too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import oracle
from compare import Tally, checked_distance
from folders import SINGLE, read_model
from relex_ext import extrapolate, list_checkpoints
from relex_ext.steps import discover

TRAIN = Path(__file__).parent / "grpo_run.py"
STEPS = (2, 4, 6)
TARGET = 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grpo")
    done = subprocess.run(
        [sys.executable, str(TRAIN), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_the_weights_are_those_that_were_in_memory(trained: Path) -> None:
    found = discover(trained / "run")
    assert found == {step: trained / "run" / f"checkpoint-{step}" for step in STEPS}
    for step, folder in found.items():
        saved = read_model(folder)
        with np.load(trained / f"seen-{step}.npz") as seen:
            assert set(saved) == set(seen.files)
            for name, tensor in saved.items():
                assert np.array_equal(tensor.words, seen[name].ravel().view(np.uint32)), (
                    step,
                    name,
                )


def test_they_are_listed(trained: Path) -> None:
    listed = list_checkpoints(trained / "run")
    assert [one.step for one in listed] == list(STEPS)
    for one in listed:
        assert one.trainer == "TRL, Hugging Face Trainer, Unsloth"
        assert (one.dtypes, one.tied, one.problem) == (("F32",), True, None)
        with np.load(trained / f"seen-{one.step}.npz") as seen:
            assert one.tensors == len(seen.files)
            assert one.nbytes == sum(seen[name].nbytes for name in seen.files)


def test_its_forecast(trained: Path, tmp_path: Path) -> None:
    done = extrapolate(trained / "base", trained / "run", TARGET, tmp_path / "out", progress=False)
    written = read_model(done.folders[float(TARGET)])
    base = read_model(trained / "base")
    seen = [np.load(trained / f"seen-{step}.npz") for step in STEPS]
    assert set(written) == set(base) == set(seen[0].files)
    tally = Tally()
    for name, tensor in written.items():
        start, rows = base[name].values, [one[name].ravel().astype(np.float64) for one in seen]
        answer = oracle.forecast(start, rows, STEPS, [TARGET])
        tally.add("F32", checked_distance(tensor.words, "F32", start, rows, answer))
        assert not np.array_equal(tensor.values, rows[-1])
    tally.check()


def test_a_checkpoint_that_was_cut_off(trained: Path) -> None:
    place = trained / "run" / "checkpoint-6" / SINGLE
    data = place.read_bytes()
    try:
        place.write_bytes(data[: len(data) // 2])
        problems = [one.problem for one in list_checkpoints(trained / "run")]
    finally:
        place.write_bytes(data)
    assert problems[:2] == [None, None]
    assert "not readable as safetensors" in (problems[2] or "")
