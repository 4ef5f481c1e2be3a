"""The model card of a forecast: what it is made from, and whether to believe it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from relex_ext import __version__
from relex_ext.advice import advice
from relex_ext.checkpoints import CONFIG, CONFIG_MOST
from relex_ext.evidence.verdict import Verdict
from relex_ext.hub.names import hub_name, origin_of
from relex_ext.output import CARD
from relex_ext.plainfiles import read_small

TAGS = ("relex", "rlvr", "extrapolated")
LICENSE = ("license", "license_name", "license_link")

_CARD_MOST = 1 << 20


def card(
    base: Path, steps: Sequence[int], target: float, method: str, strength: float,
    verdict: Verdict | None, command: str | None = None,
) -> bytes:  # fmt: skip
    """A Markdown card with the metadata that the Hugging Face Hub reads.

    ``verdict``: None where the forecast is not of a kind that can be judged from its scan;
    ``command``: what was typed, if a command made it.
    """
    # ModelCard would check this again, and bring a client of the network with it: 0.2 s.
    from huggingface_hub.repocard_data import ModelCardData

    source = hub_id(base)
    data = ModelCardData(
        base_model=source,
        base_model_relation=None if source is None else "finetune",
        library_name="transformers",
        tags=[*TAGS],
    )
    for key, value in _license_of(base).items():
        data[key] = value
    body = [
        f"# Step {target:g}, extrapolated",
        "",
        f"These weights were not trained. [RELEX](https://arxiv.org/abs/2605.21468) (relex_ext "
        f"{__version__}, method `{method}`, strength λ = {strength:.3g}) extrapolated them from "
        f"{len(steps)} checkpoints of an RLVR run, steps {steps[0]} to {steps[-1]}, over the base "
        f"`{source or base.name}`.",
        "",
    ]
    if verdict is not None:
        body += [
            f"**Verdict on a forecast of this step: {verdict.sentence}**",
            "",
            *_otherwise(advice(verdict, method, strength)),
            "| what decided | found | needed |",
            "| --- | ---: | ---: |",
            *(f"| {r.what} | {r.found:.3g} | {r.needed} {r.limit:.3g} |" for r in verdict.reasons),
            "",
        ]
    if command is not None:
        body += ["Made by", "", f"    {command}", ""]
    body += [
        "Evaluate a forecast before you rely on it. `relex.json`, beside the folder that was "
        "written, says more.",
    ]
    text = "\n".join(["---", data.to_yaml(), "---", "", *body])
    return f"{text}\n".encode()


def hub_id(folder: Path) -> str | None:
    """The repository that a model is from: where the Hub's cache has it, or its config says so."""
    origin = origin_of(folder)
    if origin is not None:
        return origin.repo
    if not os.path.lexists(folder / CONFIG):
        return None
    try:
        noted = json.loads(read_small(folder / CONFIG, CONFIG_MOST, folder)).get("_name_or_path")
        name = hub_name(noted) if isinstance(noted, str) else None
    except (ValueError, AttributeError, RecursionError):
        return None  # no usable config, or a name that is none
    return None if name is None else name.repo


def _license_of(base: Path) -> dict[str, str]:
    """What the base's card says of its license."""
    if not os.path.lexists(base / CARD):
        return {}
    from huggingface_hub import ModelCard

    try:
        text = read_small(base / CARD, _CARD_MOST, base).decode()
        if not text.startswith("---"):
            return {}
        data = ModelCard(text, ignore_metadata_errors=True).data
        found = {key: data.get(key) for key in LICENSE}
    except Exception:  # anybody's YAML: whatever its parser makes of it, it says nothing
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _otherwise(text: str) -> list[str]:
    return [f"These weights are not what it recommends: {text}.", ""] if text else []
