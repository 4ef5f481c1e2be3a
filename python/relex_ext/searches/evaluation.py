"""The user's evaluation command: run on a model folder, it prints a score."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from relex_ext.errors import EvaluationError, InputError

PLACE = "{model}"

GRACE = 5.0
"""Seconds between asking a command to end and ending it."""

# A number is a word by itself: none in gsm8k, pass@1, 5-shot, 3/10, 12:30 or runs/500.
_NUMBER = (
    r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:nan|inf(?:inity)?))"
    r"(?!\w|\.\w|[-/@]\w|:\d)"
)
_SCORE = re.compile(
    rf"(?<![\w.+\-/@#])(?<!\d:){_NUMBER}(?:\s*%?\s*(?:±|\+/?-)\s*{_NUMBER})?", re.IGNORECASE
)


class _SeveralNumbers(ValueError):
    """A line that does not say which of its numbers is the score."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``command``: for the shell, with ``{model}`` where the model's folder goes; ``timeout``:
    seconds it may take; ``logs``: the folder that keeps what it printed."""

    command: str
    timeout: float | None
    logs: Path

    def __post_init__(self) -> None:
        if PLACE not in self.command:
            raise InputError(f"eval: expected {PLACE} in the command, found {self.command}")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise InputError(f"timeout: expected seconds above 0, found {self.timeout}")

    def __call__(self, model: Path, name: str) -> tuple[float, float | None]:
        """A model's score and, if the command printed one, its standard error.

        Raises:
            EvaluationError: it failed, took too long, or printed no score.
        """
        command = self.command.replace(PLACE, shlex.quote(str(model.absolute())))
        self.logs.mkdir(exist_ok=True)
        out, err = (self.logs / f"{name}.{stream}" for stream in ("stdout", "stderr"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            # A session of its own, so that all it starts can be ended with it.
            process = subprocess.Popen(
                command, shell=True, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=stdout, stderr=stderr,
            )  # fmt: skip
            try:
                status = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                problem = f"none within {self.timeout:g} s"
                raise EvaluationError(self._sentence(model, command, problem, out, err)) from None
            finally:
                end(process)
        if status != 0:
            problem = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise EvaluationError(self._sentence(model, command, problem, out, err))
        try:
            return parse_score(out.read_text("utf-8", "replace"))
        except _SeveralNumbers as error:
            command = " ".join(command.split())
            raise EvaluationError(f"{model}: {command}: {error}") from None
        except ValueError as error:
            problem = str(error)
            raise EvaluationError(self._sentence(model, command, problem, out, err)) from None

    def _sentence(self, model: Path, command: str, problem: str, out: Path, err: Path) -> str:
        """In one line: the model, what was expected of which command, the end of its output."""
        command = " ".join(command.split())
        tail = _tail(err) or _tail(out) or "(it printed nothing)"
        return f"{model}: expected a score from {command}, found {problem}: {tail}"


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all it started: politely, and after a while by force."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            pass  # the next signal cannot be ignored
    _signal(process, signal.SIGKILL)
    process.wait()


def parse_score(text: str) -> tuple[float, float | None]:
    """The score on the last line that is not empty, and its standard error if it has one.

    ``0.512``, ``gsm8k: 51.2%``, ``0.512 ± 0.008`` (``+-``, ``+/-``) or ``{"score": 0.512,
    "error": 0.008}``. Of several numbers nobody knows which one is meant.

    Raises:
        ValueError: what the line is instead.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("no output")
    if lines[-1].startswith("{"):
        try:
            found = json.loads(lines[-1])
            score, error = found["score"], found.get("error")
        except (ValueError, KeyError) as problem:
            raise ValueError('no JSON with a "score" in the last line') from problem
        numbers = [score] if error is None else [score, error]
        if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
            raise ValueError("no number as score or error in the last line")
    else:
        matches = list(_SCORE.finditer(lines[-1]))
        if not matches:
            raise ValueError("no number in the last line")
        if len(matches) > 1:
            count = sum(n is not None for match in matches for n in match.groups())
            raise _SeveralNumbers(
                "expected one number on its last line, or 0.541 ± 0.008, "
                f"found {count}: {_shortened(' '.join(lines[-1].split()))!r}"
            )
        numbers = [float(number) for number in matches[0].groups() if number is not None]
    score, *errors = (float(f"{number}") for number in numbers)  # a vast integer becomes inf
    if not math.isfinite(score) or not all(0 <= error < math.inf for error in errors):
        raise ValueError("no finite score in the last line")
    return score, errors[0] if errors else None


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # all of it has ended


def _shortened(text: str, characters: int = 200) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _tail(path: Path, lines: int = 3, characters: int = 400) -> str:
    text = path.read_bytes()[-4 * characters :].decode("utf-8", "replace")
    found = [" ".join(line.split()) for line in text.splitlines()]
    return " | ".join([line for line in found if line][-lines:])[-characters:]
