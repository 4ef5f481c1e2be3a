"""The folder of a search, such that it can be killed at any time and taken up again."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from relex_ext.errors import OutputError
from relex_ext.layout import make_folder, replace_durably, sync_folder, write_durably
from relex_ext.output import RECORD
from relex_ext.scores import Score, read_scores, write_scores
from relex_ext.seals import sealed
from relex_ext.searches.place import (
    BEST,
    CANDIDATES,
    FORMAT,
    HIDDEN,
    PASS,
    SCORES,
    STATE,
    discard,
    read_state,
)
from relex_ext.searches.strategy import Candidate
from relex_ext.workspace import workspace_of


class SearchFolder:
    """Use as a context manager: no other process has the search meanwhile.

    ``scores``: all of them, in the order evaluated; ``planned``: the pass under way.
    """

    def __init__(self, out: Path, described: Mapping[str, Any], keep: str) -> None:
        """``described``: what the search is; one already there has to be the same."""
        self.out = out.absolute()
        self.keep = keep
        self.sign = 1.0 if described["higher_is_better"] else -1.0
        self.scores: tuple[Score, ...] = ()
        self.planned: list[Candidate] = []
        self._described = described
        make_folder(self.out)
        self._lock = os.open(self.out, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> SearchFolder:
        try:
            self._take()
            self._clean()
            if (self.out / STATE).exists():
                self.planned = read_state(self.out, self._described)
            else:
                self._write_state(None)
            if (self.out / SCORES).exists():
                self.scores = read_scores(self.out / SCORES)
            self.settle()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def bar(self) -> Score | None:
        return next((score for score in self.scores if score.kind == "trained"), None)

    @property
    def best(self) -> Score | None:
        """The best of all; the bar, and among forecasts the first, wins a tie."""
        if not self.scores:
            return None
        return max(self.scores, key=lambda s: (self.sign * s.score, s.kind == "trained"))

    @property
    def scored(self) -> dict[Candidate, float]:
        """Forecast → its score, the higher the better."""
        return {
            candidate_of(score): self.sign * score.score
            for score in self.scores
            if score.kind != "trained"
        }

    def plan(self, candidates: Sequence[Candidate]) -> None:
        """Begin a pass."""
        self.planned = list(candidates)
        self._write_state(None)

    def add(self, score: Score) -> None:
        """Record an evaluation; a forecast's folder becomes the best, or goes."""
        self.scores = (*self.scores, score)
        best = self.best
        self.scores = tuple(replace(s, model=self._model_of(s, s is best)) for s in self.scores)
        write_scores(self.out / SCORES, self.scores)
        self.settle()

    def clear_pass(self) -> None:
        if (self.out / PASS).exists():
            discard(self.out / PASS, self.out)

    def finish(self, bar: Score, best: Score) -> None:
        self.clear_pass()
        self._write_state({"best": asdict(best), "bar": asdict(bar)})

    def _model_of(self, score: Score, best: bool) -> str | None:
        if score.kind == "trained":
            return score.model
        if best:
            return str(self.out / BEST)
        if self.keep == "all":
            return str(self.out / CANDIDATES / candidate_of(score).name)
        return None

    def settle(self) -> None:
        """Make the folders what the scores say, whatever a killed run left of it."""
        best = self.best
        name = None if best is None or best.kind == "trained" else candidate_of(best).name
        if (self.out / BEST).exists():
            held = _name_in(self.out / BEST)
            if held != name:
                self._retire(self.out / BEST, held)
        for candidate in self.scored:
            place = self.out / PASS / candidate.name
            if not place.is_dir():
                continue
            if candidate.name == name or self.keep == "all":
                self._keep_record(place, candidate)
            if candidate.name == name:
                place.rename(self.out / BEST)
                sync_folder(self.out)
            else:
                self._retire(place, candidate.name)

    def _retire(self, folder: Path, name: str | None) -> None:
        if self.keep == "all" and name is not None:
            (self.out / CANDIDATES).mkdir(exist_ok=True)
            folder.rename(self.out / CANDIDATES / name)
            sync_folder(self.out / CANDIDATES)
        else:
            discard(folder, self.out)

    def _keep_record(self, folder: Path, candidate: Candidate) -> None:
        """Put the part of the pass's relex.json that is about one forecast beside its weights."""
        record = json.loads((self.out / PASS / RECORD).read_text())
        record["targets"] = {candidate.name: candidate.step}
        record["strengths"] = {candidate.name: candidate.strength}
        digests = record["sha256"]
        digests["tensors"] = {candidate.name: digests["tensors"][candidate.name]}
        own = f"{candidate.name}/"
        digests["files"] = {n: d for n, d in digests["files"].items() if n.startswith(own)}
        del record["options"]["weights"]  # they were not given from outside
        record["options"] |= self._described["forecast"]
        partial = self.out / f".{STATE}.record"  # where it is found if it is left behind
        write_durably(partial, sealed(record))
        partial.replace(folder / RECORD)
        sync_folder(folder)

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{self.out}: another search is at work in it") from None
        except OSError:
            pass  # a file system without locks

    def _clean(self) -> None:
        unfinished = workspace_of(self.out / PASS).name  # the pass will go on with it
        for entry in self.out.iterdir():
            if entry.name.startswith(HIDDEN) and entry.name != unfinished:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _write_state(self, result: Mapping[str, Any] | None) -> None:
        planned = [[candidate.step, candidate.strength] for candidate in self.planned]
        state = {
            "format": FORMAT, "search": self._described, "pass": planned, "result": result
        }  # fmt: skip
        text = json.dumps(state, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        replace_durably(self.out / STATE, text.encode())


def candidate_of(score: Score) -> Candidate:
    assert score.strength is not None, "a forecast has a strength"
    return Candidate(score.step, score.strength)


def _name_in(folder: Path) -> str | None:
    """Which forecast a kept folder holds."""
    try:
        (name,) = json.loads((folder / RECORD).read_bytes())["targets"]
    except (OSError, ValueError, KeyError):
        return None
    return str(name)
