"""One page that says whether a run can be extrapolated, and shows why."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relex_ext import __version__
from relex_ext.errors import InputError
from relex_ext.forecasts import check_targets
from relex_ext.reports.contents import Contents, gather_contents
from relex_ext.reports.drawn import figures_of
from relex_ext.reports.figures import WIDE
from relex_ext.reports.page import page
from relex_ext.reports.png import need_matplotlib, to_png
from relex_ext.reports.publish import Places
from relex_ext.reports.words import step
from relex_ext.scans import Scan
from relex_ext.scores import read_scores
from relex_ext.steps import PathLike

if TYPE_CHECKING:
    from relex_ext.evidence.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, and the numbers that are in it."""

    page: Path
    data: Path
    figures: tuple[Path, ...]
    contents: Contents

    @property
    def verdict(self) -> Verdict:
        return self.contents.verdict


def report(
    scan: Scan | PathLike,
    out: PathLike,
    *,
    scores: Iterable[PathLike] | PathLike = (),
    target_step: float | None = None,
    until: int | None = None,
    tensors: Iterable[str] = (),
    overwrite: bool = False,
) -> Report:
    """Write ``out`` (a single HTML page), its numbers as JSON and its figures as PNGs beside it.

    Args:
        scan: a :class:`Scan` with Gram matrices, or its file; no shard is read.
        out: ``report.html``, which brings ``report.json`` and ``report_files/``.
        scores: CSV files of scores to draw, or one (:mod:`relex_ext.scores`).
        target_step: the step that the verdict is about (twice the newest step).
        until: use the checkpoints up to this step.
        tensors: whose coefficient to draw, names or one (the largest movers, one of each module
            type).
        overwrite: replace an earlier report.

    Raises:
        RelexError: a scan without Gram matrices, a tensor that it lacks or that never moves,
            an output that exists.
    """
    need_matplotlib()
    places = Places(Path(out))
    places.check(overwrite)
    # A string is a sequence of its letters, which nobody means.
    scores = (scores,) if isinstance(scores, str | os.PathLike) else tuple(scores)
    tensors = (tensors,) if isinstance(tensors, str) else tuple(tensors)
    rows = tuple(row for path in scores for row in read_scores(path))
    loaded = Scan.given(scan)
    steps = loaded.chosen(until)
    if not steps:
        raise InputError(f"until: expected at least step {loaded.steps[0]}, found {until}")
    target = 2.0 * steps[-1] if target_step is None else check_targets(target_step)[0]
    name = "scan.safetensors" if isinstance(scan, Scan) else Path(scan).name
    command = ["relex", "report", name, *_options(scores, target_step, until, tensors)]
    about = {
        "scan": name,
        "command": shlex.join([*command, "--out", places.page.name]),
        "versions": _versions(),
    }
    contents = gather_contents(loaded, steps, target, tensors, rows, about)
    figures = figures_of(contents)
    drawn = {f"{figure.key}.png": to_png(figure.draw(WIDE)) for figure in figures}
    data = json.dumps(contents.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
    places.publish(page(contents, figures), data + "\n", drawn)
    return Report(
        places.page, places.data, tuple(places.figures / file for file in drawn), contents
    )


def _options(
    scores: Iterable[PathLike],
    target_step: float | None,
    until: int | None,
    tensors: Sequence[str],
) -> list[str]:
    """As they would be typed; files by name alone, since a page may be shown to anyone."""
    found = [text for path in scores for text in ("--eval", Path(path).name)]
    if target_step is not None:
        found += ["--target-step", step(target_step)]
    if until is not None:
        found += ["--until", str(until)]
    return found + [text for name in tensors for text in ("--tensor", name)]


def _versions() -> str:
    from matplotlib import __version__ as matplotlib

    found = {
        "relex_ext": __version__,
        "numpy": np.__version__,
        "matplotlib": matplotlib,
        "Python": platform.python_version(),
    }
    return ", ".join(f"{name} {version}" for name, version in found.items())
