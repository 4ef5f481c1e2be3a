"""LoRA adapters on a Hub: the same bytes as from folders, and what is said where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import adapters
from adapters import STEPS, LoraRun, llama, make_lora_run
from folders import model_digest
from hub_repos import Hub
from relex_ext import InputError, extrapolate, verify
from relex_ext.adapters.opening import PICKLE, WEIGHTS
from relex_ext.inputs import open_inputs

pytestmark = [pytest.mark.filterwarnings(text) for text in adapters.IGNORED]

BASE, RUN = "org/base", "org/run"
REVISIONS = "step_{10..50..10}"
COPIES = {"PEFT": "", "verl": "actor/lora_adapter/"}
"""Whose folders of steps → where in them the adapter is."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    return make_lora_run(tmp_path_factory.mktemp("lora"), llama())


@pytest.fixture
def uploaded(hub: Hub, run: LoraRun) -> Hub:
    """A base, a branch for each step, and all steps as folders of one branch."""
    hub.upload(BASE, run.base)
    for step in STEPS:
        hub.upload(RUN, run.folder(step), f"step_{step}")
        for trainer, inside in COPIES.items():
            place = f"{trainer}/checkpoint-{step}/{inside}"
            hub.upload("org/folders", run.folder(step), inside=place)
    return hub


def written(base: Any, checkpoints: Any, out: Path, **options: Any) -> dict[str, str]:
    extrapolate(base, checkpoints, 80, out, progress=False, **options)
    return model_digest(out / "step_80")


def test_the_same_bytes(tmp_path: Path, uploaded: Hub, run: LoraRun) -> None:
    expected = written(run.base, run.checkpoints, tmp_path / "here")
    assert written(BASE, RUN, tmp_path / "there", revisions=REVISIONS) == expected
    for trainer in COPIES:
        assert written(run.base, f"hf://org/folders/{trainer}", tmp_path / trainer) == expected
    record = json.loads((tmp_path / "there" / "relex.json").read_bytes())
    commits = uploaded.repos[RUN].refs
    assert record["checkpoints"] == {str(s): f"{RUN}@{commits[f'step_{s}']}" for s in STEPS}
    assert verify(tmp_path / "there", samples=20).samples == 20


def test_only_what_is_needed_is_fetched(uploaded: Hub, run: LoraRun) -> None:
    uploaded.repos[RUN].commit("step_50", {"optimizer.pt": b"state", "README.md": b"newest"})
    assert open_inputs(BASE, RUN, until=30, revisions=REVISIONS).steps == (10, 20, 30)
    names = {
        path.name for path in Path(constants.HF_HUB_CACHE).rglob("models--org--run/snapshots/*/*")
    }
    assert names == {".gitattributes", "adapter_config.json", WEIGHTS, "README.md"}


def test_offline(
    tmp_path: Path, uploaded: Hub, run: LoraRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"revisions": REVISIONS, "until": 40}
    before = written(BASE, RUN, tmp_path / "before", **options)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert written(BASE, RUN, tmp_path / "after", **options) == before
    with pytest.raises(
        InputError, match=f"{RUN}@[0-9a-f]*: its weights are not in the Hub's cache, and HF_"
    ):
        open_inputs(BASE, RUN, revisions=REVISIONS)


def test_what_cannot_be(uploaded: Hub, run: LoraRun) -> None:
    def refused(expected: str, base: str = BASE, **options: Any) -> None:
        with pytest.raises(InputError, match=expected):
            open_inputs(base, RUN, revisions=REVISIONS, **options)

    refused("max_local: expected models, found LoRA adapters, which are small", max_local="1GiB")
    commit = uploaded.upload("org/adapter", run.folder(10))
    refused(f"org/adapter@{commit}: expected all weights of a model, found ad", base="org/adapter")
    weights = uploaded.repos["org/adapter"].commits[commit][WEIGHTS]
    commit = uploaded.repos[RUN].commit("step_30", {WEIGHTS: None, PICKLE: weights})
    refused(f"{RUN}@{commit}: expected {WEIGHTS}, found none; load {PICKLE} where you trust it")
    commit = uploaded.repos[RUN].commit("step_20", {"adapter_config.json": None, WEIGHTS: None})
    refused(f"{RUN}@[0-9a-f]*: expected all weights of a model, found adapter_config.json")
