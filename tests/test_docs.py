"""The documentation: its commands parse, its links hold in both places, nothing is left out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mkdocs.exceptions import PluginError

import relex_ext
from pages import PAGES, relink
from picture import standalone
from reference import check_names, command_line, help_of
from relex_ext.cli import COMMANDS, build_parser
from relex_ext.scores import Score
from roles import links

ROOT = Path(__file__).resolve().parent.parent
PLACES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / path for path in PAGES)])


def commands(text: str) -> Iterator[str]:
    """Every ``relex`` that begins a line of an indented or fenced block, its continuations joined.
    With something left out (…) or open quotes it is an abridgement, not a command."""
    joined = text.replace("\\\n", " ")
    for line in re.findall(r"^(?: {4}|(?<=```sh\n))(relex .*)$", joined, re.MULTILINE):
        if "…" not in line and line.count("'") % 2 == 0:
            yield line


def test_every_command_parses() -> None:
    found = [
        (place.name, command) for place in PLACES for command in commands(place.read_text("utf-8"))
    ]
    assert len(found) >= 6
    for place, command in found:
        words = shlex.split(command, comments=True)[1:]
        try:
            build_parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{place}: {command}")


def test_links_of_the_readme_become_links_between_pages() -> None:
    text = (
        "[a](docs/gpu.md#streaming) [b](examples/tiny_grpo/README.md) [c](https://x.y/z.md) [d](#e)"
    )
    assert relink(text, "index.md") == (
        "[a](gpu.md#streaming) [b](tiny_grpo.md) [c](https://x.y/z.md) [d](#e)"
    )


def test_links_upward_and_to_what_the_site_lacks() -> None:
    text = "[a](../README.md) [b](../benchmarks/results) [c](parity.md) [d](nowhere.md)"
    assert relink(text, "gpu.md") == "[a](index.md) b [c](parity.md) [d](nowhere.md)"
    there = "https://forge.example/relex_ext"
    assert relink(text, "gpu.md", f"{there}/") == (
        f"[a](index.md) [b]({there}/blob/main/benchmarks/results) [c](parity.md) [d](nowhere.md)"
    )


def test_the_command_line_page_has_every_option() -> None:
    page = command_line()
    for name in COMMANDS:
        said = help_of(name)
        assert said.startswith(f"usage: relex {name} ")
        assert said.strip() in page
    assert "--memory-limit" in help_of("extrapolate")


def test_the_python_page_has_every_public_name_once() -> None:
    page = (ROOT / "docs/api.md").read_text("utf-8")
    check_names(page)
    for wrong in (page.replace("::: relex_ext.gram\n", ""), page + "\n::: relex_ext.gram\n"):
        with pytest.raises(PluginError, match="expected each public name once"):
            check_names(wrong)


def test_docstrings_refer_by_links() -> None:
    said = links("see :func:`scan`, :class:`~relex_ext.Scan` and :mod:`relex_ext.scores`")
    assert said == ("see [`scan`][relex_ext.scan], [`Scan`][relex_ext.Scan] and `relex_ext.scores`")


def test_picture() -> None:
    trained = [Score("trained", None, step, None, None, 0.4 + step / 500) for step in (0, 20, 40)]
    forecasts = [Score("forecast", 20, 40, "relex", 1.0, 0.47, 0.01)]
    svg = standalone([*trained, *forecasts])
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{*}circle")) == 4
    texts = {"".join(text.itertext()) for text in root.findall(".//{*}text")}
    assert {"trained", "forecast", "from 20", "step"} <= texts
    assert "prefers-color-scheme:dark" in svg


def test_versions_agree() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{relex_ext.__version__}"' in project
    assert f"version: {relex_ext.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"## {relex_ext.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
