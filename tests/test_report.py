"""``relex report``: what is on the page, in the JSON and in the PNGs."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
from relex_ext import Report, Scan, report
from relex_ext.evidence.gathering import gather
from relex_ext.reports.figures import WIDE
from relex_ext.reports.paths import coefficient, update_sizes
from relex_ext.reports.png import MARGIN, SCALE
from relex_ext.reports.theme import DARK, LIGHT, STYLES, contrast, palette
from relex_ext.reports.words import number, percent
from reports import EXAMPLE, NAMES, SCORES, Page, made_scan, real_scan, write_rows

FIGURES = ("variance", "coefficients", "skill", "modules", "updates", "accuracy")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    scores = write_rows(folder / "scores.csv")
    made_scan(frozen="model.norm.weight").save(folder / "run.safetensors")
    return report(folder / "run.safetensors", folder / "page.html", scores=[scores], target_step=48)


@pytest.fixture(scope="module")
def html(done: Report) -> str:
    return done.page.read_text("utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def data(done: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.data.read_text("utf-8"))
    return found


def spaced(text: str) -> str:
    """As :attr:`Page.text` has it."""
    return " ".join(text.split())


def test_html_is_well_formed(page: Page) -> None:
    assert page.errors == []
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert [a["id"] for a in page.of("section") if "id" in a] == list(FIGURES)


def test_page_stands_alone(html: str, page: Page, tmp_path: Path) -> None:
    """Nothing is fetched: no address, no link, and a policy that forbids it."""
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w", html.split("<script>")[0])
    assert "url(" not in html and "@import" not in html and "fetch(" not in html
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "data"} & set(attributes)
    policies = [a["content"] for a in page.of("meta") if a.get("http-equiv")]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")
    assert str(tmp_path.parent) not in html and str(Path.home()) not in html


def test_verdict_on_top(done: Report, page: Page) -> None:
    verdict = done.verdict
    assert page.text.index(verdict.decision) < page.text.index("How much lies")
    for reason in verdict.reasons:
        assert (
            f"{number(reason.found)} {reason.what} {reason.needed} {number(reason.limit)}"
            in page.text
        )
    assert f"strength λ {number(verdict.strength)}" in page.text
    assert f"method {verdict.method}" in page.text
    assert "asked for step 48" in page.text


def test_warnings(done: Report, page: Page) -> None:
    evidence = done.contents.evidence
    assert evidence.duplicates == ((5, 6),)
    assert [step for step, _ in evidence.jumps] == [15]
    assert "Steps with the same weights: 5 and 6." in page.text
    assert f"step 15 ({number(evidence.jumps[0][1], 1)} × the usual)" in page.text
    assert "1 tensor never moved: norm." in page.text


def test_numbers_are_the_evidence(done: Report, page: Page) -> None:
    whole = done.contents.evidence.whole
    for compared in whole.explained_variance:
        assert number(compared.value, 3) in page.text
        assert number(compared.null, 3) in page.text
    share = spaced(percent(whole.explained_variance[0].value))
    assert f"holds {share} of the movement" in page.text
    first = done.contents.curves[0]
    assert f"has R² {number(first.r2, 3)} there and {number(first.r2_outside)}" in page.text


def test_table_of_every_tensor(done: Report, page: Page) -> None:
    evidence = done.contents.evidence
    rows = {row[0][0]: row[1:] for row in page.rows}
    for portrait in (*evidence.tensors, *evidence.modules, *evidence.layers):
        share, variance, r2, outside, straight = rows[portrait.name]
        assert share[0] == percent(portrait.energy / evidence.whole.energy)
        assert float(variance[1] or 0) == pytest.approx(
            portrait.explained_variance[0].value, rel=1e-5
        )
        assert r2[0] == f"{number(portrait.r2.value, 3)}{number(portrait.r2.null, 3)}"
        assert outside[0] == number(portrait.r2_outside)
        assert float(straight[1] or 0) == pytest.approx(portrait.straightness.value, rel=1e-5)
    assert len(evidence.tensors) == len(NAMES) - 1


def test_json_has_everything(done: Report, data: dict[str, Any]) -> None:
    contents = done.contents
    assert data["format"] == "relex-report/1"
    evidence = contents.evidence
    assert data["evidence"]["steps"] == list(evidence.steps)
    assert data["evidence"]["whole"]["energy"] == evidence.whole.energy
    assert len(data["evidence"]["tensors"]) == len(NAMES) - 1
    assert set(data["evidence"]["persistence"]) == {str(g) for g in evidence.persistence}
    assert data["verdict"]["decision"] == contents.verdict.decision
    assert [fold["skill"] for fold in data["backtest"]] == [
        fold.skill for fold in contents.backtest.folds
    ]
    assert len(data["coefficients"]) == 1 + 5
    assert len(data["updates"]) == len(evidence.steps)
    assert len(data["cells"]) == len(NAMES)
    assert len(data["scores"]) == len(SCORES)
    assert data["about"]["command"] == (
        "relex report run.safetensors --eval scores.csv --target-step 48 --out page.html"
    )
    assert "numpy" in data["about"]["versions"]


def test_pngs(done: Report) -> None:
    assert [path.name for path in done.figures] == [f"{key}.png" for key in FIGURES]
    assert done.figures[0].parent == done.page.with_name("page_files")
    for path in done.figures:
        png = path.read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n" and png[-8:-4] == b"IEND"
        width, height = struct.unpack(">II", png[16:24])
        assert width == (WIDE + 2 * MARGIN) * SCALE and 200 < height < 4000
        assert len(png) > 5000


def test_figures_speak_and_follow_the_theme(html: str, page: Page) -> None:
    figures = page.of("svg")
    assert len(figures) == 2 * len(FIGURES)
    for figure in figures:
        assert figure["role"] == "img" and len(figure["aria-label"]) > 60
        assert figure["class"] in ("wide", "narrow")
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "#" not in re.sub(r"&#\w+;", "", drawn), "a colour that no theme can change"
    light, dark = re.findall(r":root\{([^}]*)\}", html)
    for theme, block in (("light", light), ("dark", dark)):
        for name, colour in palette(theme).items():
            assert f"--{name}:{colour};" in block
    used = set(re.findall(r"var\(--([\w-]+)\)", html))
    assert used <= set(palette("light"))
    assert set(re.findall(r'class="([^"]+)"', drawn)) <= {*STYLES, "wide", "narrow"}


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(theme: dict[str, str]) -> None:
    for ground in ("page", "raised"):
        for name in ("ink", "soft", "measured", "null", "forecast", "rebuilt", "alarm"):
            assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)
    colours = palette("light" if theme is LIGHT else "dark")
    for name in colours:
        if re.fullmatch(r"d-?\d+", name):
            assert contrast(theme["ink"], colours[name]) >= 4.5, name


def test_coefficient_and_updates_against_dense() -> None:
    rng = np.random.default_rng(5)
    deltas = np.cumsum(rng.standard_normal((12, 40)) + 0.5, axis=0)
    steps = list(range(10, 130, 10))
    found = coefficient("x", deltas @ deltas.T, steps, 6)
    expected = oracle.forecast(np.zeros(40), list(deltas[:6]), steps[:6], [100.0])
    _, _, vt = np.linalg.svd(deltas[:6], full_matrices=False)
    c = deltas @ vt[0]
    c *= np.sign(c[:6].sum())
    np.testing.assert_allclose(found.values, c, rtol=1e-9)
    assert found.slope == pytest.approx(expected.slope[0], rel=1e-9)
    assert found.r2 == pytest.approx(expected.r2[0], rel=1e-9)
    line = found.slope * np.array(steps[6:]) + found.intercept
    outside = 1 - ((c[6:] - line) ** 2).sum() / ((c[6:] - c[6:].mean()) ** 2).sum()
    assert found.r2_outside == pytest.approx(outside, rel=1e-9)
    sizes = np.linalg.norm(np.diff(deltas, axis=0, prepend=0.0), axis=1)
    np.testing.assert_allclose(update_sizes(deltas @ deltas.T), sizes, rtol=1e-9)


def test_tensors_and_until(tmp_path: Path) -> None:
    name = NAMES[3]
    done = report(made_scan(), tmp_path / "r.html", tensors=[name, name], until=20)
    assert [curve.name for curve in done.contents.curves] == ["", name]
    assert done.contents.evidence.steps == tuple(range(1, 21))
    assert done.contents.verdict.target == 40
    assert len(done.contents.updates) == 20
    assert f"--until 20 --tensor {name}" in Page(done.page.read_text("utf-8")).text


@pytest.mark.parametrize(
    "scan",
    [
        made_scan(range(10, 40, 10), ["a.weight", "lm_head.weight"]),
        made_scan(frozen=NAMES[0], names=NAMES[:1]),
        made_scan([1000000 * i for i in range(1, 13)], ["model.layers.0.x<&>.weight"]),
        made_scan(
            names=[f"{s}.layers.{i}.{m}.weight" for s in "ab" for i in range(40) for m in "xy"]
        ),
        made_scan(names=[f"model.layers.0.mlp.experts.{i}.up.weight" for i in range(90)]),
    ],
    ids=["three steps", "frozen", "far steps", "two stacks", "many experts"],
)
def test_odd_scans(scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relex_ext.reports.tables.MOST_ROWS", 80)
    done = report(scan, tmp_path / "odd.html")
    page = Page(done.page.read_text("utf-8"))
    assert page.errors == []
    assert page.of("section")
    data = json.loads(done.data.read_text("utf-8"))
    moved = len(data["evidence"]["tensors"])
    assert moved + len(data["evidence"]["frozen"]) == len(scan.grams)
    assert ("the 80 largest of" in page.text) == (moved > 80)
    assert len(page.rows) < 80 + 100


@pytest.mark.skipif(
    not (EXAMPLE / "trajectory.relexrun").is_file(), reason="the example's run is not here"
)
def test_real_run(tmp_path: Path) -> None:
    scan = real_scan(tmp_path, 60)
    done = report(scan, tmp_path / "real.html")
    evidence = gather(scan)
    assert done.contents.evidence.whole == evidence.whole
    page = Page(done.page.read_text("utf-8"))
    assert page.errors == []
    assert spaced(percent(evidence.whole.explained_variance[0].value)) in page.text
    assert len(done.figures) == 5
