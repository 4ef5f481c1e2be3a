"""RelexCallback in trainers that really train: a tiny Qwen2 by transformers, and by TRL's GRPO."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import relex_ext
import tiny
from logs import warnings_in
from relex_ext import InputError, Scan, scan
from relex_ext.integrations.standing import standing_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these warn about on import is not ours
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from relex_ext.integrations.grounds import Reground, read_phases
    from relex_ext.integrations.trl import RelexCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # nor what they warn about while they train

VOCABULARY = 29


def model() -> Any:
    return tiny.qwen2(VOCABULARY)


def rows(count: int = 64) -> list[dict[str, torch.Tensor]]:
    """Counting upwards: something to learn, so that the weights drift. One at a time, by plain SGD,
    twenty steps are a drift that stands out of its noise."""
    found = []
    for start in range(count):
        ids = (torch.arange(8) + start) % VOCABULARY
        found.append({"input_ids": ids, "labels": ids})
    return found


def trainer_of(out: Path, callback: Any, steps: int = 5, trained: Any = None, **args: Any) -> Any:
    trainer = transformers.Trainer(
        model=trained or model(),
        args=transformers.TrainingArguments(
            output_dir=str(out), max_steps=steps, save_steps=1, logging_steps=1, use_cpu=True,
            per_device_train_batch_size=1, learning_rate=1e-2, lr_scheduler_type="constant",
            report_to="none", disable_tqdm=True, seed=1, **{"optim": "sgd", **args},
        ),
        train_dataset=rows(),
        callbacks=[callback],
    )  # fmt: skip
    callback.trainer = trainer
    return trainer


def logged(trainer: Any) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name.startswith("relex/")}
        for line in trainer.state.log_history
        if any(name.startswith("relex/") for name in line)
    ]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict())


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("background", [True, False])
def test_what_is_logged_is_what_a_fresh_scan_says(tmp_path: Path, background: bool) -> None:
    callback = RelexCallback(background=background, strict=True, threads=1)
    trainer = trainer_of(tmp_path, callback)
    trainer.train()
    base = tmp_path / "relex" / "base"
    assert same(weights_of(base), dict(model().state_dict()))
    lines = logged(trainer)
    assert [line["relex/step"] for line in lines] == [1, 2, 3, 4, 5]
    for step in (2, 5):
        fresh = standing_of(scan(base, tmp_path, until=step, progress=False))
        assert lines[step - 1] == pytest.approx(fresh.logs(), rel=1e-5)
    whole = scan(base, tmp_path, progress=False)
    kept = Scan.load(tmp_path / "relex" / "scan.safetensors")
    assert kept.identities == whole.identities
    assert kept.steps == (1, 2, 3, 4, 5)


def test_forecasts_on_demand_and_at_the_end(tmp_path: Path) -> None:
    callback = RelexCallback(forecast_at_end=(20, 30), strict=True, threads=1)
    trainer_of(tmp_path, callback).train()
    base = tmp_path / "relex" / "base"
    made = relex_ext.extrapolate(
        base, tmp_path, [20, 30], tmp_path / "by_hand", progress=False,
        scan=tmp_path / "relex" / "scan.safetensors",
    )  # fmt: skip
    for target in (20.0, 30.0):
        at_end = tmp_path / "relex" / "forecast" / f"step_{target:g}"
        assert same(weights_of(at_end), weights_of(made.folders[target]))
    asked = callback.forecast(20, tmp_path / "asked")
    assert same(weights_of(asked.folders[20.0]), weights_of(made.folders[20.0]))


def test_reground_puts_the_forecast_into_the_model(tmp_path: Path) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}

    class Look(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen[state.global_step] = {
                name: tensor.clone() for name, tensor in kwargs["model"].state_dict().items()
            }

    callback = RelexCallback(reground=Reground(every=20, jump=1), strict=True, threads=1)
    trainer = trainer_of(tmp_path, callback, steps=22)
    trainer.add_callback(Look())
    trainer.train()
    assert same(seen[20], weights_of(tmp_path / "relex" / "reground-20" / "step_21"))
    assert not same(seen[20], weights_of(tmp_path / "checkpoint-20"))
    made = relex_ext.extrapolate(
        tmp_path / "relex" / "base", tmp_path, 21, tmp_path / "by_hand", until=20, progress=False,
        scan=tmp_path / "relex" / "scan.safetensors",
    )  # fmt: skip
    assert same(seen[20], weights_of(made.folders[21.0]))
    # What follows is recorded from there, in the trainer's steps.
    assert callback.watch.after == 20 and callback.watch.steps == (21, 22)
    assert callback.watch.scan is not None and callback.watch.scan.steps == (1, 2)
    assert [line["relex/step"] for line in logged(trainer)] == list(range(1, 23))
    assert logged(trainer)[19]["relex/reach"] >= 21.0


@pytest.mark.parametrize("optimizer", ["keep", "reset"])
def test_the_optimizers_state(tmp_path: Path, optimizer: str) -> None:
    states: list[int] = []

    class Look(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            states.append(len(kwargs["optimizer"].state))

    jumping = Reground(every=2, jump=1, only_if_go=False, optimizer=optimizer)
    callback = RelexCallback(reground=jumping, strict=True, threads=1)
    trainer = trainer_of(tmp_path, callback, steps=3, optim="adamw_torch")
    trainer.add_callback(Look())
    trainer.train()
    assert callback.watch.after == 2
    tensors = len(list(trainer.model.parameters()))
    assert states == [0, tensors, tensors if optimizer == "keep" else 0]


def test_no_jump_where_the_verdict_is_against_it(tmp_path: Path) -> None:
    callback = RelexCallback(reground=Reground(every=4, jump=500), strict=True, threads=1)
    trainer_of(tmp_path, callback, steps=5).train()
    assert [phase.after for phase in read_phases(tmp_path / "relex" / "state.json")] == [0]
    assert callback.watch.steps == (1, 2, 3, 4, 5)


def test_a_resumed_run_lands_and_goes_on(tmp_path: Path) -> None:
    """Resumed from the checkpoint that was saved just before a jump: as if never interrupted."""

    def callback() -> RelexCallback:
        jumping = Reground(every=4, jump=3, only_if_go=False)
        return RelexCallback(reground=jumping, strict=True, threads=1)

    whole = trainer_of(tmp_path / "whole", callback(), steps=6)
    whole.train()
    part = trainer_of(tmp_path / "part", callback(), steps=6)
    part.add_callback(stop_at(4))
    part.train()
    second = callback()
    resumed = trainer_of(tmp_path / "part", second, steps=6)
    resumed.train(resume_from_checkpoint=True)
    assert same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert second.watch.after == 4 and second.watch.steps == (5, 6)
    # Resumed from before the jump, the phase it began is forgotten.
    third = callback()
    for step in (3, 4, 5, 6):
        shutil.rmtree(tmp_path / "part" / f"checkpoint-{step}")
    trainer_of(tmp_path / "part", third, steps=3).train(resume_from_checkpoint=True)
    assert third.watch.after == 0 and third.watch.steps == (1, 2, 3)


def stop_at(step: int) -> Any:
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == step

    return Stop()


def test_a_second_run_in_the_folder_begins_anew(tmp_path: Path) -> None:
    trainer_of(tmp_path, RelexCallback(strict=True, threads=1), steps=3).train()
    again = RelexCallback(strict=True, threads=1)
    trainer_of(tmp_path, again, steps=2).train()
    assert again.watch.steps == (1, 2)


def test_the_trainer_deletes_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = RelexCallback(strict=True, background=False, threads=1)
    with caplog.at_level(logging.WARNING, "relex_ext"):
        trainer_of(tmp_path, callback, steps=5, save_total_limit=3).train()
    assert callback.watch.steps == (3, 4, 5)
    assert sum("are gone" in line for line in caplog.messages) == 2


def test_our_errors_do_not_end_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tmp_path / "base"
    base.mkdir()
    callback = RelexCallback(base, threads=1)
    trainer = trainer_of(tmp_path / "run", callback, steps=2)
    with caplog.at_level(logging.WARNING, "relex_ext"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert sum(str(base) in line for line in caplog.messages) == 1
    assert logged(trainer) == [{"relex/errors": 1.0}]
    with pytest.raises(InputError, match=r"expected model\.safetensors"):
        trainer_of(tmp_path / "strict", RelexCallback(base, strict=True), steps=2).train()
    with pytest.raises(InputError, match="expected a run that is being recorded"):
        callback.forecast(10)


def test_an_error_on_the_other_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Damage(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                parameter = next(kwargs["model"].parameters())
                before = parameter.detach().clone()
                parameter.data.view(-1)[0] = float("nan")
                kwargs["model"].save_pretrained(Path(args.output_dir) / "checkpoint-2")
                parameter.data.copy_(before)

    for strict in (False, True):
        callback = RelexCallback(strict=strict, threads=1)
        trainer = trainer_of(tmp_path / str(strict), callback, steps=4)
        trainer.callback_handler.callbacks.insert(0, Damage())
        if strict:
            with pytest.raises(InputError, match="1 NaN or Inf in step 2"):
                trainer.train()
        else:
            trainer.train()
            assert callback.watch.steps == (1, 3, 4)
            assert {"relex/errors": 1.0} in logged(trainer)
            assert sum("NaN" in line for line in caplog.messages) == 1


def test_adapters_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    trainer = trainer_of(tmp_path, RelexCallback(), steps=1, trained=adapted)
    with caplog.at_level(logging.WARNING, "relex_ext"):
        trainer.train()
    assert any("expected training of full weights" in line for line in caplog.messages)
    assert logged(trainer) == [{"relex/errors": 1.0}]


def test_no_jumps_with_several_processes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The callback of process zero of two, as the trainer calls it."""
    callback = RelexCallback(
        reground=Reground(every=2, jump=1, only_if_go=False), background=False, strict=True
    )
    args: Any = SimpleNamespace(output_dir=str(tmp_path), world_size=2)
    state = transformers.TrainerState(is_world_process_zero=True)
    control = transformers.TrainerControl()
    trained = model()
    with caplog.at_level(logging.WARNING, "relex_ext"):
        callback.on_train_begin(args, state, control, model=trained)
    (line,) = warnings_in(caplog)
    assert "reground: expected one process that holds the whole model" in line
    for state.global_step in (1, 2):
        with torch.no_grad():
            next(trained.parameters()).add_(0.01)
        trained.save_pretrained(tmp_path / f"checkpoint-{state.global_step}")
        before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
        callback.on_save(args, state, control, model=trained)
        assert same(dict(trained.state_dict()), before)
    assert callback.watch.after == 0 and callback.watch.steps == (1, 2)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((0, 5), "every and jump of at least 1, found 0, 5"),
        ((5, 5, True, "halve"), "optimizer: expected keep or reset, found halve"),
    ],
)
def test_reground_options(options: Sequence[Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        Reground(*options)


def test_phases_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"format": "relex-phases/1", "phases": [{"after": 1}]}))
    with pytest.raises(InputError, match=r"state\.json: expected the phases of a run"):
        read_phases(path)


