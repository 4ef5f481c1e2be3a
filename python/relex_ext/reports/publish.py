"""The page, its JSON and its figures, put in place together, the page last."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from relex_ext.errors import OutputError
from relex_ext.layout import (
    make_folder,
    remove_folders,
    replace_folder,
    sync_folder,
    write_durably,
)

MARK = '<meta name="generator" content="relex_ext report">'
"""In every page, so that only pages are replaced."""

FORMAT = "relex-report/1"


class Places:
    """``report.html``, ``report.json`` and ``report_files/``."""

    def __init__(self, out: Path) -> None:
        self.page = out
        self.data = out.with_suffix(".json")
        self.figures = out.with_name(f"{out.stem}_files")

    def check(self, overwrite: bool) -> None:
        """Refuse what is there already, and always what no report wrote.

        Raises:
            OutputError: with the one line to show.
        """
        if self.page.suffix not in (".html", ".htm"):
            raise OutputError(f"{self.page}: expected a name that ends in .html")
        for place in (self.page, self.data):
            if place.is_dir():
                raise OutputError(f"{place}: expected a file to write, found a folder")
        if os.path.lexists(self.figures) and not self.figures.is_dir():
            raise OutputError(f"{self.figures}: expected a folder to make, found a file")
        present = [p for p in (self.page, self.data, self.figures) if os.path.lexists(p)]
        if present and not overwrite:
            raise OutputError(
                f"{present[0]}: exists already; choose another name or pass overwrite"
            )
        for place, mark in ((self.page, MARK), (self.data, f'"format": "{FORMAT}"')):
            if place.is_file() and mark.encode() not in place.read_bytes()[:4096]:
                raise OutputError(f"{place}: expected an earlier report, found another file")
        if self.figures.is_dir():
            for path in self.figures.iterdir():
                if path.suffix != ".png":
                    raise OutputError(
                        f"{self.figures}: expected an earlier report's figures, found {path.name}"
                    )

    def publish(self, page: str, data: str, figures: Mapping[str, bytes]) -> None:
        """Everything is written beside its place first; a failure until then leaves no trace."""
        folder = self.page.absolute().parent
        created = make_folder(folder)
        partial = folder / f".{self.page.name}.partial-{secrets.token_hex(4)}"
        try:
            (partial / "figures").mkdir(parents=True)
            for name, png in figures.items():
                write_durably(partial / "figures" / name, png)
            write_durably(partial / "data", data.encode())
            write_durably(partial / "page", page.encode())
            if self.figures.is_dir():
                replace_folder(partial / "figures", self.figures, aside=partial / "replaced")
            else:
                (partial / "figures").rename(self.figures)
            (partial / "data").replace(self.data)
            (partial / "page").replace(self.page)
            sync_folder(folder)
        except OSError as error:
            raise OutputError(f"{self.page}: cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if not os.path.lexists(self.page):
                remove_folders(created)
