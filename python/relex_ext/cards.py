"""The model card of a forecast: what it is made from, and whether to believe it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relex_ext import __version__
from relex_ext.advice import advice
from relex_ext.evidence.verdict import Verdict


def card(
    base: Path, steps: Sequence[int], target: float, method: str, strength: float,
    verdict: Verdict | None,
) -> bytes:  # fmt: skip
    """A Markdown card with the metadata that the Hugging Face Hub reads.

    ``verdict``: None where the forecast is not of a kind that can be judged from its scan.
    """
    lines = [
        "---", "library_name: transformers", "tags:", "- relex", "---", "",
        f"# Step {target:g}, extrapolated",
        "",
        f"These weights were not trained. [RELEX](https://arxiv.org/abs/2605.21468) (relex_ext "
        f"{__version__}, method `{method}`, strength λ = {strength:.3g}) extrapolated them from "
        f"{len(steps)} checkpoints of an RLVR run, steps {steps[0]} to {steps[-1]}, over the base "
        f"`{base.name}`.",
        "",
    ]  # fmt: skip
    if verdict is not None:
        lines += [
            f"**Verdict on a forecast of this step: {verdict.sentence}**",
            "",
            *_otherwise(advice(verdict, method, strength)),
            "| what decided | found | needed |",
            "| --- | ---: | ---: |",
            *(f"| {r.what} | {r.found:.3g} | {r.needed} {r.limit:.3g} |" for r in verdict.reasons),
            "",
        ]
    lines += ["Evaluate a forecast before you rely on it. `relex.json` says more."]
    return ("\n".join(lines) + "\n").encode()


def _otherwise(text: str) -> list[str]:
    return [f"These weights are not what it recommends: {text}.", ""] if text else []
