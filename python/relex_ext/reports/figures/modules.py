"""Where the movement is and how straight it is, by layer and module type."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from relex_ext.reports.figures import Figure
from relex_ext.reports.paths import Cell
from relex_ext.reports.scene import TEXT, Scene, text_width
from relex_ext.reports.theme import SEQUENTIAL, sequential
from relex_ext.reports.words import number, percent

_ROW = 24.0


def figure(cells: Sequence[Cell], checkpoints: int) -> Figure:
    energy = sum(cell.energy for cell in cells)
    modules: dict[str, float] = {}
    for cell in cells:
        modules[cell.place.module] = modules.get(cell.place.module, 0.0) + cell.energy
    order = sorted(modules, key=lambda m: -modules[m])
    top = order[0]
    straight = sorted((c for c in cells if c.path > 0), key=lambda c: c.straightness)
    lead = (
        f"{top} holds {percent(modules[top] / energy)} of the movement. The net movement is "
        f"{number(straight[0].straightness, 1)} to {number(straight[-1].straightness, 1)} times a "
        f"random walk's; a straight line would have {checkpoints}."
    )
    largest = max(cell.energy for cell in cells)
    span = math.log(max(checkpoints, 2))

    def draw(width: float) -> Scene:
        side_by_side = width > 600
        scene = Scene(width)
        panels: tuple[tuple[str, Callable[[Cell], float], Callable[[Cell], str], str, str], ...] = (
            (
                "energy, share of all",
                lambda c: math.sqrt(c.energy / largest),
                lambda c: percent(c.energy / energy),
                "0",
                percent(largest / energy),
            ),
            (
                "straightness, random walk = 1",
                lambda c: math.log(max(c.straightness, 1.0)) / span,
                lambda c: f"{number(c.straightness, 1)} times a random walk's",
                "1",
                str(checkpoints),
            ),
        )
        labels = [module if side_by_side else _brief(module) for module in order]
        head = max(text_width(label) for label in (*labels, "layer")) + 10
        bottom = 0.0
        if side_by_side:  # the names once, to the left of both
            size = (width - head - 28) / 2
            for i, panel in enumerate(panels):
                left = head + i * (size + 28)
                names = labels if i == 0 else []
                bottom = _heat(scene, left, 0.0, size, cells, order, names, panel)
        else:
            for panel in panels:
                start = bottom + (22 if bottom else 0)
                bottom = _heat(scene, head, start, width - head, cells, order, labels, panel)
        scene.height = bottom
        return scene

    shares = "; ".join(f"{module}: {percent(modules[module] / energy)}" for module in order)
    return Figure(
        "modules",
        "Where it moves, and how straight",
        lead,
        f"Heat maps of energy and straightness over layer and module type. Energy: {shares}.",
        "Row: module type, most energy first. Column: layer; – is what lies in no layer. "
        "Energy is coloured on a square-root scale; straightness, on a logarithmic one, is "
        "‖Δ_T‖² / Σ_t ‖Δ_t − Δ_{t−1}‖².",
        draw,
    )


def _brief(module: str) -> str:
    """``post_attention_layernorm`` → ``post_att…ernorm``."""
    return module if len(module) <= 17 else f"{module[:8]}…{module[-6:]}"


def _column(cell: Cell) -> tuple[str, int | None]:
    return cell.place.stack, cell.place.layer


def _heat(
    scene: Scene,
    left: float,
    top: float,
    width: float,
    cells: Sequence[Cell],
    order: Sequence[str],
    names: Sequence[str],
    panel: tuple[str, Callable[[Cell], float], Callable[[Cell], str], str, str],
) -> float:
    """Returns where it ends."""
    title, share, words, low, high = panel
    columns = sorted({_column(cell) for cell in cells}, key=lambda c: (c[1] is None, c))
    # What is in no layer stands a little apart.
    place = {c: i + (0.6 if c[1] is None and i else 0.0) for i, c in enumerate(columns)}
    size = min(40.0, width / (max(place.values()) + 1))
    beside = 0.0 if len(names) and width < 300 else left
    scene.text(beside, top + TEXT, title, "title")
    y0 = top + TEXT + 12
    for row, name in enumerate(names):
        y = y0 + (row + 0.5) * _ROW + TEXT * 0.35
        scene.text(left - 8, y, name, "text", "end")
    gap = 1.0 if size > 8 else 0.5
    for cell in cells:
        stack, layer = _column(cell)
        x = left + place[stack, layer] * size
        y = y0 + order.index(cell.place.module) * _ROW
        where = "no layer" if layer is None else f"{stack}.{layer}"
        scene.rect(
            x + gap / 2, y + 1, size - gap, _ROW - 2, sequential(share(cell)),
            f"{cell.place.module}, {where}: {words(cell)}",
        )  # fmt: skip
    floor = y0 + len(order) * _ROW
    every = max(1, math.ceil((text_width("00") + 6) / size))
    for i, (column, at) in enumerate(place.items()):
        far = columns[-1][1] is not None or place[columns[-1]] - at >= every
        if column[1] is None or (i % every == 0 and far):
            label = "–" if column[1] is None else str(column[1])
            scene.text(left + (at + 0.5) * size, floor + TEXT + 3, label, "soft", "middle")
    if names:
        scene.text(left - 8, floor + TEXT + 3, "layer", "soft", "end")
    y = floor + TEXT + 18
    scene.text(left, y + 12, low, "soft")
    x = left + text_width(low) + 6
    for i in range(SEQUENTIAL):
        scene.rect(x + i * 11, y, 10, 14, f"s{i}")
    scene.text(x + SEQUENTIAL * 11 + 6, y + 12, high, "soft")
    return y + 18
