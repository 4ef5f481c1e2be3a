"""Scans to report on, and what is read from a page."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from relex_ext import Scan, scan
from relex_ext.scores import COLUMNS

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "tiny_grpo"

NAMES = (
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.self_attn.{m}_proj.weight" for i in range(3) for m in "qkv"),
    *(f"model.layers.{i}.mlp.down_proj.weight" for i in range(3)),
    "model.norm.weight",
)


def made_scan(
    steps: Sequence[int] = range(1, 25), names: Sequence[str] = NAMES, frozen: str | None = None
) -> Scan:
    """A drift and much noise; the 6th checkpoint repeats the 5th, the 15th is a jump."""
    rng = np.random.default_rng(3)
    grams = {}
    for i, name in enumerate(names):
        updates = rng.standard_normal((len(steps), 300)) + 0.3 * rng.standard_normal(300)
        updates *= 0.0 if name == frozen else 1.0 / (i + 1)
        if len(steps) > 15:
            updates[5] = 0.0
            updates[14] *= 9.0
        deltas = np.cumsum(updates, axis=0)
        grams[name] = deltas @ deltas.T
    return Scan(tuple(steps), grams, {}, {})


def real_scan(folder: Path, until: int) -> Scan:
    """Of the shipped GRPO run."""
    spec = importlib.util.spec_from_file_location("tiny_grpo_pack", EXAMPLE / "pack.py")
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    run = Path(pack.unpack(folder / "run"))
    return scan(run / "base", run, until=until, progress=False)


SCORES = (
    *(("trained", "", step, "", "", 0.4 + step / 100, 0.008, "") for step in range(0, 25, 4)),
    *(("reconstruction", 24, step, "relex", 1, 0.41 + step / 101, 0.008, "") for step in (8, 16)),
    *(("forecast", 8, step, "relex", 1, 0.4 + step / 130, 0.008, "") for step in (16, 24, 32)),
    ("forecast", 16, 32, "relex", 1, 0.71, 0.008, ""),
    ("forecast", 8, 32, "newest", 0.5, 0.55, "", "some/folder"),
)


def write_rows(path: Path, rows: Sequence[Sequence[object]] = SCORES) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return path


class Page(HTMLParser):
    """A page's text, tags and attributes; ``errors`` where tags do not close in order."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.rows: list[list[tuple[str, str | None]]] = []
        self.errors: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.errors += [f"{tag} is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append(("", found.get("data-v")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.errors.append(f"{tag} closes something else")

    def handle_data(self, data: str) -> None:
        if "script" in self._open or "style" in self._open:
            return
        self.words.append(data)
        if self.rows and ("td" in self._open or "th" in self._open):
            text, value = self.rows[-1][-1]
            self.rows[-1][-1] = (text + data, value)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.tags if found == tag]
