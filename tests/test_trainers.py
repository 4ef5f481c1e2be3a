"""Every trainer's run folder: its steps, their weights, and the step it was killed in."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

import oracle
from compare import Tally, checked_distance
from folders import Spec, make_run, read_model
from relex_ext import InputError, extrapolate, list_checkpoints
from relex_ext.checkpoints import open_checkpoint
from relex_ext.steps import check_finished, discover
from relex_ext.trainers import TRAINERS, WEIGHT_FOLDERS, Layout, step_of, trainer_of
from trainer_runs import RUNS, TrainerRun, write_run

STEPS = (10, 20, 30, 40)
TARGET = 100
SPECS = {
    "model.embed_tokens.weight": Spec((31, 16)),
    "model.layers.0.mlp.weight": Spec((16, 24)),
    "model.norm.weight": Spec((16,), "F32", ("F32",)),
}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The forecast of the same weights in plain folders of steps 10, 20 and 30."""
    root = tmp_path_factory.mktemp("reference")
    make_run(root, STEPS, SPECS)
    return forecast(root / "base", root / "run", root / "out")


def forecast(base: Path, run: Path, out: Path) -> Path:
    done = extrapolate(base, run, TARGET, out, until=30, progress=False)
    return done.folders[float(TARGET)]


def case(run: TrainerRun) -> str:
    return f"{run.trainer}-{run.folder}/{run.weights}"


@pytest.mark.parametrize("run", RUNS, ids=case)
def test_a_run_as_its_trainer_writes_it(tmp_path: Path, run: TrainerRun, reference: Path) -> None:
    made = make_run(tmp_path, STEPS, SPECS)
    root = write_run(tmp_path / "trained", run, made.step_tensors, stopped=40)
    found = discover(root)
    assert list(found) == [10, 20, 30, 40] if run.says else [10, 20, 30]
    assert {trainer_of(found.values()).trainer} == {run.trainer}
    for step in (10, 20, 30):
        checkpoint = open_checkpoint(found[step])
        assert checkpoint.folder == found[step] / run.weights
        for name, entry in checkpoint.tensors.items():
            data = entry.shard.path.read_bytes()[entry.offset : entry.offset + entry.nbytes]
            assert data == made.step_tensors[step][name].data, (step, name)
    listed = {one.step: one for one in list_checkpoints(root)}
    assert [step for step, one in listed.items() if one.problem is None] == [10, 20, 30]
    if run.says is not None:
        last = run.first + 29
        assert run.says.format(last=last) in (listed[40].problem or "")
        with pytest.raises(InputError, match=re.escape(str(found[40]))):
            extrapolate(made.base, root, TARGET, tmp_path / "refused", progress=False)
    written = forecast(made.base, root, tmp_path / "out")
    assert read_model(written) == read_model(reference)


def test_the_forecast_of_those_is_right(reference: Path, tmp_path: Path) -> None:
    made = make_run(tmp_path, STEPS, SPECS)
    found, tally = read_model(reference), Tally()
    for name, start in made.base_tensors.items():
        rows = [made.step_tensors[step][name].values for step in (10, 20, 30)]
        answer = oracle.forecast(start.values, rows, (10, 20, 30), [TARGET])
        distance = checked_distance(
            found[name].words, found[name].dtype, start.values, rows, answer
        )
        tally.add(found[name].dtype, distance)
    tally.check()


def test_every_row_has_its_run() -> None:
    torchs = {"torchtitan"}  # below, by torch's own writer
    assert {row.trainer for row in TRAINERS} == {run.trainer for run in RUNS} | torchs


@pytest.mark.parametrize("row", TRAINERS, ids=lambda row: row.trainer)
def test_examples_are_of_step_12(row: Layout) -> None:
    assert step_of(row.example, epochs=row.epochs) == 12


def test_a_trainer_has_a_step_only_where_it_signs(tmp_path: Path) -> None:
    """Three rows write step_12; one nobody has signed is anybody's."""
    step = tmp_path / "step_12"
    step.mkdir()
    assert trainer_of([step]).trainer == "by hand"
    (step / "STABLE").touch()
    assert trainer_of([step, tmp_path / "step_13"]).trainer == "prime-rl"


# ---- torchtitan: torch itself writes its export --------------------------------------------------


@pytest.mark.parametrize("files", [1, 2])
def test_what_torchtitan_saves_as_its_last_step(tmp_path: Path, files: int) -> None:
    """In one file torch consolidates the ranks' parts while it saves, in several afterwards."""
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    for step in (10, 20):
        save_as_torchtitan(tmp_path / "checkpoint" / f"step-{step}", state, files)
    save_as_torchtitan(tmp_path / "checkpoint" / "step-30", state, files, killed=True)
    listed = list_checkpoints(tmp_path)
    assert [one.trainer for one in listed] == ["torchtitan"] * 3
    assert [one.problem is None for one in listed] == [True, True, False]
    assert "parts of tensors" in (listed[2].problem or "")
    assert "convert_to_hf.py" in (listed[2].hint or "")
    for one in listed[:2]:
        assert {name: (entry.dtype, entry.shape) for name, entry in
                open_checkpoint(one.folder).tensors.items()} == {
            "a.weight": ("F32", (2, 3)), "b": ("BF16", (4,))
        }  # fmt: skip
        tensors = read_model(one.folder)
        assert np.array_equal(tensors["a.weight"].values, np.arange(6.0))
        assert np.array_equal(tensors["b"].values, np.ones(4))


