"""relex verify: what is no output of relex, what a search keeps, and the command."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import children
import searches
from folders import SHARDS, file_bytes, listing, make_run, raw
from outputs import (
    OTHER,
    check,
    files_of,
    flipped,
    record_in,
    redigest,
    rewrite,
    sparse_output,
)
from relex_ext import InputError, extrapolate, search
from relex_ext.cli import main
from relex_ext.output import RECORD, SCAN, WEIGHTS


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output of two targets."""
    run = make_run(tmp_path, steps=(10, 20, 30), shards=SHARDS)
    extrapolate(run.base, run.checkpoints, [100, 62.5], tmp_path / "out", progress=False)
    return tmp_path / "out"


# ---- no output ---------------------------------------------------------------------------------


def rid(record: dict[str, Any], *path: str) -> None:
    for name in path[:-1]:
        record = record[name]
    del record[path[-1]]


def put(record: dict[str, Any], value: object, *path: str) -> None:
    for name in path[:-1]:
        record = record[name]
    record[path[-1]] = value


SEALED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a way out": (lambda r: put(r, "0" * 64, "sha256", "files", "step_100/.."), "a plain name"),
    "above": (lambda r: put(r, "0" * 64, "sha256", "files", "../x"), "damaged record"),
    "absolute": (lambda r: put(r, "0" * 64, "sha256", "files", "/etc/passwd"), "damaged record"),
    "beside": (lambda r: put(r, "0" * 64, "sha256", "files", "x"), "expected digests of scan"),
    "no digest": (lambda r: put(r, "a", "sha256", "files", SCAN), "expected a SHA-256 digest"),
    "digests": (lambda r: put(r, 7, "sha256", "files", SCAN), "damaged record: TypeError"),
    "no tensors": (lambda r: rid(r, "sha256", "tensors"), "damaged record: KeyError"),
    "targets": (lambda r: rid(r, "targets", "step_100"), "found those of others"),
    "options": (lambda r: rid(r, "options"), "damaged record: KeyError"),
    "dtype": (lambda r: put(r, "F64", "options", "dtype"), "expected F32, F16, BF16, found F64"),
    "steps": (lambda r: put(r, "x", "checkpoints", "ten"), "invalid literal"),
    "no weights": (lambda r: rid(r, "sha256", "files", WEIGHTS), "expected one forecast"),
}


@pytest.mark.parametrize("case", SEALED)
def test_a_record_that_somebody_made_up(out: Path, case: str) -> None:
    change, message = SEALED[case]
    rewrite(out, change)
    with pytest.raises(InputError, match=rf"relex\.json: .*{message}") as caught:
        check(out)
    assert "\n" not in str(caught.value)


def test_no_output(tmp_path: Path, out: Path) -> None:
    with pytest.raises(InputError, match=r"expected an output of relex, found no relex\.json"):
        check(tmp_path / "nowhere")
    record = record_in(out)
    del record["sha256"]
    (out / RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match="found none: an earlier version wrote it"):
        check(out)
    (out / RECORD).unlink()
    os.mkfifo(out / RECORD)
    with pytest.raises(InputError, match="found a FIFO"):
        check(out)
    with pytest.raises(InputError, match="threads: expected 1 to 1024, found 0"):
        check(out, threads=0)
    with pytest.raises(InputError, match="samples: expected 0 or more, found -1"):
        check(out, samples=-1)


FORGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (
        lambda out: shutil.copy(out / SCAN, out / WEIGHTS),
        f"{WEIGHTS}: expected relex's weights, found KeyError",
    ),
    "other weights": (
        lambda out: (out / WEIGHTS).write_bytes(
            file_bytes({"w": raw(np.zeros(2), "F64")}, metadata={"relex": '{"format": "relex/0"}'})
        ),
        f"{WEIGHTS}: expected relex's weights, found .*expected format relex-weights/1, found rel",
    ),
    "fewer weights": (
        lambda out: (out / WEIGHTS).write_bytes(
            (out / WEIGHTS).read_bytes().replace(rb"[100.0, 62.5]", rb"[100.0      ]")
        ),
        rf"{WEIGHTS}: tensor .*: expected F64 \[1, 3\], found F64 \[2, 3\]",
    ),
    "scan": (lambda out: shutil.copy(out / WEIGHTS, out / SCAN), f"{SCAN}: expected a scan file"),
}


@pytest.mark.parametrize("case", FORGED)
def test_files_that_are_none_of_ours(out: Path, case: str) -> None:
    spoil, message = FORGED[case]
    spoil(out)
    redigest(out)
    (damage,) = check(out).damages
    assert re.match(message, damage), damage


