"""relex verify: every damage to an output's bytes is found and named; what is whole, is whole."""

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

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import children
import searches
from folders import INDEX, MODEL, SHARDS, SINGLE, RunFolder, Spec, digest, listing, make_run
from outputs import extents, flipped, place_of, record_in, reseal, sparse_output
from relex_ext import InputError, Verification, extrapolate, search, verify
from relex_ext.cli import main
from relex_ext.output import SCAN, WEIGHTS

TARGETS = ("step_100", "step_62.5")
OTHER = "its bytes are not those that were written"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("verify"), steps=(10, 20, 30), shards=SHARDS)


@pytest.fixture(scope="module")
def made(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of two targets; who changes it puts it right again."""
    out = tmp_path_factory.mktemp("made") / "out"
    extrapolate(run.base, run.checkpoints, [100, 62.5], out, progress=False)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def check(out: Path, **options: Any) -> Verification:
    return verify(out, progress=False, **options)


def files_of(out: Path) -> list[Path]:
    """All that is recorded, and the record."""
    return sorted(p for p in out.rglob("*") if p.is_file() and p.name != "README.md")


def times(out: Path) -> dict[Path, tuple[int, int]]:
    return {p: (p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in [out, *out.rglob("*")]}


# ---- what is whole -----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, None])
def test_an_output_is_as_written(made: Path, threads: int | None) -> None:
    before, then = digest(made), times(made)
    found = check(made, threads=threads)
    recorded = [p for p in files_of(made) if p.name != "relex.json"]
    assert found == Verification(
        made, 2, 2 * len(MODEL), len(recorded), sum(p.stat().st_size for p in recorded), 0, ()
    )
    assert found.ok
    assert (digest(made), times(made)) == (before, then), "nothing is written"


def test_what_is_not_recorded_may_differ(out: Path) -> None:
    (out / "step_100" / "README.md").write_text("edited by hand")
    (out / "step_62.5" / "README.md").unlink()
    (out / "step_100" / "evaluation.csv").write_text("0.5")
    (out / "scan.html").write_text("a report")
    assert check(out).ok


def test_a_moved_output(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert check(Path("elsewhere")).ok
    with flipped(tmp_path / "elsewhere" / "step_100" / "config.json", 0):
        assert check(Path("elsewhere")).damages == (f"step_100/config.json: {OTHER}",)


# ---- a byte ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [n for n in MODEL if n != "model.layers.0.empty"])
def test_a_tensors_first_and_last_byte(made: Path, target: str, name: str) -> None:
    shard, begin, end = place_of(made / target, name)
    for at in (begin, end - 1):
        with flipped(shard, at):
            assert check(made).damages == (f"{target}/{shard.name}: tensor {name}: {OTHER}",)


def test_every_byte_of_a_header(run: RunFolder, tmp_path: Path) -> None:
    model = {"a": Spec((3,)), "b": Spec((3,))}
    small = make_run(tmp_path, steps=(1, 2), model=model)
    extrapolate(small.base, small.checkpoints, 5, tmp_path / "out", progress=False)
    shard = tmp_path / "out" / "step_5" / SINGLE
    start = min(begin for begin, _ in extents(shard).values())
    for at in range(start):
        with flipped(shard, at):
            (damage,) = check(tmp_path / "out").damages
            assert damage.startswith(f"step_5/{SINGLE}: "), at


def test_other_files(made: Path) -> None:
    for path in files_of(made):
        if path.name == "relex.json" or (path.suffix == ".safetensors" and path.parent != made):
            continue
        for at in (0, path.stat().st_size // 2, path.stat().st_size - 1):
            with flipped(path, at):
                assert check(made).damages == (f"{path.relative_to(made)}: {OTHER}",)


def test_the_record_itself(made: Path) -> None:
    """Its spaces and the figures that nothing else depends on, too."""
    path = made / "relex.json"
    size = path.stat().st_size
    for at in range(0, size, 7):
        with flipped(path, at), pytest.raises(InputError, match=r"relex\.json: "):
            check(made)
    data = path.read_bytes()
    for text in (data[:-1], data + b"\n", data.replace(b"relex/1", b"relex/2"), b"", b"{}", b"[1]"):
        path.write_bytes(text)
        with pytest.raises(InputError, match=r"relex\.json: "):
            check(made)
    path.write_bytes(data)
    assert check(made).ok


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_any_byte_of_any_file(made: Path, place: float, mask: int) -> None:
    at = int(place * sum(p.stat().st_size for p in files_of(made)))
    for path in files_of(made):
        if at < path.stat().st_size:
            break
        at -= path.stat().st_size
    with flipped(path, at, mask):
        if path.name == "relex.json":
            with pytest.raises(InputError, match=r"relex\.json: "):
                check(made)
        else:
            (damage,) = check(made).damages
            assert damage.startswith(f"{path.relative_to(made)}: ")


# ---- whole files -------------------------------------------------------------------------------

FIRST = "model-00001-of-00003.safetensors"
EXTRA = "not written by relex, and loaders would take it for weights"


def cut(path: Path, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def swap(a: Path, b: Path) -> None:
    a.rename(a.with_name("aside"))
    b.rename(a)
    a.with_name("aside").rename(b)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte less": (lambda m: cut(m / FIRST, 1), f"{FIRST}: header: .*not fully covered"),
    "a byte more": (lambda m: cut(m / FIRST, -1), f"{FIRST}: header: .*not fully covered"),
    "empty shard": (lambda m: (m / FIRST).write_bytes(b""), f"{FIRST}: not a safetensors file"),
    "no shard": (lambda m: (m / FIRST).unlink(), f"{FIRST}: cannot be read: No such file"),
    "a folder": (lambda m: replace(m / FIRST, Path.mkdir), f"{FIRST}: .*found a folder"),
    "a FIFO": (lambda m: replace(m / FIRST, os.mkfifo), f"{FIRST}: .*found a FIFO"),
    "a link": (
        lambda m: replace(m / FIRST, lambda p: p.symlink_to("/etc/hostname")),
        f"{FIRST}: .*found a link to /etc/hostname",
    ),
    "no index": (lambda m: (m / INDEX).unlink(), f"{INDEX}: cannot be read: No such file"),
    "no config": (lambda m: (m / "config.json").unlink(), "config.json: cannot be read"),
    "longer config": (lambda m: cut(m / "config.json", -1), f"config.json: {OTHER}"),
    "another shard": (
        lambda m: shutil.copy(m / FIRST, m / "model-00004-of-00003.safetensors"),
        f"model-00004-of-00003.safetensors: {EXTRA}",
    ),
    "a single file": (lambda m: shutil.copy(m / FIRST, m / SINGLE), f"{SINGLE}: {EXTRA}"),
    "an adapter": (
        lambda m: (m / "adapter_config.json").write_text("{}"),
        ".*found adapter_config.json: a PEFT",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file(out: Path, case: str) -> None:
    spoil, message = FILES[case]
    spoil(out / "step_62.5")
    (damage,) = check(out).damages
    assert re.match(rf"step_62\.5(/|: ){message}", damage), damage


def test_folders_and_what_lies_beside_them(out: Path) -> None:
    shutil.rmtree(out / "step_100")
    (out / WEIGHTS).unlink()
    cut(out / SCAN, 8)
    assert check(out).damages == (
        "step_100: expected a model folder, found none",
        f"{WEIGHTS}: cannot be read: No such file or directory",
        f"{SCAN}: {OTHER}",
    )


def test_an_index_that_would_win(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=(1, 2), model={"a": Spec((3,))})
    extrapolate(run.base, run.checkpoints, 5, tmp_path / "out", progress=False)
    (tmp_path / "out" / "step_5" / INDEX).write_text('{"weight_map": {"a": "model.safetensors"}}')
    assert check(tmp_path / "out").damages == (f"step_5/{INDEX}: {EXTRA}",)


def test_shards_of_another_target(out: Path) -> None:
    """Their headers are the same."""
    swap(out / "step_100" / FIRST, out / "step_62.5" / FIRST)
    expected = {f"{t}/{FIRST}: tensor {n}: {OTHER}" for t in TARGETS for n in SHARDS[0]}
    assert set(check(out).damages) == expected


def test_tensors_that_changed_places(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=(1, 2), model={"a": Spec((50,)), "b": Spec((50,))})
    out = tmp_path / "out"
    extrapolate(run.base, run.checkpoints, 5, out, progress=False)
    shard, begin, middle = place_of(out / "step_5", "a")
    _, _, end = place_of(out / "step_5", "b")
    data = shard.read_bytes()
    shard.write_bytes(data[:begin] + data[middle:end] + data[begin:middle])
    assert check(out).damages == tuple(f"step_5/{SINGLE}: tensor {n}: {OTHER}" for n in "ab")
    header = data[:begin].replace(b'"a"', b'"x"').replace(b'"b"', b'"a"').replace(b'"x"', b'"b"')
    shard.write_bytes(header + data[begin:])
    expected = f"step_5/{SINGLE}: its header is not the one that was written"
    assert check(out).damages == (expected,)


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
    record = record_in(out)
    change(record)
    reseal(out, record)
    with pytest.raises(InputError, match=rf"relex\.json: .*{message}") as caught:
        check(out)
    assert "\n" not in str(caught.value)


def test_no_output(tmp_path: Path, out: Path) -> None:
    with pytest.raises(InputError, match=r"expected an output of relex, found no relex\.json"):
        check(tmp_path / "nowhere")
    record = record_in(out)
    del record["sha256"]
    (out / "relex.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="found none: an earlier version wrote it"):
        check(out)
    replace(out / "relex.json", os.mkfifo)
    with pytest.raises(InputError, match="found a FIFO"):
        check(out)
    with pytest.raises(InputError, match="threads: expected 1 to 1024, found 0"):
        check(out, threads=0)
    with pytest.raises(InputError, match="samples: expected 0 or more, found -1"):
        check(out, samples=-1)


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
verify(sys.argv[2], progress=False)
print(most() - before)
"""


def test_memory_does_not_grow_with_tensors(made: Path, tmp_path: Path) -> None:
    large = sparse_output(tmp_path / "large", 256 << 20)
    assert int(children.printed(MEASURE, made, large)) < 32 << 20
