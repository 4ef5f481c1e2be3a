"""Forecasts onto a Hub: their cards, the commits, and what comes back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants, snapshot_download

import children
from folders import RunFolder, Spec, make_run, model_digest
from hub_repos import TOKEN, Hub
from relex_ext import extrapolate, push
from relex_ext.cards import hub_id
from relex_ext.cli import main
from relex_ext.errors import OutputError

# huggingface_hub uploads files with what its HTTP library deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

MODEL = {"model.embed_tokens.weight": Spec((33, 7)), "b": Spec((3,), "F32", ("F32",))}
MAIN = "import sys; from relex_ext.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "local", (1, 2, 3), MODEL)


@pytest.fixture
def logged_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def made(run: RunFolder, tmp_path: Path, targets: list[float]) -> Path:
    extrapolate(run.base, run.checkpoints, targets, tmp_path / "out", progress=False)
    return tmp_path / "out"


def card_in(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


# ---- cards -------------------------------------------------------------------------------------


def test_a_card_of_a_base_on_the_hub(tmp_path: Path, hub: Hub, run: RunFolder) -> None:
    (run.base / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n# Base\n")
    hub.upload("org/base", run.base)
    command = ["extrapolate", "--base", "org/base", "--checkpoints", str(run.checkpoints)]
    command += ["--target-step", "6", "--out", str(tmp_path / "out"), "-q"]
    assert main(command) == 0
    card = card_in(tmp_path / "out/step_6")
    assert card.data.to_dict() == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "other",
        "license_name": "mine",
        "tags": ["relex", "rlvr", "extrapolated"],
    }
    assert f"    relex {' '.join(command)}\n" in card.text
    assert "**Verdict on a forecast of this step: no-go: 3 checkpoints are too few" in card.text
    assert "over the base `org/base`" in card.text


def test_a_card_of_a_base_here(tmp_path: Path, run: RunFolder) -> None:
    card = card_in(made(run, tmp_path, [6]) / "step_6")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "tags": ["relex", "rlvr", "extrapolated"],
    }
    assert "Made by" not in card.text


@pytest.mark.parametrize(
    ("noted", "found"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"), ("/data/base", None), ("./base", None),
        ("gpt2", None), ("a/b/c", None), (7, None), ("hf://", None), (None, None),
    ],
)  # fmt: skip
def test_the_base_that_a_config_names(tmp_path: Path, noted: object, found: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": noted}))
    assert hub_id(tmp_path) == found


@pytest.mark.parametrize("config", ["", "[]", "{", '{"_name_or_path": [1]}'])
def test_a_config_that_names_none(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert hub_id(tmp_path) is None


@pytest.mark.parametrize(
    "card", ["", "# A", "---\n: {\n---\n", "---\nlicense: [mit]\n---\n", "---\n- 1\n---\n"]
)
def test_a_license_that_cannot_be_read(tmp_path: Path, run: RunFolder, card: str) -> None:
    (run.base / "README.md").write_text(card)
    found = card_in(made(run, tmp_path, [6]) / "step_6")
    assert "license" not in found.data.to_dict()


# ---- pushing -----------------------------------------------------------------------------------


def pulled(repo: str, revision: str) -> dict[str, str]:
    folder = snapshot_download(repo, revision=revision)
    found = model_digest(Path(folder))
    del found[".gitattributes"]
    return found


def test_pushed_and_pulled(tmp_path: Path, logged_in: Hub, run: RunFolder) -> None:
    """The same bytes; weights that were there under another name are gone, other files are not."""
    out = made(run, tmp_path, [6])
    before = {"model-00001-of-00002.safetensors": b"old", "eval/model.txt": b"kept"}
    logged_in.upload("org/forecast", run.base)
    logged_in.repos["org/forecast"].commit("main", before)
    assert push(out, "org/forecast") == {"step_6": f"{logged_in.url}/org/forecast/tree/main"}
    found = pulled("org/forecast", "main")
    assert found.pop("eval/model.txt")
    assert found == model_digest(out / "step_6")
    again = extrapolate("org/forecast", run.checkpoints, 6, tmp_path / "more", progress=False)
    assert again.weights is not None


def test_a_branch_for_each_of_several(tmp_path: Path, logged_in: Hub, run: RunFolder) -> None:
    out = made(run, tmp_path, [6, 7.5])
    addresses = push(out, "org/forecast", private=True)
    assert list(addresses) == ["step_6", "step_7.5"]
    for target, address in addresses.items():
        assert address == f"{logged_in.url}/org/forecast/tree/{target}"
        assert pulled("org/forecast", target) == model_digest(out / target)
    assert logged_in.repos["org/forecast"].private
    assert push(out, "org/forecast") == addresses, "once more changes nothing"
    with pytest.raises(OutputError, match=r"^revision: expected one target to push to v2"):
        push(out, "org/forecast", revision="v2")


def test_pushed_when_it_is_complete(tmp_path: Path, logged_in: Hub, run: RunFolder) -> None:
    out = tmp_path / "out"
    status, printed, err = children.run(
        MAIN, "extrapolate", "--base", run.base, "--checkpoints", run.checkpoints, "--target-step",
        6, "--out", out, "--push-to", "org/new", "--push-revision", "v1", HF_TOKEN=TOKEN,
    )  # fmt: skip
    assert status == 0, err
    assert printed.splitlines()[-1] == f"{logged_in.url}/org/new/tree/v1"
    assert pulled("org/new", "v1") == model_digest(out / "step_6")


def test_a_push_that_fails_leaves_the_output_complete(
    tmp_path: Path, hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = ["extrapolate", "--base", str(run.base), "--checkpoints", str(run.checkpoints)]
    command += ["--target-step", "6", "--out", str(out), "--push-to", "org/new", "--private", "-q"]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "relex: error: org/new: cannot be pushed to without a token; log in (hf auth login)\n"
    )
    assert not out.exists(), "found before the work"
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert main(command) == 2
    then = f"relex push {out} --to org/new --private"
    assert capsys.readouterr().err == (
        "relex: error: org/new: the Hub refuses the token, or asks for one; log in again "
        f"(hf auth login); {out} is complete: {then}\n"
    )
    assert not hub.repos
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(then.split()[1:]) == 0
    assert capsys.readouterr().out == f"{hub.url}/org/new/tree/main\n"
    assert pulled("org/new", "main") == model_digest(out / "step_6")


def refused(message: str, out: Path, to: str) -> None:
    with pytest.raises(OutputError, match="^" + re.escape(message)) as caught:
        push(out, to)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_pushed_to(
    tmp_path: Path, logged_in: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made(run, tmp_path, [6])
    for name in ("forecast", "a/b/c", "org/x@main", "org/ x"):
        refused(f"{name}: expected the name of a repository, org/repo", out, name)
    refused("org/a--b: no name that a repository can have", out, "org/a--b")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("org/new: the Hub cannot be read", out, "org/new")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("org/new: cannot be pushed to while HF_HUB_OFFLINE is set", out, "org/new")


def test_options_that_do_not_fit(
    tmp_path: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extrapolate", "--base", str(run.base), "--checkpoints", str(run.checkpoints)]
    command += ["--target-step", "6", "--out", str(tmp_path / "out")]
    assert main([*command, "--private"]) == 2
    assert "push_to: expected a repository beside private" in capsys.readouterr().err
    several = ["--target-step", "7", "--push-to", "org/x", "--push-revision", "v1"]
    assert main([*command, *several]) == 2
    assert "push_revision: expected one target step, found several" in capsys.readouterr().err
