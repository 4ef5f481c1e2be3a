"""Checkpoints in pieces made whole: the same bytes as the weights that were saved."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint

import children
import relex_ext
from folders import Raw, read_model
from oracle import round_to
from relex_ext import gather
from relex_ext.checkpoints import open_checkpoint
from relex_ext.cli import main
from relex_ext.errors import InputError, Interrupted, OutputError
from relex_ext.gathering import whole
from relex_ext.gathering.run import _open
from relex_ext.gathering.stored import Pieces
from write_pieces import STEPS, weights

RUNS = {
    **{f"dcp-{world}": "checkpoint" for world in (1, 2, 4)},
    "dcp-mesh": "step",
    **{f"{kind}-{world}": "global_step" for kind in ("fsdp1", "fsdp2") for world in (1, 2, 4)},
}
"""Run folder → how its steps' folders begin."""

MIB = 1 << 20


def plain(pieces: Path, step: int) -> dict[str, Raw]:
    """The weights of a step as they were saved whole."""
    return read_model(pieces / "plain" / f"checkpoint-{step}")


@pytest.mark.parametrize("run", RUNS)
def test_every_bit(pieces: Path, tmp_path: Path, run: str) -> None:
    """Whoever has cut them: 1, 2 or 4 processes, rows that do not divide, copies, a mesh."""
    done = gather(pieces / run, tmp_path, base=pieces / "base", progress=False)
    assert done.folders == {step: tmp_path / f"step_{step}" for step in STEPS}
    assert done.made == STEPS
    for step, folder in done.folders.items():
        assert read_model(folder) == plain(pieces, step)
        assert {name: raw.shape for name, raw in read_model(folder).items()} == {
            name: tuple(tensor.shape) for name, tensor in weights(step).items()
        }
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json", "gathered.json", "model.safetensors",
        ]  # fmt: skip
        assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step_{step}" for step in STEPS]


@pytest.mark.parametrize("run", ["dcp-4", "fsdp2-4"])
def test_a_forecast_from_them(pieces: Path, tmp_path: Path, run: str) -> None:
    """It has the bytes of one from the weights that were saved whole."""
    gather(pieces / run, tmp_path / "gathered", progress=False)
    outs = []
    for name, source in (("a", pieces / "plain"), ("b", tmp_path / "gathered")):
        out = tmp_path / name
        relex_ext.extrapolate(pieces / "base", source, [60], out, backend="cpu", progress=False)
        outs.append(read_model(out / "step_60"))
    assert outs[0] == outs[1]
    assert outs[0] != plain(pieces, 30)


