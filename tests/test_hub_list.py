"""relex list on a Hub: headers are all that is fetched of weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from folders import SHARDS, SINGLE, RunFolder, make_run
from hub_repos import Hub
from relex_ext import InputError, list_checkpoints
from relex_ext.cli import main

RUN, FOLDERS = "org/run", "hf://org/folders/runs/a"
STEPS = (10, 20, 30)
REVISIONS = "step_{10..30..10}"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "local", STEPS, shards=SHARDS)


@pytest.fixture
def uploaded(hub: Hub, run: RunFolder) -> Hub:
    for step in STEPS:
        hub.upload(RUN, run.folder(step), f"step_{step}")
        hub.upload("org/folders", run.folder(step), inside=f"runs/a/checkpoint-{step}/")
    return hub


def test_the_same_as_here(uploaded: Hub, run: RunFolder) -> None:
    here = list_checkpoints(run.checkpoints)
    refs = {repo: found.refs for repo, found in uploaded.repos.items()}
    names = {
        (RUN, REVISIONS): [f"{RUN}@{refs[RUN][f'step_{step}']}" for step in STEPS],
        (FOLDERS, None): [
            f"hf://org/folders@{refs['org/folders']['main']}/runs/a/checkpoint-{step}"
            for step in STEPS
        ],
    }
    for (given, revisions), folders in names.items():
        there = list_checkpoints(given, revisions=revisions)
        assert [str(one.folder) for one in there] == folders
        for one, same in zip(there, here, strict=True):
            assert same.problem is None and one.problem is None
            assert one.step == same.step
            assert (one.dtypes, one.nbytes, one.tensors) == (same.dtypes, same.nbytes, same.tensors)


def test_headers_only(uploaded: Hub, run: RunFolder) -> None:
    """Of 6 shards: the index, the config and little more than the headers' own bytes."""
    list_checkpoints(RUN, revisions=REVISIONS)
    shards = list(run.checkpoints.rglob("*.safetensors"))
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in shards)
    sent = sum(n for path, n in uploaded.sent.items() if path.endswith(".safetensors"))
    assert sent == headers
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))
    assert not list((Path(constants.HF_HUB_CACHE).parent / "relex").glob("mirror-*"))


def test_every_step_is_looked_at(
    uploaded: Hub, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with another defect, told of its name on the Hub, and none hides the next."""
    repo = uploaded.repos[RUN]
    shard = next(p.name for p in run.folder(20).glob("*.safetensors"))
    no_shard = repo.commit("step_20", {shard: None})
    damaged = repo.commit("step_30", {shard: b"\xff" * 100})
    assert main(["list", RUN, "--revisions", REVISIONS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["usable"] == [10]
    first, second, third = found["checkpoints"]
    assert (first["folder"], first["problem"]) == (f"{RUN}@{repo.refs['step_10']}", None)
    assert second["folder"] == f"{RUN}@{no_shard}"
    assert second["problem"] == f"expected {shard}, named by its index, found none"
    assert third["folder"] == f"{RUN}@{damaged}"
    assert third["problem"].startswith(f"{RUN}@{damaged}/{shard}: not a safetensors file")
    assert main(["list", RUN, "--revisions", REVISIONS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["10", f"{RUN}@{repo.refs['step_10']}"]
    assert lines[-1] == "extrapolate: expected at least 2 complete checkpoints, found 1"


def test_without_weights(uploaded: Hub, run: RunFolder) -> None:
    uploaded.upload("org/folders", run.folder(10), inside="runs/b/checkpoint-10/")
    uploaded.repos["org/folders"].commit(
        "main", {"runs/b/checkpoint-20/pytorch_model.bin": b"", "runs/b/checkpoint-30/x": b""}
    )
    found = list_checkpoints("hf://org/folders/runs/b")
    commit = uploaded.repos["org/folders"].refs["main"]
    assert [one.step for one in found if one.problem is None] == [10]
    assert "found pickled weights (pytorch_model.bin); load them" in (found[1].problem or "")
    assert found[2].problem == f"expected {SINGLE} or {SINGLE}.index.json, found neither"
    assert str(found[2].folder) == f"hf://org/folders@{commit}/runs/b/checkpoint-30"


def test_offline(uploaded: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list_checkpoints(RUN, revisions=REVISIONS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for one in list_checkpoints(RUN, revisions=REVISIONS):
        assert one.problem == "its weights are not in the Hub's cache, and HF_HUB_OFFLINE is set"
    assert all(one.problem is None for one in before)
    with pytest.raises(InputError, match="org/none: no such folder here, not in the Hub's cache"):
        list_checkpoints("org/none")
