"""The report in a real browser: a phone and a desk, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chromium import Chromium, find_chromium
from relex_ext import report
from reports import made_scan, write_rows

PROGRAM = find_chromium()

pytestmark = pytest.mark.skipif(
    PROGRAM is None,
    reason="no Chromium on the PATH and none in the environment variable CHROMIUM",
)

WIDTHS = {390: "narrow", 1200: "wide"}

FAULTS = """(() => {
  const faults = [];
  const name = (node) => `${node.closest("svg").getAttribute("class")} ` +
    `${node.closest("section").id}: ${node.textContent}`;
  const edge = document.scrollingElement.clientWidth;
  if (document.scrollingElement.scrollWidth > innerWidth) faults.push("the page scrolls sideways");
  for (const node of document.querySelectorAll("main *")) {
    if (node.closest("svg, .scroll") && !node.matches("svg, .scroll")) continue;
    if (node.getBoundingClientRect().right > edge + 0.5) faults.push(`too wide: ${node.outerHTML}`);
    const size = parseFloat(getComputedStyle(node).fontSize);
    if (size < 14 && node.tagName !== "SUB") faults.push(`${size} px: ${node.outerHTML}`);
  }
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width) continue;
    const placed = [];
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      const scale = frame.width / svg.viewBox.baseVal.width;
      if (14 * scale < 13.99) faults.push(`${14 * scale} px: ${name(text)}`);
      if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
          box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
        faults.push(`outside its figure: ${name(text)}`);
      // Letters fill about the middle half of their line.
      const core = [box.left, box.right, box.top + box.height / 4, box.bottom - box.height / 4];
      for (const [other, words] of placed)
        if (core[0] < other[1] && other[0] < core[1] && core[2] < other[3] && other[2] < core[3])
          faults.push(`${name(text)} lies on ${words}`);
      placed.push([core, text.textContent]);
    }
  }
  return faults;
})()"""

COLOURS = """(() => {
  const of = (node, name) => getComputedStyle(node)[name];
  const bar = document.querySelector("#variance svg rect.measured");
  return [of(document.body, "backgroundColor"), of(document.body, "color"), of(bar, "fill")];
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    return report(
        made_scan(frozen="model.norm.weight"), folder / "report.html",
        scores=[write_rows(folder / "scores.csv")],
    ).page  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with Chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_layout(browser: Chromium, page: Path, width: int, theme: str) -> None:
    browser.open(page, width, theme)
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate(FAULTS) == []
    shown = browser.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.clientWidth).map(s => s.classList[0])"
    )
    assert shown == [WIDTHS[width]] * 6
    assert browser.requests == [page.as_uri()]
    assert browser.errors == []


def test_figures_follow_the_theme(browser: Chromium, page: Path) -> None:
    browser.open(page, 390, "light")
    light = browser.evaluate(COLOURS)
    browser.open(page, 390, "dark")
    dark = browser.evaluate(COLOURS)
    assert light[0] == "rgb(253, 253, 252)" and dark[0] == "rgb(20, 23, 26)"
    assert all(a != b for a, b in zip(light, dark, strict=True))


def test_tables_sort(browser: Chromium, page: Path) -> None:
    browser.open(page, 1200, "light")
    column = (
        "(() => { const t = [...document.querySelectorAll('table')].at(-1);"
        "const head = t.tHead.rows[0].cells[{0}];"
        "head.querySelector('button').click();"
        "return [head.ariaSort, [...t.tBodies[0].rows].map(r => r.cells[{0}].dataset.v)]; })()"
    )
    order, values = browser.evaluate(column.replace("{0}", "1"))
    energies = [float(value) for value in values]
    assert order == "descending" and energies == sorted(energies, reverse=True)
    order, values = browser.evaluate(column.replace("{0}", "1"))
    assert order == "ascending" and [float(v) for v in values] == energies[::-1]
    order, names = browser.evaluate(column.replace("{0}", "0"))
    assert len(names) == len(set(names)) == len(energies)
    assert browser.errors == []
