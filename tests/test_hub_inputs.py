"""Inputs on a Hub: every form of a name, what is fetched, and what is said where it cannot be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import children
from folders import SHARDS, RunFolder, make_run, model_digest
from hub_repos import TOKEN, Hub
from relex_ext import combine, extrapolate, forecast, scan, search, verify
from relex_ext.errors import InputError
from relex_ext.inputs import open_inputs

BASE, RUN = "org/base", "org/run"
STEPS = (10, 20, 35, 40)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "local", STEPS, shards=SHARDS)


def upload(hub: Hub, run: RunFolder) -> None:
    """A base, a branch for each step, and all steps as folders of one branch."""
    hub.upload(BASE, run.base)
    for step in STEPS:
        hub.upload(RUN, run.folder(step), f"step_{step:03}")
        hub.upload("org/folders", run.folder(step), inside=f"runs/a/checkpoint-{step}/")


def written(tmp_path: Path, base: Any, checkpoints: Any, **options: Any) -> dict[str, str]:
    """Digests of the forecast's model folder."""
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    extrapolate(base, checkpoints, 80, out, progress=False, **options)
    return model_digest(out / "step_80")


@pytest.fixture
def expected(tmp_path: Path, run: RunFolder) -> dict[str, str]:
    return written(tmp_path, run.base, run.checkpoints)


FORMS: dict[str, tuple[Any, Any]] = {
    "pattern": (RUN, "step_{010,020,035,040}"),
    "names": (RUN, "step_010, step_020,step_035,step_040"),
    "mapping": (RUN, {step: f"step_{step:03}" for step in STEPS}),
    "pairs": ([(step, f"{RUN}@step_{step:03}") for step in STEPS], None),
    "revisions that are steps": ([f"{RUN}@step_{step:03}" for step in STEPS], None),
    "folders": ("hf://org/folders/runs/a", None),
    "folders at a revision": ("hf://org/folders@main/runs/a", None),
    "pairs of folders": (
        {step: f"hf://org/folders/runs/a/checkpoint-{step}" for step in STEPS},
        None,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_name(
    tmp_path: Path, hub: Hub, run: RunFolder, expected: dict[str, str], form: str
) -> None:
    upload(hub, run)
    checkpoints, revisions = FORMS[form]
    assert written(tmp_path, BASE, checkpoints, revisions=revisions) == expected


def test_folders_here_and_models_there(
    tmp_path: Path, hub: Hub, run: RunFolder, expected: dict[str, str]
) -> None:
    upload(hub, run)
    mixed = {step: run.folder(step) for step in STEPS[:2]}
    mixed |= {35: f"{RUN}@step_035", 40: f"{RUN}@{hub.repos[RUN].refs['step_040']}"}
    assert written(tmp_path, run.base, mixed) == expected


def test_a_path_that_exists_wins(
    tmp_path: Path, hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, run)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.checkpoints, RUN)
    found = open_inputs("local/base", RUN)
    assert found.steps == STEPS
    assert not hub.requests


def test_only_what_is_needed_is_fetched(hub: Hub, run: RunFolder) -> None:
    """Of the steps that are used, their weights and configs; of the base and the newest, also what
    is to lie beside the forecast's; once."""
    upload(hub, run)
    (run.base / "pytorch_model.bin").write_bytes(b"pickle")
    hub.upload(BASE, run.base)
    place = "hf://org/folders/runs/a"
    found = open_inputs(BASE, place, until=35, steps=[10, 35])
    assert found.steps == (10, 35)
    cached = [path.relative_to(constants.HF_HUB_CACHE) for path in _files(constants.HF_HUB_CACHE)]
    names = {path.name for path in cached if "snapshots" in path.parts}
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth"))}
    assert "tokenizer.json" in names
    steps = {part for path in cached for part in path.parts if part.startswith("checkpoint-")}
    assert steps == {"checkpoint-10", "checkpoint-35"}
    before = hub.sent.total()
    assert open_inputs(BASE, place, steps=[10, 35]).steps == (10, 35)
    assert hub.sent.total() == before


def test_the_commit_is_recorded_and_verified(tmp_path: Path, hub: Hub, run: RunFolder) -> None:
    """Under a name from which it is fetched again, wherever the cache is then."""
    upload(hub, run)
    out = tmp_path / "out"
    extrapolate(BASE, "hf://org/folders/runs/a", 80, out, progress=False)
    record = json.loads((out / "relex.json").read_bytes())
    sha = {name: repo.refs["main"] for name, repo in hub.repos.items() if "main" in repo.refs}
    assert record["base"] == f"{BASE}@{sha[BASE]}"
    assert (
        record["checkpoints"]["40"] == f"hf://org/folders@{sha['org/folders']}/runs/a/checkpoint-40"
    )
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.upload(BASE, run.folder(10))  # what main means now is not what was used
    assert verify(out, samples=20, progress=False).ok


def test_scan_combine_and_search(tmp_path: Path, hub: Hub, run: RunFolder) -> None:
    upload(hub, run)
    options: dict[str, Any] = {"revisions": FORMS["pattern"][1], "progress": False}
    found = scan(BASE, RUN, out=tmp_path / "scan.safetensors", **options)
    weights = forecast(found, [80])
    combine(BASE, RUN, weights, tmp_path / "combined", **options)
    extrapolate(run.base, run.checkpoints, 80, tmp_path / "there", progress=False)
    assert model_digest(tmp_path / "combined/step_80") == model_digest(tmp_path / "there/step_80")
    best = search(
        BASE, RUN, tmp_path / "search", "cat {model}/tokenizer.json > /dev/null; echo 1",
        target_steps=[60, 80], evaluations=3, **options,
    ).best  # fmt: skip
    assert best is not None


def test_a_run_that_was_stopped_goes_on_with_another_cache(
    tmp_path: Path, hub: Hub, run: RunFolder
) -> None:
    """Files are known by the Hub's name for their contents, not by when they were fetched."""
    from relex_ext.identities import identities_of

    upload(hub, run)
    first = identities_of(open_inputs(BASE, "hf://org/folders/runs/a"))
    shutil.rmtree(constants.HF_HUB_CACHE)
    assert identities_of(open_inputs(BASE, "hf://org/folders/runs/a")) == first


# ---- what cannot be had -------------------------------------------------------------------------


def refused(message: str, base: Any = BASE, checkpoints: Any = "hf://org/folders/runs/a") -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)) as caught:
        open_inputs(base, checkpoints)
    assert "\n" not in str(caught.value)