def save_as_torchtitan(
    folder: Path, state: dict[str, torch.Tensor], files: int, *, killed: bool = False
) -> None:
    mapping = {"a.weight": 1, "b": files}
    writer = HuggingFaceStorageWriter(
        str(folder if files == 1 and not killed else folder / "sharded"),
        fqn_to_index_mapping=mapping if files > 1 else None,
        save_distributed=True,
        enable_consolidation=files == 1 and not killed,
    )
    with pytest.warns(UserWarning, match="assuming the intent is to save in a single process"):
        dcp.save(state, storage_writer=writer, no_dist=True)
    if files > 1 and not killed:
        consolidate_safetensors_files(str(folder / "sharded"), str(folder), mapping)


# ---- the folder above, and the one below ---------------------------------------------------------


def make(root: Path, *names: str) -> Path:
    """Folders, with an empty safetensors file where a name ends in one."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir(parents=True)
    return root


def test_the_run_below(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "checkpoints/step_1/a.pt", "weights/step_2/model.safetensors", ".hidden/step_9")
    with caplog.at_level(logging.INFO, "relex_ext"):
        assert discover(tmp_path) == {2: tmp_path / "weights" / "step_2"}
    assert caplog.messages == [f"{tmp_path}: its steps are in {tmp_path}/weights"]


def test_the_only_run_below_needs_no_weights(tmp_path: Path) -> None:
    make(tmp_path, "logs", "run/step_1/a.pt")
    assert discover(tmp_path) == {1: tmp_path / "run" / "step_1"}


@pytest.mark.parametrize("weights", ["model.safetensors", "a.pt"])
def test_several_runs_below(tmp_path: Path, weights: str) -> None:
    make(tmp_path, f"weights/step_1/{weights}", f"broadcasts/step_1/{weights}", "logs")
    with pytest.raises(InputError) as caught:
        discover(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: expected one run, found several; give one of {tmp_path}/broadcasts, "
        f"{tmp_path}/weights"
    )


def test_steps_with_weights_come_before_steps_without(tmp_path: Path) -> None:
    """And those of the run itself before any below."""
    make(tmp_path, "iter_0000001/a.pt", "hf/rollout_3/model.safetensors")
    assert discover(tmp_path) == {3: tmp_path / "hf" / "rollout_3"}
    make(tmp_path, "eval/step_3/model.safetensors")
    assert discover(tmp_path) == {1: tmp_path / "iter_0000001"}, "which of both is not plain"
    make(tmp_path, "iter_0000001/model.safetensors")
    assert discover(tmp_path) == {1: tmp_path / "iter_0000001"}


@pytest.mark.parametrize(
    "below", ["", *(place for place in WEIGHT_FOLDERS if place), "policy/weights/model"]
)
def test_a_part_of_a_run(tmp_path: Path, below: str) -> None:
    place = make(tmp_path, f"global_step_5/{below}/model.safetensors") / "global_step_5" / below
    with pytest.raises(InputError) as caught:
        discover(place)
    assert str(caught.value) == (
        f"{place}: expected a run's folder, found what belongs to one of its steps; give {tmp_path}"
    )


@pytest.mark.parametrize("below", WEIGHT_FOLDERS)
def test_a_folder_in_an_unfinished_step(tmp_path: Path, below: str) -> None:
    """However deep in it the weights are that were given."""
    make(tmp_path, f"global_step_5/{below}/model.safetensors", f"global_step_6/{below}/a.pt")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5")
    check_finished([tmp_path / "global_step_5" / below])
    with pytest.raises(InputError, match=f"^{tmp_path}/global_step_6: expected a finished step"):
        check_finished([tmp_path / "global_step_6" / below])


def test_epochs_are_steps_where_there_are_no_others(tmp_path: Path) -> None:
    make(tmp_path, "epoch_0/model.safetensors", "epoch_1/model.safetensors")
    assert discover(tmp_path) == {1: tmp_path / "epoch_0", 2: tmp_path / "epoch_1"}
    make(tmp_path, "step_70/model.safetensors")
    assert discover(tmp_path) == {70: tmp_path / "step_70"}


@pytest.mark.parametrize(
    ("inside", "what"),
    [
        ("policy/weights/__0_0.distcp", "a torch distributed checkpoint"),
        ("policy/weights/model/adapter_model.safetensors", "a PEFT (LoRA) adapter"),
        ("trainer/.metadata", "a torch distributed checkpoint"),
        ("policy/model_world_size_2_rank_0.pt", "the rank shards of verl's FSDP"),
    ],
)
def test_what_trainers_keep_in_the_place_of_weights(tmp_path: Path, inside: str, what: str) -> None:
    make(tmp_path, f"step_5/{inside}")
    with pytest.raises(InputError, match=re.escape(what)):
        open_checkpoint(tmp_path / "step_5")


# ---- docs/trainers.md ----------------------------------------------------------------------------


def row_in_words(row: Layout) -> str:
    done = [f"`{row.done}` is in it"] if row.done else []
    done += [f"`{row.tracker}` says so"] if row.tracker else []
    cells = (
        row.trainer,
        f"`{row.example}`",
        ", ".join(f"`{place}`" if place else "the folder itself" for place in row.weights),
        "; ".join(done) or "–",
        row.otherwise or "–",
        row.seen_in or "–",
    )
    return f"| {' | '.join(cells)} |"


def test_the_documentation_has_this_table() -> None:
    text = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text()
    written = [line for line in text.splitlines() if line.startswith("| ")]
    assert written[0].startswith("| trainer | a step's folder")
    assert written[2:] == [row_in_words(row) for row in TRAINERS]