def test_a_forecast_that_is_another_models(tmp_path: Path) -> None:
    from relex_ext.integrations.grounds import load_in_place

    wide = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**{**model().config.to_dict(), "intermediate_size": 32})
    )
    wide.save_pretrained(tmp_path)
    mine = model()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    with pytest.raises(InputError, match=r"tensor .*mlp.*: expected shape \[16, 24\]"):
        load_in_place(mine, tmp_path)
    with pytest.raises(InputError, match=r"tensor 0\.weight: missing|has none of this name"):
        load_in_place(torch.nn.Sequential(torch.nn.Linear(3, 3)), tmp_path)
    assert same(dict(mine.state_dict()), before)


def test_grpo_logs_its_own_metrics_beside_ours(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trl = pytest.importorskip("trl")
        datasets = pytest.importorskip("datasets")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = ["<pad>", "<eos>", *"0123456789"]
    tokenizer = Tokenizer(
        models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    callback = RelexCallback(strict=True, background=False, threads=1)
    trainer = trl.GRPOTrainer(
        model=model(),
        reward_funcs=lambda completions, **_: [float(len(set(c))) for c in completions],
        processing_class=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": str(i)} for i in range(10, 30)]),
        callbacks=[callback],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), max_steps=4, save_steps=1, logging_steps=2, use_cpu=True,
            bf16=False, gradient_checkpointing=False, per_device_train_batch_size=4,
            num_generations=4, max_completion_length=3, learning_rate=1e-3, report_to="none",
            disable_tqdm=True,
        ),
    )  # fmt: skip
    callback.trainer = trainer
    trainer.train()
    ours = logged(trainer)
    assert [line["relex/step"] for line in ours] == [1.0, 2.0, 3.0, 4.0]
    history = trainer.state.log_history
    assert all("reward" not in line for line in history if "relex/step" in line)
    # One line of the trainer's own for two steps, with the averages of both.
    assert [line["step"] for line in history if "reward" in line] == [2, 4]
    assert (tmp_path / "relex" / "base" / "tokenizer.json").exists()
    fresh = standing_of(scan(tmp_path / "relex" / "base", tmp_path, progress=False))
    assert ours[-1] == pytest.approx(fresh.logs(), rel=1e-5)
