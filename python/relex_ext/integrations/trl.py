"""A callback for TRL's trainers and transformers': says while training what a forecast would be."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, extract_model_from_parallel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from relex_ext.errors import InputError
from relex_ext.integrations.grounds import Phase, Reground, load_in_place, note_phases, read_phases
from relex_ext.integrations.recorder import Failures, Recorder
from relex_ext.integrations.standing import Standing
from relex_ext.integrations.watch import FOLDER, Watch
from relex_ext.job import Extrapolation
from relex_ext.layout import make_folder, remove_tree
from relex_ext.output import SCAN
from relex_ext.steps import PathLike

LOG = logging.getLogger("relex_ext")

INITIAL = "initial"
"""The base is what the model is when training begins."""

STATE, BASE = "state.json", "base"

SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)
"""Where a process does not hold the whole model."""


class RelexCallback(TrainerCallback):
    """Records every checkpoint that the trainer saves, and logs what the run's scan says of it:
    ``relex/ev``, ``relex/r2``, ``relex/straightness``, ``relex/verdict_go``, ``relex/reach``.

    An error of ours never ends a training run: it is one line of the log (logger ``relex_ext``) and
    ``relex/errors`` in the trainer's, unless ``strict``. All is kept in ``output_dir/relex``, where
    a run that is resumed finds it.
    """

    def __init__(
        self,
        base: PathLike = INITIAL,
        *,
        trainer: Trainer | None = None,
        target: float | None = None,
        forecast_at_end: Iterable[float] | float = (),
        reground: Reground | None = None,
        background: bool = True,
        strict: bool = False,
        **machine: Any,
    ) -> None:
        """
        Args:
            base: the model folder that training starts from, or ``"initial"``: the callback saves
                the model when training begins.
            trainer: whose logger is written to. It may be set later, as ``callback.trainer``, and
                without one the lines are logged by Python's logging alone.
            target: the step that ``relex/verdict_go`` is about; by default it says whether there is
                any step that can be forecast.
            forecast_at_end: steps to forecast when training ends, into ``relex/forecast``.
            reground: train, jump to the forecast, train on.
            background: record on a thread of its own, while training goes on.
            strict: raise errors.
            machine: options of :class:`~relex_ext.integrations.watch.Watch`: ``threads``,
                ``memory_limit``, ….
        """
        self.trainer = trainer
        self._base = base
        self._target = target
        ends = [forecast_at_end] if isinstance(forecast_at_end, (int, float)) else forecast_at_end
        self._at_end = tuple(ends)
        self._reground = reground
        self._background = background
        self._failures = Failures(strict)
        self._machine = machine
        self._folder = Path()
        self._phases: list[Phase] = []
        self._recorder: Recorder | None = None
        self._ended: list[Standing] = []
        """What the recorder of a phase that is over has left to be logged."""
        self._reported = 0

    @property
    def watch(self) -> Watch:
        """The run's, once training has begun.

        Raises:
            InputError: before that, or where nothing can be recorded.
        """
        if self._recorder is None:
            raise InputError("relex: expected a run that is being recorded, found none")
        return self._recorder.watch

    def forecast(
        self, targets: Iterable[float] | float, out: PathLike | None = None, **options: Any
    ) -> Extrapolation:
        """Write the forecast of a step, or several, from what has been saved so far.

        ``out``: ``output_dir/relex/forecast`` by default, where it replaces an earlier one;
        ``options``: :func:`relex_ext.extrapolate`'s. Raises its errors, strict or not.
        """
        watch = self.watch
        if self._recorder is not None:
            self._recorder.join()
        if out is None:
            out, options = self._folder / "forecast", {"overwrite": True, **options}
        return watch.forecast(targets, out, **options)

    # ---- events --------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        with self._failures.caught():
            self._begin(args, state.global_step, kwargs)
        self._log()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or self._recorder is None:
            return
        step = state.global_step
        with self._failures.caught():
            self._recorder.saved(step, Path(args.output_dir or ".") / f"checkpoint-{step}")
            if self._reground is not None and step % self._reground.every == 0:
                self._jump(self._reground, args, step, kwargs)
        self._log()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._log()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._recorder is None:
            return
        with self._failures.caught():
            self._recorder.close()
            if self._at_end:
                made = self.forecast(self._at_end)
                LOG.info("forecasts are in %s", made.out)
        self._log()

    # ---- what they do --------------------------------------------------------------------------

    def _begin(self, args: TrainingArguments, step: int, given: dict[str, Any]) -> None:
        """``step``: 0, or where training is resumed."""
        self._recorder = None
        model = extract_model_from_parallel(given["model"])
        if hasattr(model, "peft_config"):
            raise InputError(
                "RelexCallback: expected training of full weights, found an adapter (peft): such a "
                "run is not recorded; relex extrapolate reads saved adapters"
            )
        self._check_reground(args)
        self._folder = Path(args.output_dir or ".") / FOLDER
        if step == 0:
            self._forget()
        self._phases = [p for p in read_phases(self._folder / STATE) if p.after <= step]
        if not self._phases:
            base = self._initial(step, model, given) if self._base == INITIAL else Path(self._base)
            self._phases = [Phase(0, str(base.absolute()))]
        phase = self._phases[-1]
        if phase.after == step and step > 0:  # the checkpoint was saved before the jump
            self._land(phase, model, given)
        note_phases(self._folder / STATE, self._phases)
        self._start(args, phase, step)

    def _start(self, args: TrainingArguments, phase: Phase, step: int) -> None:
        """Record what follows ``phase.after``, some of which has been recorded before ``step``."""
        watch = Watch(
            self._folder / phase.base, args.output_dir or ".", after=phase.after,
            file=self._folder / (f"scan-after-{phase.after}.safetensors" if phase.after else SCAN),
            **self._machine,
        )  # fmt: skip
        watch.rewind(step)
        self._recorder = Recorder(
            watch, self._failures, background=self._background, target=self._target
        )
        if step > phase.after:
            self._recorder.catch_up(step)

    def _forget(self) -> None:
        """What a run before this one has left in the folder, but for its forecasts."""
        make_folder(self._folder)
        (self._folder / STATE).unlink(missing_ok=True)
        for scan in self._folder.glob("scan*.safetensors"):
            scan.unlink()

    def _initial(self, step: int, model: Any, given: dict[str, Any]) -> Path:
        base = self._folder / BASE
        if step > 0:
            raise InputError(
                f"RelexCallback: training is resumed at step {step} and {base} has not been saved "
                "when it began; give base, the model folder it started from"
            )
        if AcceleratorState().distributed_type in SHARDED:
            raise InputError(
                'RelexCallback: base "initial" cannot be saved of a sharded model; give base, the '
                "model folder it started from"
            )
        if base.exists():
            remove_tree(base)
        model.save_pretrained(base)
        if given.get("processing_class") is not None:
            given["processing_class"].save_pretrained(base)
        return base

    def _check_reground(self, args: TrainingArguments) -> None:
        if self._reground is None:
            return
        kind = AcceleratorState().distributed_type
        if kind in SHARDED or args.world_size > 1:
            self._reground = None
            LOG.warning(
                "relex: reground: expected one process that holds the whole model, found %s with "
                "%d: training goes on without jumps", kind.value, args.world_size,
            )  # fmt: skip

    def _jump(
        self, reground: Reground, args: TrainingArguments, step: int, given: dict[str, Any]
    ) -> None:
        """The phase ends with the checkpoint just saved, if its forecast is worth it."""
        assert self._recorder is not None
        self._recorder.join()
        watch, target = self._recorder.watch, step + reground.jump
        if max(watch.steps, default=0) != step or len(watch.steps) < 2:
            return
        verdict = watch.verdict(target)
        if reground.only_if_go and verdict.decision != "go":
            LOG.info("step %d: no jump to step %d: %s", step, target, verdict.sentence)
            return
        made = watch.forecast(target, self._folder / f"reground-{step}", overwrite=True)
        (folder,) = made.folders.values()
        phase = Phase(step, str(folder.relative_to(self._folder)), reground.optimizer == "reset")
        # First: a run that is killed while it lands does so again when it is resumed.
        note_phases(self._folder / STATE, [*self._phases, phase])
        try:
            self._land(phase, extract_model_from_parallel(given["model"]), given)
        except InputError:
            note_phases(self._folder / STATE, self._phases)
            raise
        self._phases.append(phase)
        LOG.info("step %d: the weights are the forecast of step %d now", step, target)
        self._recorder.close()
        self._ended += self._recorder.take()
        self._recorder = None
        self._start(args, phase, step)

    def _land(self, phase: Phase, model: Any, given: dict[str, Any]) -> None:
        load_in_place(model, self._folder / phase.base)
        if phase.reset and given.get("optimizer") is not None:
            given["optimizer"].state.clear()

    def _log(self) -> None:
        """On the trainer's thread: what was found since the last time."""
        found, self._ended = self._ended, []
        if self._recorder is not None:
            found += self._recorder.take()
        values = [standing.logs() for standing in found]
        if self._failures.count > self._reported:
            self._reported = self._failures.count
            values.append({"relex/errors": float(self._reported)})
        if self.trainer is not None:
            for one in values:
                # Not the trainer's own: TRL's empty the averages of their metrics at every call.
                Trainer.log(self.trainer, one)
