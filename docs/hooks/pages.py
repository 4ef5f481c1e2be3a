"""The site's pages from elsewhere in the repository, and links that hold on a forge and here."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/tiny_grpo/README.md": "tiny_grpo.md",
}
"""Path in the repository → page of the site. Pages in docs/ keep their names."""

_LINK = re.compile(r"\[([^][]*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return relink(markdown, page.file.src_uri, config.repo_url)


def relink(markdown: str, uri: str, repository: str | None = None) -> str:
    """Links between files of the repository, as links between pages. What the site lacks is linked
    in the repository where that has an address, and is plain text where it has none."""
    homes = {page: path for path, page in PAGES.items()}
    folder = posixpath.dirname(homes.get(uri, f"docs/{uri}"))

    def link(found: re.Match[str]) -> str:
        text, target = found.groups()
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        place = posixpath.normpath(posixpath.join(folder, path))
        if place in PAGES:
            there = PAGES[place]
        elif place.startswith("docs/") or not (ROOT / place).exists():
            there = place.removeprefix("docs/")  # if it is nowhere, mkdocs says so
        elif repository:
            return f"[{text}]({repository.rstrip('/')}/blob/main/{place})"
        else:
            return text
        there = posixpath.relpath(there, posixpath.dirname(uri) or ".")
        return f"[{text}]({there}{'#' if anchor else ''}{anchor})"

    return _LINK.sub(link, markdown)
