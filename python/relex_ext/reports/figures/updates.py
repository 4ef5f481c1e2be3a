"""Where the run jumps or repeats, and whether its updates go on in the same direction."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from relex_ext.evidence.portraits import Evidence
from relex_ext.reports.axes import plot, span
from relex_ext.reports.figures import Figure
from relex_ext.reports.scene import TEXT, Scene, text_width
from relex_ext.reports.words import count, fixed, number, step


def figure(evidence: Evidence, sizes: Sequence[float]) -> Figure:
    """``sizes``: of the update that led to each of the steps."""
    gaps = sorted(evidence.persistence)
    kinds = (("jump", evidence.jumps), ("repeat", evidence.duplicates))
    found = " and ".join(count(len(list_), noun) for noun, list_ in kinds if list_)
    lead = found or "No checkpoint jumps or repeats the one before"
    if gaps:
        near = evidence.persistence[gaps[0]]
        lead += (
            f"; neighbouring updates have a cosine of {number(near.value, 3)}, "
            f"a random walk's {number(near.null)}."
        )
    else:
        lead += "."

    def draw(width: float) -> Scene:
        scene = Scene(width)
        height = 220.0
        scene.text(0, TEXT, "distance from the one before", "title")
        scene.text(width, TEXT, "grey: median", "null-text", "end")
        _sizes(scene, (0, TEXT + 12, width, TEXT + 12 + height), evidence, sizes)
        scene.height = TEXT + 12 + height
        if gaps:
            top = scene.height + 26
            scene.text(0, top + TEXT, "cosine between updates", "title")
            scene.text(width, top + TEXT, "grey: random walk", "null-text", "end")
            box = (0.0, top + TEXT + 12, width, top + TEXT + 12 + height)
            _persistence(scene, box, evidence)
            scene.height = box[3]
        return scene

    marks = [f"step {step(s)} is {number(x, 1)} times the usual" for s, x in evidence.jumps]
    marks += [f"step {step(b)} repeats step {step(a)}" for a, b in evidence.duplicates]
    return Figure(
        "updates",
        "Jumps, repeats and persistence",
        lead,
        f"Update sizes against the step, and cosine between updates by gap. {lead} "
        + "; ".join(marks),
        "Above: the distance of each checkpoint from the one before. Circled: far larger than "
        "usual, or nothing at all. Below: the cosine between updates that far "
        "apart, filled where chance reaches it in 5\u00a0% of cases at most. A random walk has "
        "none; a drift keeps it over any distance.",
        draw,
    )


def _sizes(
    scene: Scene,
    box: tuple[float, float, float, float],
    evidence: Evidence,
    sizes: Sequence[float],
) -> None:
    steps = evidence.steps
    high = max(max(sizes, default=0.0) * 1.2, 1e-300)
    frame = plot(scene, box, (min(0, steps[0]), steps[-1]), (0.0, high), x_title="step")
    usual = median(sizes)
    frame.level(usual, "null-thin")
    frame.scene.line(frame.points(steps, sizes), "measured-thin")
    frame.scene.dots(frame.points(steps, sizes), "measured", 2.4 if len(steps) < 120 else 1.8)
    by_step = dict(zip(steps, sizes, strict=True))
    notes = [(s, f"{step(s)}: {number(x, 1)} ×") for s, x in evidence.jumps if s in by_step]
    notes += [(b, f"{step(b)}: repeat") for _, b in evidence.duplicates if b in by_step]
    free = float("-inf")
    for at, words in sorted(notes):
        x, y = frame.at(at, by_step[at])
        for radius, style in ((7.0, "alarm"), (5.4, "hole")):
            scene.dots([(x, y)], style, radius)
        scene.dots([(x, y)], "measured", 2.4)
        half = text_width(words) / 2
        centre = min(max(x, frame.x.start + half), box[2] - half)
        if centre - half >= free:  # further notes stand in the list of warnings
            near = [py for px, py in frame.points(steps, sizes) if abs(px - centre) <= half + 3]
            scene.text(centre, min([y, *near]) - 12, words, "alarm-text", "middle")
            free = centre + half + 6


def _persistence(scene: Scene, box: tuple[float, float, float, float], evidence: Evidence) -> None:
    """Gaps double, so they are placed evenly."""
    gaps = sorted(evidence.persistence)
    found = [evidence.persistence[gap] for gap in gaps]
    low, high = span([c.value for c in found] + [0.01], zero=True, margin=0.25)
    low = min(low, -0.2 * high)
    frame = plot(
        scene, box, (-0.5, len(gaps) - 0.5), (low, high), x_ticks=range(len(gaps)),
        x_labels=[str(gap) for gap in gaps], x_title="checkpoints apart",
    )  # fmt: skip
    places = [frame.at(i, c.value) for i, c in enumerate(found)]
    base = [frame.at(i, c.null) for i, c in enumerate(found)]
    frame.scene.line([(frame.x.start, base[0][1]), *base, (frame.x.end, base[-1][1])], "null-line")
    scene.segments(zip(base, places, strict=True), "measured-line")
    sure = [c.p is None or c.p <= 0.05 for c in found]
    scene.dots([p for p, yes in zip(places, sure, strict=True) if yes], "measured", 4.5)
    scene.rings([p for p, yes in zip(places, sure, strict=True) if not yes], "measured", 4.5)
    digits = 2 if high > 0.2 else 3
    texts = [fixed(c.value, digits) for c in found]
    room = (frame.x.end - frame.x.start) / len(found)
    every = 1 if max(map(text_width, texts)) + 4 <= room else 2
    for (x, y), compared, text in list(zip(places, found, texts, strict=True))[::every]:
        half = text_width(text) / 2
        centre = min(max(x, frame.x.start + half), frame.x.end - half)
        height = y - 9 if compared.value >= compared.null else y + 9 + TEXT * 0.7
        scene.text(centre, height, text, "measured-text", "middle")
