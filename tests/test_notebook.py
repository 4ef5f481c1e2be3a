"""examples/notebook.ipynb: its cells run, and print what it shows."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "notebook.ipynb"
LARGEST = 200_000

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what transformers warns about on import is not ours
    pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_its_cells_print_what_it_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    assert NOTEBOOK.stat().st_size < LARGEST
    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    names: dict[str, object] = {}
    shown = 0
    for cell in cells:
        capsys.readouterr()
        exec("".join(cell["source"]), names)
        printed = capsys.readouterr().out
        streams = [o for o in cell["outputs"] if o["output_type"] == "stream"]
        kept = "".join(line for output in streams for line in output["text"])
        assert printed == kept
        shown += len(kept.splitlines())
        assert not [o for o in cell["outputs"] if o["output_type"] == "error"]
    assert shown > 10
