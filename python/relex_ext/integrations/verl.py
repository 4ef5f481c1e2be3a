"""A hook for verl's trainers: records each saved actor, logs what a forecast would be.

Either name a class in the configuration, where verl has checkpoint callbacks (its V1 trainers):

    trainer.checkpoint_callback_class=relex_ext.integrations.verl.RelexCheckpoints

or call :func:`watch_verl` on a trainer before ``trainer.fit()``. Nothing of verl is imported: it is
known by the names of its methods and folders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

from relex_ext.errors import InputError
from relex_ext.integrations.recorder import Failures, Recorder
from relex_ext.integrations.watch import Watch
from relex_ext.steps import PathLike

LOG = logging.getLogger("relex_ext")

ASYNC_PATIENCE = 600.0
"""Seconds within which a checkpoint is complete that is written while training goes on."""

CONTENTS = "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]"


class Tracker(Protocol):
    """What verl's ``Tracking`` offers."""

    def log(self, data: dict[str, float], step: int) -> None: ...


class VerlRecorder:
    """Records the actor's Hugging Face weights of each step that the trainer saves."""

    def __init__(
        self,
        base: PathLike,
        run: PathLike,
        *,
        target: float | None = None,
        background: bool = True,
        strict: bool = False,
        **machine: Any,
    ) -> None:
        """``base``: the model that training starts from; ``run``: verl's ``default_local_dir``; the
        rest: see :class:`relex_ext.integrations.trl.RelexCallback`."""
        self._failures = Failures(strict)
        self._run = Path(run)
        self._recorder: Recorder | None = None
        with self._failures.caught():
            watch = Watch(base, run, **machine)
            self._recorder = Recorder(
                watch, self._failures, background=background, target=target,
                patience=ASYNC_PATIENCE,
            )  # fmt: skip

    @property
    def watch(self) -> Watch:
        """The run's.

        Raises:
            InputError: there is none: the base or the scan's file is no good.
        """
        if self._recorder is None:
            raise InputError("relex: expected a run that is being recorded, found none")
        return self._recorder.watch

    def join(self) -> None:
        """All that was saved is recorded."""
        if self._recorder is not None:
            self._recorder.join()

    def saved(self, step: int, folder: Path, tracker: Tracker | None, written: bool = True) -> None:
        """``folder``: ``global_step_N``; ``written``: all of it, not on other threads still.

        What is logged now is of earlier steps while this one is being recorded.
        """
        if self._recorder is None:
            return
        with self._failures.caught():
            if written:
                self._check_weights(folder)
            if step <= max(self.watch.steps, default=0):  # resumed from before it
                self._recorder.join()
                self.watch.rewind(step - 1)
            self._recorder.saved(step, folder)
        for standing in self._recorder.take():
            if tracker is not None:
                tracker.log(standing.logs(), step)

    def _check_weights(self, folder: Path) -> None:
        actor = folder / "actor"
        if not any(actor.rglob("*.safetensors")):
            raise InputError(
                f"{actor}: expected weights in huggingface/, found none; have verl save them: "
                f"{CONTENTS}"
            )


class RelexCheckpoints:
    """verl's ``CheckpointCallback``. The base is ``actor_rollout_ref.model.path``, which has to be
    a local folder."""

    def __init__(self, config: Any = None, **options: Any) -> None:
        """``config``: the trainer's; ``options``: :class:`VerlRecorder`'s."""
        model, run = config.actor_rollout_ref.model.path, config.trainer.default_local_dir
        self.recorder = VerlRecorder(model, run, **options)

    def on_save(
        self,
        trainer: Any,
        global_step: int,
        checkpoint_dir: str,
        async_save: bool = False,
        **_: Any,
    ) -> None:
        tracker = getattr(trainer, "logger", None)
        self.recorder.saved(global_step, Path(checkpoint_dir), tracker, written=not async_save)


def watch_verl(
    trainer: Any, base: PathLike | None = None, *, tracker: Tracker | None = None, **options: Any
) -> VerlRecorder:
    """Have a ``RayPPOTrainer`` record each checkpoint after its ``_save_checkpoint``.

    Args:
        trainer: before its ``fit()``.
        base: the model that training starts from; by default the trainer's own, which has to be a
            local folder.
        tracker: whose ``log(data, step)`` is called: by default the trainer's ``logger``, where it
            has one. (RayPPOTrainer keeps its Tracking to itself: then Python's logging has it.)
        options: :class:`VerlRecorder`'s.
    """
    config = trainer.config
    recorder = VerlRecorder(
        base or config.actor_rollout_ref.model.path, config.trainer.default_local_dir, **options
    )
    save: Callable[..., Any] = trainer._save_checkpoint

    @wraps(save)
    def save_and_record(*args: Any, **kwargs: Any) -> Any:
        done = save(*args, **kwargs)
        step = int(trainer.global_steps)
        folder = Path(config.trainer.default_local_dir) / f"global_step_{step}"
        found = tracker if tracker is not None else getattr(trainer, "logger", None)
        recorder.saved(step, folder, found)
        return done

    trainer._save_checkpoint = save_and_record
    return recorder