def test_tensors_of_another_model(out: Path) -> None:
    name = "model.layers.0.mask"
    rewrite(out, lambda r: put(r, "0" * 64, "sha256", "tensors", "step_100", "gone"))
    assert check(out).damages == ("step_100: tensor gone: missing",)
    redigest(out)
    rewrite(out, lambda r: rid(r, "sha256", "tensors", "step_100", "gone"))
    rewrite(out, lambda r: rid(r, "sha256", "tensors", "step_100", name))
    assert check(out).damages == (f"step_100: tensor {name}: not written by relex",)


# ---- a search's --------------------------------------------------------------------------------


def test_what_a_search_keeps(tmp_path: Path) -> None:
    run = searches.make_search(tmp_path)
    search(
        run.base, run.checkpoints, tmp_path / "found", searches.command(run), evaluations=4,
        keep="all", progress=False,
    )  # fmt: skip
    best, (other, *_) = tmp_path / "found/best", (tmp_path / "found/candidates").iterdir()
    for folder in (best, other):
        found = check(folder)
        assert (found.ok, found.models, found.tensors) == (True, 1, 1)
        for path in files_of(folder):
            with flipped(path, path.stat().st_size - 2):
                if path.name == "relex.json":
                    with pytest.raises(InputError, match=r"relex\.json: "):
                        check(folder)
                else:
                    (damage,) = check(folder).damages
                    assert damage.startswith(f"{path.name}: ")
    with pytest.raises(InputError, match=rf"expected {WEIGHTS} to compute samples with"):
        check(best, samples=1)
    with pytest.raises(InputError, match=r"found no relex\.json"):
        check(tmp_path / "found")


# ---- the command -------------------------------------------------------------------------------


def relex(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    status = main(["verify", *map(str, args)])
    return (status, *capsys.readouterr())


def test_the_command(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = f"{out}: 2 models, 20 tensors, 689.1 KiB: as written"
    status, said, error = relex(capsys, out)
    assert (status, said) == (0, whole + "\n") and "verify" in error
    status, said, error = relex(capsys, out, "--samples", 1, "--seed", 3, "--threads", 1)
    assert (status, said) == (0, f"{whole}; 1 sample agrees with the inputs\n")
    assert relex(capsys, out, "-q") == (0, "", "")
    status, said, error = relex(capsys, out, "--samples", 100, "--json")
    assert (status, error) == (0, "")
    assert json.loads(said) == {
        "out": str(out), "ok": True, "models": 2, "tensors": 20, "files": 24, "bytes": 705628,
        "samples": 64, "damages": [],
    }  # fmt: skip
    with flipped(out / SCAN, 99), flipped(out / "step_100" / "merges.txt", 0):
        lines = [f"{SCAN}: {OTHER}", f"step_100/merges.txt: {OTHER}"]
        final = f"relex: error: {out}: 2 damages\n"
        assert relex(capsys, out, "-q") == (2, "\n".join([*lines, ""]), final)
        status, said, error = relex(capsys, out, "--json")
        assert (status, json.loads(said)["damages"], error) == (2, lines, final)
    assert relex(capsys, out.parent)[0] == 2


def bytes_read(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().split("rchar:")[1].split()[0])


def test_ctrl_c(tmp_path: Path) -> None:
    """Minutes of hashing, ended at once."""
    out = sparse_output(tmp_path / "out", 16 << 30)
    before = listing(tmp_path)
    code = "import sys; from relex_ext.cli import main; sys.exit(main(sys.argv[1:]))"
    with children.start(code, "verify", out, "-q") as process:
        try:
            deadline = time.monotonic() + 20
            while bytes_read(process.pid) < 256 << 20 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert process.poll() is None, "it was to be interrupted at work"
            process.send_signal(signal.SIGINT)
            begun = time.monotonic()
            said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, *said) == (130, "", "relex: interrupted, nothing was written\n")
    assert time.monotonic() - begun < 5
    assert listing(tmp_path) == before


MEASURE = """
import resource, sys
from relex_ext import verify

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

verify(sys.argv[1], progress=False)
before = most()
found = verify(sys.argv[2], progress=False)
assert any("tensor w: its bytes" in line for line in found.damages), found
print(most() - before)
"""


def test_memory_does_not_grow_with_tensors(out: Path, tmp_path: Path) -> None:
    large = sparse_output(tmp_path / "large", 256 << 20)
    assert int(children.printed(MEASURE, out, large)) < 32 << 20
