"""The command line's page, from its parsers; and whether the Python page has every public name."""

from __future__ import annotations

import contextlib
import io
import os
import re
from unittest import mock

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import relex_ext
from relex_ext.cli import COMMANDS, build_parser


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    if page.file.src_uri == "api.md":
        check_names(markdown)


def command_line() -> str:
    """What ``relex --help`` and every subcommand's say."""
    parts = ["# Command line\n", _fenced(help_of())]
    for name in COMMANDS:
        parts += [f"## relex {name}\n", _fenced(help_of(name))]
    return "\n".join(parts)


def help_of(*command: str) -> str:
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "94", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        build_parser().parse_args([*command, "--help"])
    return said.getvalue()


def _fenced(text: str) -> str:
    return f"```text\n{text.strip()}\n```\n"


def check_names(markdown: str) -> None:
    """Every name of ``relex_ext.__all__`` has its place on the page, once."""
    found = sorted(re.findall(r"^::: relex_ext\.(\w+)$", markdown, re.MULTILINE))
    public = sorted(set(relex_ext.__all__) - {"__version__"})
    if found != public:
        differ = sorted(set(found) ^ set(public)) or "a name twice"
        raise PluginError(f"docs/api.md: expected each public name once, found otherwise: {differ}")
