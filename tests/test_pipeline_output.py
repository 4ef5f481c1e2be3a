"""The output folder: what is in it, when it is refused, and that a failure leaves nothing."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from folders import (
    COMPANIONS,
    INDEX,
    MODEL,
    SHARDS,
    SINGLE,
    Raw,
    RunFolder,
    digest,
    listing,
    make_run,
    raw,
    write_model,
)
from relex_ext import (
    InputError,
    OutputError,
    Weights,
    _core,
    combine,
    extrapolate,
    files,
    scan,
    stream,
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path, steps=(10, 20, 30), shards=SHARDS)


def go(run: RunFolder, out: Path, **options: Any) -> None:
    extrapolate(run.base, run.checkpoints, [100, 62.5], out, **{"progress": False, **options})


# ---- contents ----------------------------------------------------------------------------------


def test_folder(run: RunFolder, tmp_path: Path) -> None:
    (run.folder(30) / "tokenizer.json").write_text("the newest one's")
    (run.folder(20) / "vocab.json").write_text("not the newest one's")
    (run.base / "modeling_toy.py").write_text("x = 1\n")
    (run.base / "README.md").write_text("base")
    go(run, tmp_path / "out")
    shards = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    model = sorted([*COMPANIONS, "modeling_toy.py", "README.md", *shards, INDEX])
    for target in ("step_100", "step_62.5"):
        folder = tmp_path / "out" / target
        assert listing(folder) == model
        assert (folder / "tokenizer.json").read_text() == "the newest one's"
        assert "extrapolated" in (folder / "README.md").read_text(), "a card, not the base's"
        for name in ("config.json", "merges.txt"):
            assert (folder / name).read_bytes() == COMPANIONS[name]
    top = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert top == ["relex.json", "scan.safetensors", "step_100", "step_62.5", "weights.safetensors"]
    assert not [n for n in listing(tmp_path) if "partial" in n or ".old" in n]


def test_shards_open_with_the_safetensors_library(run: RunFolder, tmp_path: Path) -> None:
    go(run, tmp_path / "out")
    folder = tmp_path / "out" / "step_100"
    index = json.loads((folder / INDEX).read_text())
    seen, size = {}, 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                assert tuple(tensor.shape) == MODEL[name].shape
                seen[name] = path.name
                size += tensor.numel() * tensor.element_size()
    assert index == {"metadata": {"total_size": size}, "weight_map": seen}
    expected = {
        n: f"model-{i + 1:05}-of-00003.safetensors" for i, s in enumerate(SHARDS) for n in s
    }
    assert seen == expected


def test_a_single_file_stays_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=(1, 2), base_shards=SHARDS)
    go(run, tmp_path / "out")
    names = [p.name for p in (tmp_path / "out" / "step_100").glob("*.safetensors*")]
    assert names == [SINGLE]


def test_permissions_follow_the_umask(run: RunFolder, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        go(run, tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out", tmp_path / "out" / "step_100"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "out" / "relex.json").stat().st_mode) == 0o640


def test_relative_paths_and_new_parents(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extrapolate("base", "run", 100, Path("a/b/out"), progress=False)
    record = json.loads((tmp_path / "a/b/out/relex.json").read_text())
    assert record["base"] == str(run.base)


def test_results_serve_as_checkpoints_again(run: RunFolder, tmp_path: Path) -> None:
    go(run, tmp_path / "out")
    done = extrapolate(
        run.base, {62: tmp_path / "out" / "step_62.5", 100: tmp_path / "out" / "step_100"}, 130,
        tmp_path / "again", progress=False,
    )  # fmt: skip
    assert done.record["r2"] > 0.99


def test_two_runs_give_the_same_record(run: RunFolder, tmp_path: Path) -> None:
    go(run, tmp_path / "a", threads=1, memory_limit="1GiB")
    go(run, tmp_path / "b", threads=2, io="pread")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_dry_run_writes_nothing(run: RunFolder, tmp_path: Path) -> None:
    before = listing(tmp_path)
    done = extrapolate(
        run.base, run.checkpoints, 100, tmp_path / "new" / "out", dry_run=True, progress=False
    )
    assert listing(tmp_path) == before
    assert done.folders == {100.0: tmp_path / "new" / "out" / "step_100"}
    go(run, tmp_path / "out")
    written = sum(
        tensor.stat().st_size for tensor in (tmp_path / "out/step_100").glob("*.safetensors")
    )
    assert 0 <= written - done.plan.bytes_written < 8192, "headers are not counted"


# ---- overwrite ---------------------------------------------------------------------------------


def test_overwrite(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(run, out)
    with pytest.raises(OutputError, match="exists already"):
        go(run, out)
    (out / "note.txt").write_text("gone with the rest")
    extrapolate(run.base, run.checkpoints, 50, out, overwrite=True, progress=False)
    assert sorted(p.name for p in out.iterdir()) == [
        "relex.json",
        "scan.safetensors",
        "step_50",
        "weights.safetensors",
    ]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_an_empty_folder_is_as_good_as_none(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    go(run, tmp_path / "out")
    assert (tmp_path / "out" / "relex.json").is_file()


def test_overwrite_spares_what_relex_did_not_write(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("the only copy")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            go(run, out, overwrite=overwrite)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError, match="found a file"):
        go(run, tmp_path / "file", overwrite=True)
    assert (out / "thesis.tex").read_text() == "the only copy"


@pytest.mark.parametrize("where", ["base", "run", "run/checkpoint-10", "."])
def test_inputs_are_never_the_output(run: RunFolder, tmp_path: Path, where: str) -> None:
    (tmp_path / where / "relex.json").write_text("{}")
    before = digest(tmp_path)
    with pytest.raises(OutputError, match="apart from the inputs"):
        go(run, tmp_path / where, overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / where)
    with pytest.raises(OutputError, match="apart from the inputs"):
        go(run, tmp_path / "link", overwrite=True)
    (tmp_path / "link").unlink()
    assert digest(tmp_path) == before


def test_a_failing_overwrite_keeps_the_old_output(run: RunFolder, tmp_path: Path) -> None:
    go(run, tmp_path / "out")
    before = digest(tmp_path / "out")
    poison(run, "model.layers.0.mixed", 20)
    with pytest.raises(InputError):
        go(run, tmp_path / "out", overwrite=True)
    assert digest(tmp_path / "out") == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


# ---- failures ----------------------------------------------------------------------------------


def rewrite(run: RunFolder, step: int | None, tensors: Mapping[str, Raw]) -> None:
    """Replace a step's tensors, or the base's."""
    if step is None:
        write_model(run.base, {**run.base_tensors, **tensors})
    else:
        write_model(run.folder(step), {**run.step_tensors[step], **tensors}, SHARDS)


def poison(run: RunFolder, name: str, step: int | None, value: float = np.nan) -> None:
    old = (run.base_tensors if step is None else run.step_tensors[step])[name]
    words = old.words.copy()
    bits = {"F32": 0x7FC00000, "F16": 0x7E00, "BF16": 0x7FC0}[old.dtype]
    if np.isinf(value):
        bits = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[old.dtype]
    words[-1] = bits
    rewrite(run, step, {name: raw(words, old.dtype, old.shape)})


@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.0.mlp.weight", "model.layers.0.norm.bias"]
)
def test_nan_in_a_checkpoint(
    run: RunFolder, tmp_path: Path, solver: str, value: float, name: str
) -> None:
    poison(run, name, 20, value)
    before = listing(tmp_path)
    with pytest.raises(InputError, match=rf"tensor {re.escape(name)}: .*step 20"):
        go(run, tmp_path / "new" / "deep" / "out", solver=solver)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("solver", ["gram", "power"])
def test_nan_in_the_base(run: RunFolder, tmp_path: Path, solver: str) -> None:
    poison(run, "model.layers.0.mixed", None)
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"tensor model\.layers\.0\.mixed: .*base"):
        go(run, tmp_path / "out", solver=solver)
    with pytest.raises(InputError, match=r"tensor model\.layers\.0\.mixed: .*base"):
        scan(run.base, run.checkpoints, out=tmp_path / "deep" / "scan", progress=False)
    assert [n for n in listing(tmp_path) if n != "deep"] == before


def test_a_failing_scan_makes_no_parent(run: RunFolder, tmp_path: Path) -> None:
    poison(run, "model.layers.0.mixed", 20)
    before = listing(tmp_path)
    with pytest.raises(InputError):
        scan(run.base, run.checkpoints, out=tmp_path / "deep" / "scan", progress=False)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("change", ["truncate", "grow", "remove"])
def test_a_shard_that_changes_after_its_header_was_read(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, io: str, change: str
) -> None:
    """Between planning and loading, as a training run still writing would do it."""
    shard = sorted(run.folder(20).glob("*.safetensors"))[0]
    real = stream.Stream.start

    def start(self: stream.Stream, passes: Any) -> None:
        data = shard.read_bytes()
        shard.unlink()
        if change != "remove":
            shard.write_bytes(data[:-100] if change == "truncate" else data + b"more")
        real(self, passes)

    monkeypatch.setattr(stream.Stream, "start", start)
    before = {n for n in listing(tmp_path) if n != str(shard.relative_to(tmp_path))}
    with pytest.raises(InputError, match=re.escape(str(shard))) as caught:
        go(run, tmp_path / "out", io=io)
    assert "\n" not in str(caught.value)
    assert {n for n in listing(tmp_path) if n != str(shard.relative_to(tmp_path))} == before


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_a_shard_truncated_after_it_was_opened(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, io: str
) -> None:
    """A mapped page past the end of a file is SIGBUS for whoever touches it."""
    shard = sorted(run.folder(20).glob("*.safetensors"))[1]
    real = files.Files.open

    def opened(self: files.Files, asked: Any) -> _core.File:
        file = real(self, asked)
        if asked.path == shard and shard.stat().st_size > 8192:
            os.truncate(shard, 8192)
        return file

    monkeypatch.setattr(files.Files, "open", opened)
    before = listing(tmp_path)
    with pytest.raises(InputError, match=re.escape(str(shard))):
        go(run, tmp_path / "out", io=io)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("when", ["first window", "publishing"])
def test_an_error_of_the_system_leaves_nothing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    at = {"first window": "pwrite", "publishing": "fsync"}[when]
    monkeypatch.setattr(os, at, full)
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=r"cannot be .*: No space left"):
        go(run, tmp_path / "new" / "deep" / "out")
    assert listing(tmp_path) == before


def test_more_than_the_disk_holds(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relex_ext.job.free_space", lambda folder: 1000)
    with pytest.raises(OutputError, match="bytes of free space, found 1000"):
        go(run, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "svd"}, "solver: expected one of"),
        ({"io": "direct"}, "io: expected one of"),
        ({"backend": "gpu"}, "backend: expected one of"),
        ({"dtype": "float64"}, "dtype: expected float32"),
        ({"dtype": "fp8"}, "dtype: expected float32"),
        ({"memory_limit": "lots"}, "memory_limit: expected a size"),
        ({"memory_limit": "-1GiB"}, "memory_limit: expected a size"),
        ({"memory_limit": 0}, "memory_limit: expected at least"),
        ({"memory_limit": -5}, "memory_limit: expected at least"),
        ({"threads": 0}, "threads: expected 1"),
        ({"threads": 100000}, "threads: expected 1"),
        ({"rank": 0}, "rank: expected at least 1"),
        ({"time_axis": "loss"}, "time_axis: expected step or index"),
    ],
)
def test_bad_options(run: RunFolder, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        go(run, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["missing", "shape", "nan", "order"])
def test_bad_weights(run: RunFolder, tmp_path: Path, case: str) -> None:
    names = [n for n, s in MODEL.items() if s.kind != "integer"]
    tensors = {n: np.full((1, 3), 0.5) for n in names}
    steps = (10, 20, 30)
    if case == "missing":
        del tensors[names[0]]
    elif case == "shape":
        tensors[names[0]] = np.ones((3, 1))
    elif case == "nan":
        tensors[names[0]][0, 1] = np.nan
    else:
        steps = (20, 10, 30)
    with pytest.raises(InputError, match="weights: "):
        combine(
            run.base, run.checkpoints, Weights(steps, (5.0,), tensors, {}), tmp_path / "out",
            progress=False,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_scan_that_does_not_fit_leaves_nothing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("relex_ext._core.reserve", full)
    before = listing(tmp_path)
    with pytest.raises(OutputError, match="cannot be written: No space left"):
        scan(run.base, run.checkpoints, out=tmp_path / "deep" / "scan", progress=False)
    assert listing(tmp_path) == before