@pytest.mark.parametrize(
    ("run", "kind"),
    [("dcp-2", "a torch distributed checkpoint"), ("fsdp1-2", "the rank shards of verl's FSDP")],
)
def test_who_forecasts_from_pieces_is_told_the_command(
    pieces: Path, tmp_path: Path, run: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And that command works as it is printed."""
    source = tmp_path / "a run"
    shutil.copytree(pieces / run, source)
    scan = ["scan", "--base", str(pieces / "base"), "--out", str(tmp_path / "scan"), "-q"]
    assert main([*scan, "--checkpoints", str(source)]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(f"relex: error: {source / RUNS[run]}")
    assert f"found {kind} in " in message
    command = shlex.split(message.partition(": relex ")[2])
    assert command == ["gather", str(source), "--out", f"{source}-gathered"]
    assert main(command) == 0
    assert "gathered step 10, 20, 30: 24 tensors, " in capsys.readouterr().out
    assert main([*scan, "--checkpoints", f"{source}-gathered"]) == 0


def test_a_base_in_pieces(pieces: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(pieces / "dcp-1" / "checkpoint-10", base)
    with pytest.raises(InputError, match=f"gather it: relex gather 0={base} --out {base}-gathered"):
        open_checkpoint(base)
    assert main(["gather", f"0={base}", "--out", f"{base}-gathered", "-q"]) == 0
    assert read_model(tmp_path / "base-gathered" / "step_0") == plain(pieces, 10)


def test_steps_and_dtype(pieces: Path, tmp_path: Path) -> None:
    done = gather(pieces / "fsdp2-2", tmp_path, until=20, dtype="bf16", progress=False)
    assert done.made == (10, 20)
    for step in done.made:
        for name, raw in read_model(tmp_path / f"step_{step}").items():
            values = plain(pieces, step)[name].values
            assert raw.dtype == "BF16"
            assert raw.data == round_to(values, "BF16").tobytes()


def test_shards(pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "SHARD", 400)
    monkeypatch.setattr(whole, "BATCH", 100)
    (folder,) = gather(pieces / "dcp-2", tmp_path, steps=[10], progress=False).folders.values()
    found = open_checkpoint(folder)
    names = [shard.path.name for shard in found.shards]
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert all(shard.size < 2000 for shard in found.shards)
    assert {name: entry.dtype for name, entry in found.tensors.items()} == dict.fromkeys(
        weights(0), "F32"
    )
    assert read_model(folder) == plain(pieces, 10)


# ---- again ---------------------------------------------------------------------------------------


def test_again_for_the_steps_that_are_missing(
    pieces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gather(pieces / "dcp-2", tmp_path, steps=[10, 30], progress=False)
    before = (tmp_path / "step_10" / "model.safetensors").stat()
    assert main(["gather", str(pieces / "dcp-2"), "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == [20]
    assert (tmp_path / "step_10" / "model.safetensors").stat() == before
    assert main(["gather", str(pieces / "dcp-2"), "--out", str(tmp_path)]) == 0
    assert "there already: step 10, 20, 30" in capsys.readouterr().out


def test_other_things_at_its_place(pieces: Path, tmp_path: Path) -> None:
    gather(pieces / "dcp-2", tmp_path, steps=[10], progress=False)
    for run, dtype in (("fsdp2-2", None), ("dcp-2", "bf16")):
        with pytest.raises(OutputError, match=f"{tmp_path}/step_10: gathered from other files, or"):
            gather(pieces / run, tmp_path, steps=[10], dtype=dtype, progress=False)
    (tmp_path / "step_20").mkdir()
    (tmp_path / "step_20" / "mine").touch()
    with pytest.raises(OutputError, match="step_20: exists already, and relex gather did not"):
        gather(pieces / "dcp-2", tmp_path, progress=False)
    assert not (tmp_path / "step_30").exists()


class Counted:
    """Pieces, and which of them were read."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self.tensors = pieces.tensors
        self.files = pieces.files
        self.keys: list[str] = []

    def read(self, keys: Sequence[str]) -> Mapping[str, torch.Tensor]:
        self.keys += keys
        return self._pieces.read(keys)


def test_interrupted(pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run reads what this one has not written, and publishes the whole."""
    monkeypatch.setattr(whole, "BATCH", 1)
    made = _open(pieces / "dcp-2" / "checkpoint-10", None, None)
    out = tmp_path / "step_10"
    done: list[int] = []

    def stop(nbytes: int) -> None:
        done.append(nbytes)
        if len(done) == 4:  # the first says what an earlier run has done
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="the same command goes on"):
        whole.write(out, made, stop)
    assert not out.exists()
    assert (tmp_path / ".step_10.partial").is_dir()
    counted = Counted(made.pieces)
    again = whole.Whole(counted, made.names, None, made.companions, made.job)
    whole.write(out, again, done.append)
    assert counted.keys == [*made.names.values()][3:]
    assert sum(done[4:]) == again.size
    assert read_model(out) == plain(pieces, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["step_10"]


def test_killed_as_it_ended(pieces: Path, tmp_path: Path) -> None:
    """What is left beside a finished folder then, the next call removes."""
    gather(pieces / "dcp-2", tmp_path, steps=[10], progress=False)
    left = tmp_path / ".step_10.partial"
    left.mkdir()
    (left / "journal").touch()
    assert gather(pieces / "dcp-2", tmp_path, steps=[10], progress=False).made == ()
    assert [path.name for path in tmp_path.iterdir()] == ["step_10"]


MEASURE = """
import sys
import torch.distributed.checkpoint.state_dict_loader
from footprint import growth
from relex_ext import gather
from relex_ext.gathering import whole

whole.BATCH = 16 << 20
print(growth(lambda: gather(sys.argv[1], sys.argv[2], progress=False)))
"""


@pytest.mark.parametrize("kind", ["dcp", "verl"])
def test_memory(tmp_path: Path, kind: str) -> None:
    """A batch of tensors and the file's piece of one, however large the model."""
    state = {f"model.layers.{i}.w": torch.full((1 << 20,), float(i)) for i in range(40)}
    state["model.embed_tokens.weight"] = torch.ones(3, 2)
    step = tmp_path / "run" / "step_1"
    step.mkdir(parents=True)
    if kind == "verl":
        torch.save(state, step / "model_world_size_1_rank_0.pt")
    else:
        with pytest.warns(UserWarning, match="single process"):
            torch.distributed.checkpoint.save({"model": state}, checkpoint_id=step, no_dist=True)
    top = int(children.printed(MEASURE, tmp_path / "run", tmp_path / "out"))
    assert 4 * MIB < top < 64 * MIB < 160 * MIB
    found = read_model(tmp_path / "out" / "step_1")
    assert {name: raw.values.max() for name, raw in found.items()} == {
        name: value.max().item() for name, value in state.items()
    }
