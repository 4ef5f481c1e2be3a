"""Contents and figures as one HTML page that needs nothing beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from math import floor, isfinite

from relex_ext.evidence.verdict import Verdict
from relex_ext.reports import publish, tables
from relex_ext.reports.contents import Contents
from relex_ext.reports.figures import NARROW, WIDE, Figure
from relex_ext.reports.svg import to_svg
from relex_ext.reports.theme import css
from relex_ext.reports.words import count, listed, number, short_name, step

DEFINED = {
    "Δ_t": "Weights at step t minus the weights of the base.",
    "G": "⟨Δ_s, Δ_t⟩ for all pairs of steps: the only thing the scan keeps of a tensor.",
    "Energy": "Σ_t ‖Δ_t‖², the trace of G.",
    "Explained variance": "Share of the energy in the leading 1, 2, … singular directions.",
    "Random walk": "The same number of steps, each increment in a new direction. It looks nearly "
    "rank 1 and linear, and cannot be forecast.",
    "p": "Share of simulated random walks that reach at least the measured value.",
    "Coefficient c": "⟨Δ_t, v⟩, with v the leading direction of the steps it was fitted on.",
    "R²": "1 − SSE/SST of the least-squares line through c against the step.",
    "R² outside": "The same on steps after those that gave v and the line; below 0 where the line "
    "misses by more than their own mean does.",
    "Straightness": "‖Δ_T‖² / Σ_t ‖Δ_t − Δ_{t−1}‖²: 1 for a random walk, T for a straight line.",
    "Skill": "1 − SSE/SSE(newest): how much closer to the true checkpoint the forecast is than the "
    "newest checkpoint that it saw.",
    "Cosine": "Between the forecast's and the true displacement from the newest checkpoint.",
    "λ": "Strength: the forecast's displacement is multiplied by it; 0 stays at the newest.",
    "Horizon": "The last step that the recommended method should be asked for.",
}

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_MOOD = {"go": "go", "no-go": "no"}


def page(contents: Contents, figures: Sequence[Figure]) -> str:
    evidence = contents.evidence
    home = files("relex_ext.reports")
    style = home.joinpath("style.css").read_text("utf-8")
    script = home.joinpath("sort.js").read_text("utf-8")
    sections = "\n".join(_section(figure, _extra(figure, contents)) for figure in figures)
    about = contents.about
    tensors = len(evidence.tensors) + len(evidence.frozen)
    span = f"steps {evidence.steps[0]} to {evidence.steps[-1]}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
{publish.MARK}
<meta name="color-scheme" content="light dark">
<title>{escape(about["scan"])}: {escape(contents.verdict.decision)}</title>
<style>
{css()}
{style}</style>
</head>
<body>
<main>
<header class="{_MOOD.get(contents.verdict.decision, "maybe")}">
<p class="about">{escape(about["scan"])} · {count(tensors, "tensor")} ·
{count(len(evidence.steps), "checkpoint")}, {span}</p>
{_verdict(contents.verdict)}
{_warnings(contents)}
</header>
{sections}
<section>
<h2>Every number</h2>
{_details(contents)}
</section>
<footer>
<p><code>{escape(about["command"])}</code></p>
<p>{escape(about["versions"])}</p>
</footer>
</main>
<script>
{script}</script>
</body>
</html>
"""


def _verdict(verdict: Verdict) -> str:
    claim, stop, words = re.split(r"([:,]|$)", verdict.sentence, maxsplit=1)
    reasons = "\n".join(
        f"<li><b>{number(r.found)}</b><span>{escape(r.what)}</span>"
        f"<small>{r.needed} {number(r.limit)}</small></li>"
        for r in verdict.reasons
    )
    horizon = "none"
    if verdict.horizon is not None:
        near = isfinite(verdict.horizon)
        horizon = f"step {step(floor(verdict.horizon))}" if near else "none in sight"
    advice = {
        "method": verdict.method,
        "strength λ": number(verdict.strength),
        "horizon": horizon,
        "asked for": f"step {step(verdict.target)}",
    }
    pairs = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in advice.items())
    return f"""<h1><b>{escape(claim)}</b>{escape(stop + words)}</h1>
<ul class="reasons">
{reasons}
</ul>
<dl class="advice">{pairs}</dl>"""


def _warnings(contents: Contents) -> str:
    evidence = contents.evidence
    found = []
    if evidence.duplicates:
        pairs = listed([f"{a} and {b}" for a, b in evidence.duplicates])
        found.append(f"Steps with the same weights: {pairs}.")
    if evidence.jumps:
        jumps = listed([f"step {s} ({number(x, 1)} × the usual)" for s, x in evidence.jumps])
        found.append(f"Jumps: {jumps}.")
    if evidence.gaps:
        gaps = listed([f"{a} to {b}" for a, b in evidence.gaps])
        found.append(f"Gaps between steps: {gaps}.")
    if evidence.frozen:
        names = listed([short_name(name) for name in evidence.frozen], 4)
        found.append(f"{count(len(evidence.frozen), 'tensor')} never moved: {names}.")
    if not found:
        return ""
    lines = "\n".join(f"<p>{escape(line)}</p>" for line in found)
    return f'<div class="warnings" role="note">\n{lines}\n</div>'


def _section(figure: Figure, extra: str) -> str:
    wide = to_svg(figure.draw(WIDE), figure.alt, "wide")
    narrow = to_svg(figure.draw(NARROW), figure.alt, "narrow")
    return f"""<section id="{figure.key}">
<h2>{escape(figure.title)}</h2>
<p>{escape(figure.lead)}</p>
<figure>
{wide}
{narrow}
<figcaption>{_typeset(figure.note)}</figcaption>
</figure>
{extra}</section>"""


def _typeset(text: str) -> str:
    """HTML, with Δ_t and Δ_{t−1} set as they are meant."""
    return re.sub(r"_(?:\{([^}]*)\}|(\w))", r"<sub>\1\2</sub>", escape(text))


def _extra(figure: Figure, contents: Contents) -> str:
    if figure.key != "skill":
        return ""
    rows = tables.methods(contents.backtest, contents.verdict.method)
    return f"<h3>All methods at full strength: median, and quartiles over the folds</h3>\n{rows}\n"


def _details(contents: Contents) -> str:
    evidence = contents.evidence
    energy = evidence.whole.energy
    folds = []
    for name, noun, found in (
        ("By module type", "module type", evidence.modules),
        ("By layer", "layer", evidence.layers),
        ("By tensor", "tensor", evidence.tensors),
    ):
        if not found:
            continue
        words = count(len(found), "row")
        if len(found) > tables.MOST_ROWS:
            words = f"the {tables.MOST_ROWS} largest of {len(found)}; all in the JSON"
        body = tables.portraits(found, energy, noun)
        folds.append(_fold(name, words, f"<p>Grey: what a random walk shows.</p>\n{body}"))
    terms = "".join(f"<dt>{_typeset(k)}</dt><dd>{_typeset(v)}</dd>" for k, v in DEFINED.items())
    folds.append(_fold("How each number is defined", "", f'<dl class="defined">{terms}</dl>'))
    return "\n".join(folds)


def _fold(name: str, note: str, body: str) -> str:
    small = f"<small>{note}</small>" if note else ""
    return f"<details><summary>{name}{small}</summary>\n{body}\n</details>"
