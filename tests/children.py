"""Python processes that tests start, with the package and the tests' modules to import."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import relex_ext

PATH = os.pathsep.join([str(Path(relex_ext.__file__).parents[1]), str(Path(__file__).parent)])


@contextmanager
def start(code: str, *arguments: object, **options: str) -> Iterator[subprocess.Popen[str]]:
    """It ends with the context at the latest. ``options``: more of its environment."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PATH, **options},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(code: str, *arguments: object, **options: str) -> tuple[int, str, str]:
    """(exit status, or minus the signal; stdout; stderr)."""
    with start(code, *arguments, **options) as process:
        out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def printed(code: str, *arguments: object) -> str:
    """What a process that has to succeed prints, without the last line's end."""
    status, out, err = run(code, *arguments)
    assert status == 0, err
    return out.removesuffix("\n")
