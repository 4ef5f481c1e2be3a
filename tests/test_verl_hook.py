"""The hook for verl, on a trainer with verl's method names that writes verl's folders.

verl itself is not installed: names and layout are those of verl 0.9.1, RayPPOTrainer's
``_save_checkpoint`` and the V1 trainers' checkpoint callback.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import folders
from logs import warnings_in
from relex_ext import InputError, scan
from relex_ext.integrations.standing import standing_of
from relex_ext.integrations.verl import RelexCheckpoints, VerlRecorder, watch_verl


class Tracking:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log(self, data: dict[str, float], step: int) -> None:
        self.lines.append((step, data))


class Trainer:
    """Saves checkpoints as RayPPOTrainer does: ``global_step_N/actor/huggingface``, ``data.pt``,
    and last ``latest_checkpointed_iteration.txt``."""

    def __init__(self, run: folders.RunFolder, hf_model: bool = True) -> None:
        self.made = run
        self.hf_model = hf_model
        self.run = run.checkpoints.parent / "verl"
        self.config = SimpleNamespace(
            trainer=SimpleNamespace(default_local_dir=str(self.run)),
            actor_rollout_ref=SimpleNamespace(model=SimpleNamespace(path=str(run.base))),
        )
        self.global_steps = 0
        self.saves = 0

    def _save_checkpoint(self) -> None:
        folder = self.run / f"global_step_{self.global_steps}"
        actor = folder / "actor" / "huggingface"
        actor.mkdir(parents=True, exist_ok=True)
        for path in self.made.folder(self.global_steps).iterdir():
            if self.hf_model or path.suffix != ".safetensors":
                shutil.copy(path, actor)
        (folder / "actor" / "model_world_size_1_rank_0.pt").write_bytes(b"state")
        (folder / "data.pt").write_bytes(b"state")
        (self.run / "latest_checkpointed_iteration.txt").write_text(str(self.global_steps))
        self.saves += 1

    def fit(self, *steps: int) -> None:
        for self.global_steps in steps:
            self._save_checkpoint()


@pytest.fixture
def run(tmp_path: Path) -> folders.RunFolder:
    return folders.make_run(tmp_path, (10, 20, 30))


def fresh(trainer: Trainer, until: int) -> dict[str, float]:
    made = scan(trainer.made.base, trainer.run, until=until, progress=False)
    return standing_of(made).logs()


def test_every_save_is_recorded_and_logged(run: folders.RunFolder) -> None:
    trainer, tracking = Trainer(run), Tracking()
    recorder = watch_verl(trainer, tracker=tracking, background=False, strict=True, threads=1)
    trainer.fit(10, 20, 30)
    assert trainer.saves == 3
    assert recorder.watch.steps == (10, 20, 30)
    assert [step for step, _ in tracking.lines] == [10, 20, 30]
    for step, data in tracking.lines:
        expected = fresh(trainer, step) if step > 10 else {"relex/step": 10.0, "relex/ev": 1.0}
        assert {name: data[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_in_the_background_lines_come_with_a_later_save(run: folders.RunFolder) -> None:
    trainer = Trainer(run)
    trainer.logger = Tracking()  # where V1 trainers have it
    recorder = watch_verl(trainer, run.base, strict=True, threads=1)
    trainer.fit(10)
    recorder.join()
    trainer.fit(20)
    recorder.join()
    trainer.fit(30)
    recorder.join()
    assert recorder.watch.steps == (10, 20, 30)
    lines = trainer.logger.lines  # one that is done while the trainer saves comes at once
    assert [data["relex/step"] for _, data in lines][:2] == [10.0, 20.0]
    assert all(data["relex/step"] in (step, step - 10.0) for step, data in lines)


def test_a_checkpoint_callback(run: folders.RunFolder) -> None:
    trainer = Trainer(run)
    trainer.logger = Tracking()
    callback = RelexCheckpoints(config=trainer.config)
    trainer.fit(10, 20)
    for step in (10, 20):
        where = str(trainer.run / f"global_step_{step}")
        callback.on_save(trainer=trainer, global_step=step, checkpoint_dir=where, more=1)
        callback.recorder.join()
    assert callback.recorder.watch.steps == (10, 20)


def test_without_weights_it_says_how_to_save_them(
    run: folders.RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(run, hf_model=False)
    with caplog.at_level(logging.WARNING, "relex_ext"):
        recorder = watch_verl(trainer, threads=1)
        trainer.fit(10)
    (line,) = warnings_in(caplog)
    assert "global_step_10/actor: expected weights in huggingface/, found none" in line
    assert "save_contents=[model,optimizer,extra,hf_model]" in line
    assert recorder.watch.steps == ()
    strict = Trainer(run, hf_model=False)
    watch_verl(strict, strict=True, threads=1)
    with pytest.raises(InputError, match="hf_model"):
        strict.fit(10)


def test_resumed_from_an_earlier_step(run: folders.RunFolder) -> None:
    trainer = Trainer(run)
    recorder = watch_verl(trainer, background=False, strict=True, threads=1)
    trainer.fit(10, 20, 30)
    trainer.fit(20)  # the same files with new times: as after a resume from step 10
    assert recorder.watch.steps == (10, 20)
    trainer.fit(30)
    assert recorder.watch.steps == (10, 20, 30)


def test_a_base_that_is_no_folder(run: folders.RunFolder, tmp_path: Path) -> None:
    trainer: Any = Trainer(run)
    trainer.config.actor_rollout_ref.model.path = "Qwen/Qwen2.5-0.5B"
    recorder = watch_verl(trainer, threads=1)
    trainer.fit(10)
    assert trainer.saves == 1
    with pytest.raises(InputError, match="expected a run that is being recorded"):
        _ = recorder.watch
    with pytest.raises(InputError, match="expected a model folder, found no folder"):
        VerlRecorder("Qwen/Qwen2.5-0.5B", tmp_path, strict=True)
