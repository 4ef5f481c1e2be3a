"""Explained variance by rank, beside a random walk's."""

from __future__ import annotations

from relex_ext.evidence.portraits import Portrait
from relex_ext.reports.axes import Scale
from relex_ext.reports.figures import Figure
from relex_ext.reports.scene import TEXT, Scene
from relex_ext.reports.words import number, percent

_ROW = 34.0


def figure(whole: Portrait, ranks: int = 5) -> Figure:
    shown = whole.explained_variance[:ranks]
    first = shown[0]
    lead = (
        f"One direction in time holds {percent(first.value)} of the movement; "
        f"in a random walk it holds {percent(first.null)}."
    )
    if first.p is not None:
        lead += f" Random walks that reach as much: {percent(first.p)}."
    values = "; ".join(
        f"rank {k}: {number(c.value, 3)} against {number(c.null, 3)}"
        for k, c in enumerate(shown, 1)
    )

    def draw(width: float) -> Scene:
        scene = Scene(width, TEXT + 16 + _ROW * len(shown) + 4)
        columns = (width - 62, width)
        scale = Scale(0.0, 1.0, 26.0, columns[0] - 66)
        top = TEXT + 14
        scene.text(0, TEXT, "rank", "soft")
        scene.text(columns[0], TEXT, "measured", "measured-title", "end")
        scene.text(columns[1], TEXT, "walk", "null-title", "end")
        for k, compared in enumerate(shown):
            y = top + k * _ROW
            middle = y + _ROW / 2
            scene.text(0, middle + TEXT * 0.35, str(k + 1))
            scene.rect(scale.start, middle - 9, scale.end - scale.start, 18, "within")
            length = scale.clipped(compared.value) - scale.start
            scene.rect(scale.start, middle - 9, length, 18, "measured")
            x = scale.clipped(compared.null)
            scene.rect(x - 3, middle - 14, 6, 28, "hole")
            scene.rect(x - 1.5, middle - 13, 3, 26, "null")
            for column, value, style in (
                (columns[0], compared.value, "measured-text"),
                (columns[1], compared.null, "null-text"),
            ):
                scene.text(column, middle + TEXT * 0.35, number(value, 3), style, "end")
        return scene

    return Figure(
        "variance",
        "How much lies in few directions",
        lead,
        f"Share of the movement in the leading directions, cumulative. {values}.",
        "Bar: share of Σ‖Δ‖² in a tensor's leading 1, 2, … directions, the mean over all tensors "
        "by energy. Upright mark: random walks with the same increments. A bar that only reaches "
        "its mark proves nothing.",
        draw,
    )
