"""Draw the README's picture: what `make demo` scored, as an SVG for light and dark pages."""

from __future__ import annotations

import argparse
from pathlib import Path

from relex_ext.reports.figures.accuracy import figure
from relex_ext.reports.scene import Scene
from relex_ext.reports.svg import to_svg
from relex_ext.reports.theme import css
from relex_ext.scores import Score, read_scores

WIDTH, MARGIN = 720.0, 18.0
FONT = 'text{font:14px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}'


def standalone(scores: list[Score]) -> str:
    """The report's figure of scores, with its colours and a ground of its own."""
    drawn = figure(scores)
    scene: Scene = drawn.draw(WIDTH)
    used = {shape.style for shape in scene.shapes} | {"hole"}
    rules = [
        rule
        for rule in css().splitlines()
        if not rule.startswith("svg .") or rule[5 : rule.index("{")] in used
    ]
    style = "\n".join([FONT, *rules])
    width, height = WIDTH + 2 * MARGIN, scene.height + 2 * MARGIN
    ground = f'<rect class="hole" width="{width:g}" height="{height:g}" rx="6"/>'
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    inner = to_svg(scene, drawn.alt, "figure")
    place = f'x="{MARGIN:g}" y="{MARGIN:g}" width="{WIDTH:g}" height="{scene.height:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>\n{style}\n</style>\n{ground}\n'
        f"{inner.replace('<svg ', f'<svg {place} ', 1)}\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scores", type=Path, nargs="?", default=Path("runs/demo/scores.csv"))
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs/assets/forecast.svg"))
    args = parser.parse_args()
    wanted = [s for s in read_scores(args.scores) if s.kind != "reconstruction"]
    args.out.write_text(standalone(wanted), encoding="utf-8")


if __name__ == "__main__":
    main()