def test_nothing_there(hub: Hub, run: RunFolder) -> None:
    upload(hub, run)
    refused("org/typo: no such folder here, no such repository on the Hub", base="org/typo")
    refused("org/base@v2: the repository has no revision v2", base="org/base@v2")
    refused("org/a--b: no name that a repository can have", base="org/a--b")
    refused("hf://nothing: expected hf://org/repo", base="hf://nothing")
    empty = f"{RUN}@{hub.repos[RUN].refs['step_010']}"
    refused(f"{empty}: expected step folders named like", checkpoints=f"{RUN}@step_010")
    refused("org/folders@", base="hf://org/folders/runs/b")


def test_private_and_gated(hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(hub, run)
    hub.repos[BASE].private = True
    refused("org/base: no such folder here, no such repository on the Hub, or a private one")
    hub.repos[BASE].private, hub.repos[BASE].gated = False, True
    gated = f"org/base: a gated repository; ask for access on {hub.url}/org/base and log in"
    refused(gated)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    refused(gated)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert open_inputs(BASE, "hf://org/folders/runs/a").steps == STEPS


def test_offline_from_the_cache(
    tmp_path: Path, hub: Hub, run: RunFolder, expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    upload(hub, run)
    written(tmp_path, BASE, RUN, revisions=FORMS["pattern"][1])
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert written(tmp_path, BASE, RUN, revisions=FORMS["pattern"][1]) == expected
    assert not hub.requests
    names = [f"{RUN}@step_{step:03}" for step in STEPS]
    (shard,) = _cached(hub, RUN, "step_035", "model-00002-of-00003.safetensors")
    shard.unlink()
    commit = hub.repos[RUN].refs["step_035"]
    refused(
        f"{RUN}@{commit}: model-00002-of-00003.safetensors: not in the Hub's cache, and "
        "HF_HUB_OFFLINE is set",
        checkpoints=names,
    )
    refused(
        "org/new: no such folder here, not in the Hub's cache, and HF_HUB_OFFLINE",
        checkpoints="org/new",
    )


def test_no_network(hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache is enough; what is not is said to be unreachable."""
    upload(hub, run)
    place = "hf://org/folders/runs/a"
    open_inputs(BASE, place)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert open_inputs(BASE, place).steps == STEPS
    refused(
        "org/new: no such folder here, not in the Hub's cache, and the Hub cannot be reached",
        checkpoints="org/new",
    )


def test_a_connection_that_breaks_is_taken_up(
    tmp_path: Path, hub: Hub, run: RunFolder, expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    upload(hub, run)
    monkeypatch.setattr("time.sleep", lambda _: None)
    path = "runs/a/checkpoint-20/model-00001-of-00003.safetensors"
    hub.drops[path] = 2
    assert written(tmp_path, BASE, "hf://org/folders/runs/a") == expected
    commit = hub.repos["org/folders"].refs["main"]
    assert hub.requests[f"GET /cdn/org/folders/{commit}/{path}"] == 3


def test_a_server_that_lies(hub: Hub, run: RunFolder) -> None:
    upload(hub, run)
    name = "model-00001-of-00003.safetensors"
    path = f"runs/a/checkpoint-20/{name}"
    true = hub.repos["org/folders"].commits[hub.repos["org/folders"].refs["main"]][path]
    hub.lies[path] = true[:-9]
    refused(f"org/folders@{hub.repos['org/folders'].refs['main']}: the Hub cannot be read: Consist")
    hub.lies[path] = b"\0" * len(true)
    with pytest.raises(InputError, match=r"checkpoint-20/.*: not a safetensors file: expected"):
        open_inputs(BASE, "hf://org/folders/runs/a")


def test_an_adapter_is_said_to_be_one(hub: Hub, run: RunFolder) -> None:
    upload(hub, run)
    (run.base / "adapter_config.json").write_bytes(b"{}")
    commit = hub.upload(BASE, run.base)
    refused(f"{BASE}@{commit}: expected all weights of a model, found adapter_config.json")


def test_the_command(tmp_path: Path, hub: Hub, run: RunFolder, expected: dict[str, str]) -> None:
    upload(hub, run)
    main = "import sys; from relex_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["extrapolate", "--target-step", 80, "--out", tmp_path / "out", "--base", BASE]
    status, _, err = children.run(
        main, *arguments, "--checkpoints", RUN, "--revisions", FORMS["pattern"][1]
    )
    assert (status, model_digest(tmp_path / "out/step_80") if status == 0 else err) == (0, expected)
    status, _, err = children.run(
        main, *arguments, "--checkpoints", f"{RUN}@nothing", "--overwrite"
    )
    assert (status, err) == (
        2,
        "relex: error: org/run@nothing: the repository has no revision nothing\n",
    )


def test_bars_only_where_whole_checkpoints_are_fetched(
    tmp_path: Path, hub: Hub, run: RunFolder
) -> None:
    upload(hub, run)
    main = "import sys; from relex_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    named = [RUN, "--revisions", FORMS["pattern"][1]]
    assert children.run(main, "list", *named)[::2] == (0, "")
    scanned = ["scan", "--base", BASE, "--checkpoints", *named, "--out"]
    quiet = (0, "", "")
    assert children.run(main, *scanned, tmp_path / "a", "-q", "--max-local", "9MiB") == quiet
    status, _, err = children.run(main, *scanned, tmp_path / "b")
    assert (status, set(re.findall(r"Fetching (\d+) files", err))) == (0, {"6", "9"})
    assert children.run(main, *scanned, tmp_path / "c", "-q") == quiet
    for decided in ("0", "1"):
        variable = {"HF_HUB_DISABLE_PROGRESS_BARS": decided}
        status, _, err = children.run(main, *scanned, tmp_path / decided, "-q", **variable)
        assert (status, "Warning" in err, "Fetching" in err) == (0, False, decided == "0")


def _files(folder: str) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def _cached(hub: Hub, repo: str, branch: str, name: str) -> list[Path]:
    commit = hub.repos[repo].refs[branch]
    return [
        path for path in _files(constants.HF_HUB_CACHE) if path.name == name and commit in str(path)
    ]
