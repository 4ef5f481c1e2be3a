"""The harness from a test: it needs processes that have the library from their start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from test_cli import environment

Row = dict[str, Any]

TESTS = Path(__file__).parent.parent


def disturbed(tmp_path: Path, *arguments: str) -> list[Row]:
    """``python -m faults`` with these; the rows of its table. Nothing may end as it must not."""
    rows = tmp_path / "rows.json"
    found = subprocess.run(
        [sys.executable, "-m", "faults", *arguments, "--rows", str(rows)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=TESTS,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    told: list[Row] = json.loads(rows.read_text())
    return told
