"""relex verify: every damage to an output's bytes is found and named; what is whole, is whole."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import INDEX, MODEL, SHARDS, SINGLE, RunFolder, Spec, digest, make_run
from outputs import OTHER, check, extents, files_of, flipped, place_of
from relex_ext import InputError, Verification, extrapolate
from relex_ext.layout import CHUNK
from relex_ext.output import SCAN, WEIGHTS

TARGETS = ("step_100", "step_62.5")


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


def test_a_tensor_read_in_pieces(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=(1, 2), model={"a": Spec((CHUNK + 7,))})
    extrapolate(run.base, run.checkpoints, 5, tmp_path / "out", progress=False)
    shard, begin, end = place_of(tmp_path / "out" / "step_5", "a")
    assert end - begin > 2 * CHUNK
    for at in (begin + CHUNK - 1, begin + CHUNK, begin + 2 * CHUNK, end - 1):
        with flipped(shard, at):
            assert check(tmp_path / "out").damages == (f"step_5/{SINGLE}: tensor a: {OTHER}",)
    assert check(tmp_path / "out").ok


def test_a_disk_that_fails(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "model.layers.0.attn.weight"
    shard, begin, _ = place_of(made / "step_100", name)
    real, bad = os.pread, shard.stat()

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        if offset == begin and os.path.samestat(os.fstat(descriptor), bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    expected = f"cannot be read: Input/output error (tensor {name})"
    assert check(made).damages == (f"step_100/{shard.name}: {expected}",)


def test_every_byte_of_a_header(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=(1, 2), model={"a": Spec((3,)), "b": Spec((3,))})
    extrapolate(run.base, run.checkpoints, 5, tmp_path / "out", progress=False)
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
