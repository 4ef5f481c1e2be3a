"""An output that is complete here, onto the Hub: one commit for each target."""

from __future__ import annotations

import glob
from pathlib import Path

from huggingface_hub import constants, get_token

from relex_ext.checkpoints import INDEX
from relex_ext.errors import OutputError
from relex_ext.hub.bars import bars
from relex_ext.hub.failures import telling
from relex_ext.hub.names import HubName, is_repository
from relex_ext.hub.repositories import api
from relex_ext.output import CARD
from relex_ext.steps import PathLike
from relex_ext.verifying.noted import read_record

STALE = ("model*.safetensors", INDEX)
"""Weights that a branch may have from before: transformers would take them for a part of these."""


def check_push(repo: str) -> None:
    """Find out before the work what would refuse its result, as far as can be known here.

    Raises:
        OutputError: no name of a repository, or nobody is logged in.
    """
    if not is_repository(repo):
        raise OutputError(f"{repo}: expected the name of a repository, org/repo")
    if constants.HF_HUB_OFFLINE:
        raise OutputError(f"{repo}: cannot be pushed to while HF_HUB_OFFLINE is set")
    if not get_token():
        raise OutputError(f"{repo}: cannot be pushed to without a token; log in (hf auth login)")


def push(
    out: PathLike,
    to: str,
    *,
    private: bool = False,
    revision: str | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Upload every model of an output; its weights, config, tokenizer and card, nothing else.

    One model goes to ``revision``, or to main. Several go to a branch each, named after their
    folders: ``from_pretrained("org/repo", revision="step_500")``.

    Args:
        out: what :func:`extrapolate` or :func:`combine` wrote, or a forecast that a search kept.
        to: the repository, ``org/repo``; made if it does not exist.
        private: make it a private one.
        revision: the branch, made if it does not exist.
        progress: show progress bars.

    Returns:
        Target's name → its address.

    Raises:
        InputError: ``out`` is no output.
        OutputError: the Hub refuses, or cannot be reached.
    """
    check_push(to)
    noted = read_record(Path(out))
    if revision is not None and len(noted.models) > 1:
        raise OutputError(f"revision: expected one target to push to {revision}, found several")
    several = len(noted.models) > 1
    addresses = {}
    hub = api()
    with telling(HubName(to), OutputError), bars(progress):
        hub.create_repo(to, private=private or None, exist_ok=True)
        for target, model in noted.models.items():
            branch = target if several else revision or constants.DEFAULT_REVISION
            if branch != constants.DEFAULT_REVISION:
                hub.create_branch(to, branch=branch, exist_ok=True)
            files = [*model.files, CARD]
            hub.upload_folder(
                repo_id=to, folder_path=model.folder, revision=branch,
                commit_message=f"Step {noted.targets[target]:g}, extrapolated by relex",
                allow_patterns=[glob.escape(file) for file in files],
                delete_patterns=[*STALE],
            )  # fmt: skip
            addresses[target] = f"{constants.ENDPOINT}/{to}/tree/{branch}"
    return addresses
