"""Scores against the step: trained, rebuilt at rank 1 and forecast (the paper's Figures 1, 2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from relex_ext.reports.axes import Plot, plot, span, spread
from relex_ext.reports.figures import Figure
from relex_ext.reports.scene import TEXT, Scene, text_width
from relex_ext.reports.words import count, number, step
from relex_ext.scores import Score, plain

_PANELS = 4
"""At most so many methods are drawn; all of them are in the JSON."""

Group = tuple[str, tuple[Score, ...]]


def figure(scores: Sequence[Score]) -> Figure:
    trained = _sorted(s for s in scores if s.kind == "trained")
    made = [s for s in scores if s.kind != "trained"]
    groups = _groups(made)
    shown = groups[:_PANELS] or [("", ())]
    forecasts = [s for s in made if s.kind == "forecast"]
    lead = f"{count(len(trained), 'trained model')}, {count(len(forecasts), 'forecast')}"
    by_step = {s.step: s.score for s in trained}
    pairs = [(s, by_step[s.step]) for s in forecasts if s.step in by_step]
    if pairs:
        best = max(pairs, key=lambda pair: pair[0].step - (pair[0].prefix or 0))
        lead += (
            f"; the farthest, {best[0].method} of step {step(best[0].step)} from step "
            f"{best[0].prefix}, scores "
            f"{number(best[0].score, 3)} where the run itself has {number(best[1], 3)}"
        )
    height = 300.0

    def draw(width: float) -> Scene:
        named = len(groups) > 1
        each = height + (TEXT + 12 if named else 0)
        keys = 2 * TEXT + 22 if width < 600 else TEXT + 14
        scene = Scene(width, keys + each * len(shown) + 22 * (len(shown) - 1))
        _key(scene, width, made)
        for i, (title, rows) in enumerate(shown):
            top = keys + i * (each + 22)
            if named:
                scene.text(0, top + TEXT, title, "title")
            box = (0.0, top + each - height, width, top + each)
            _panel(scene, box, trained, rows, [s.score for s in scores])
        return scene

    words = "; ".join(
        f"{s.kind} {'' if s.prefix is None else f'from {s.prefix} '}of step {step(s.step)}: "
        f"{number(s.score, 3)}"
        for s in [*trained, *forecasts][:40]
    )
    note = "Bars are ± one standard error. Dashed: forecasts, from the step in the label on."
    if len(groups) > _PANELS:
        note += f" {len(groups) - _PANELS} further methods are in the JSON."
    return Figure(
        "accuracy", "What the models score", f"{lead}.", f"Score against step. {words}.", note, draw
    )


def _sorted(scores: Iterable[Score]) -> tuple[Score, ...]:
    return tuple(sorted(scores, key=lambda s: s.step))


def _groups(made: Sequence[Score]) -> list[Group]:
    """By method and strength, those with most rows first."""
    found: dict[str, list[Score]] = {}
    for score in made:
        strength = "" if score.strength is None else f", λ = {plain(score.strength)}"
        found.setdefault(f"{score.method}{strength}", []).append(score)
    return sorted(
        ((name, _sorted(rows)) for name, rows in found.items()), key=lambda group: -len(group[1])
    )


def _key(scene: Scene, width: float, made: Sequence[Score]) -> None:
    kinds = {s.kind for s in made}
    x, y = 0.0, TEXT
    for text, style, kind in (
        ("trained", "measured-title", "trained"),
        ("rank-1 reconstruction", "rebuilt-title", "reconstruction"),
        ("forecast", "forecast-title", "forecast"),
    ):
        if kind != "trained" and kind not in kinds:
            continue
        size = text_width(text, bold=True)
        if x + size > width:
            x, y = 0.0, y + TEXT + 8
        scene.text(x, y, text, style)
        x += size + 18


def _panel(
    scene: Scene,
    box: tuple[float, float, float, float],
    trained: Sequence[Score],
    rows: Sequence[Score],
    values: Sequence[float],
) -> None:
    prefixes = sorted({s.prefix for s in rows if s.kind == "forecast" and s.prefix is not None})
    label = max((text_width(f"from {p}") for p in prefixes), default=0.0)
    everything = [*trained, *rows]
    right = max(s.step for s in everything)
    edge = box[2] - (label + 12 if label else 0)
    frame = plot(scene, (box[0], box[1], edge, box[3]), (0.0, right), span(values), x_title="step")
    _errors(frame, trained, "measured-thin")
    frame.scene.line(_places(frame, trained), "measured-line")
    frame.scene.dots(_places(frame, trained), "measured", 3)
    rebuilt = [s for s in rows if s.kind == "reconstruction"]
    _errors(frame, rebuilt, "rebuilt-thin")
    frame.scene.rings(_places(frame, rebuilt), "rebuilt", 4)
    ends = []
    for prefix in prefixes:
        line = [s for s in rows if s.kind == "forecast" and s.prefix == prefix]
        start = [s for s in trained if s.step == prefix]
        _errors(frame, line, "forecast-thin")
        frame.scene.line(_places(frame, [*start, *line]), "forecast-dash")
        frame.scene.dots(_places(frame, line), "forecast", 3.5)
        ends.append(frame.at(line[-1].step, line[-1].score))
    heights = spread([y for _, y in ends], TEXT + 3, frame.y.end, frame.y.start)
    for prefix, (x, end), y in zip(prefixes, ends, heights, strict=True):
        scene.segments([((x + 6, end), (edge + 8, y))], "forecast-thin")
        scene.text(edge + 12, y + TEXT * 0.35, f"from {prefix}", "forecast-text")


def _places(frame: Plot, scores: Sequence[Score]) -> list[tuple[float, float]]:
    return [frame.at(s.step, s.score) for s in scores]


def _errors(frame: Plot, scores: Sequence[Score], style: str) -> None:
    bars = (
        (frame.at(s.step, s.score - s.error), frame.at(s.step, s.score + s.error))
        for s in scores
        if s.error
    )
    frame.scene.segments(bars, style)
