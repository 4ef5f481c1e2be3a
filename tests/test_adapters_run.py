"""A run over LoRA adapters as a whole: command line, plan, output, resuming, verifying."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import adapters
from adapters import LoraRun, llama, make_lora_run
from folders import digest, listing, model_digest, published
from outputs import check, flipped, place_of, redigest
from relex_ext import InputError, Scan, combine, extrapolate, forecast, list_checkpoints, scan
from relex_ext.adapters import gram, movement
from relex_ext.cli import main
from relex_ext.errors import Interrupted
from relex_ext.journal import Journal

pytestmark = [pytest.mark.filterwarnings(text) for text in adapters.IGNORED]

Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    return make_lora_run(tmp_path_factory.mktemp("lora"), llama(), shard_size="60KB")


def arguments(run: LoraRun, *more: object) -> list[str]:
    return ["--base", str(run.base), "--checkpoints", str(run.checkpoints), *map(str, more)]


def test_command_line(run: LoraRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept.safetensors"
    targets = ["--target-step", "80", "--target-step", "400"]
    assert main(["scan", *arguments(run, "--out", kept, "-q")]) == 0
    given = arguments(run, *targets, "--out", out, "--scan", kept, "--until", 40)
    assert main(["extrapolate", *given, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["record"]
    assert list(record["checkpoints"]) == ["10", "20", "30", "40"]
    again = extrapolate(
        run.base, run.checkpoints, [80, 400], tmp_path / "again", until=40, progress=False
    )
    for target in (80.0, 400.0):
        folder = again.folders[target]
        assert model_digest(out / folder.name) == model_digest(folder)
        assert {p.name for p in folder.glob("*.safetensors")} == {
            p.name for p in run.base.glob("*.safetensors")
        }
    frozen = {name for name, one in again.record["tensors"].items() if one["frozen"]}
    assert frozen == run.base_tensors.keys() - run.deltas.keys()


def test_listed(run: LoraRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.checkpoints, copy)
    (copy / "checkpoint-20" / "adapter_model.safetensors").unlink()
    assert main(["list", str(copy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["10", "checkpoint-10"] and lines[1].endswith("  yes (LoRA)")
    assert lines[2].endswith("no: expected adapter_model.safetensors, found none")
    assert lines[-1].startswith(f"extrapolate: steps 10 to {run.steps[-1]}, ")
    found = list_checkpoints(run.checkpoints)
    assert [one.step for one in found] == list(run.steps)
    assert all(one.adapter and one.problem is None and one.dtypes == ("F32",) for one in found)
    assert found[0].tensors == 2 * len(run.deltas)


def test_dry_run(run: LoraRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(run, "--target-step", 80, "--out", tmp_path / "out")
    assert main(["extrapolate", *given, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    factors = sum(
        (run.folder(step) / "adapter_model.safetensors").stat().st_size for step in run.steps
    )
    weights = sum(len(raw.data) for raw in run.base_tensors.values())
    assert plan["bytes_written"] == weights
    assert 0.8 * 2 * factors + weights < plan["bytes_read"] < 2 * factors + weights
    assert plan["solvers"] == {"gram": len(run.base_tensors), "power": 0, "none": 0}
    assert 0 < plan["peak_memory"] < 64 << 20
    assert listing(tmp_path) == []


def test_python(run: LoraRun, tmp_path: Path) -> None:
    """scan, forecast and combine, one after the other."""
    found = scan(run.base, run.checkpoints, progress=False)
    weights = forecast(found, [80], rank=2)
    parts = combine(run.base, run.checkpoints, weights, tmp_path / "parts", progress=False)
    whole = extrapolate(run.base, run.checkpoints, 80, tmp_path / "whole", rank=2, progress=False)
    assert model_digest(parts.folders[80.0]) == model_digest(whole.folders[80.0])
    kept = Scan.load(tmp_path / "whole" / "scan.safetensors")
    assert kept.identities == found.identities
    assert all((kept.grams[name] == found.grams[name]).all() for name in found.grams)


def test_beside_the_weights(tmp_path: Path) -> None:
    """The model's configuration is the base's; a tokenizer that was trained with wins."""
    run = make_lora_run(tmp_path, llama())
    for name in ("tokenizer.json", "tokenizer_config.json", "modeling_x.py"):
        (run.base / name).write_text(f'{{"of": "base {name}"}}')
    for name in ("tokenizer.json", "chat_template.jinja", "config.json", "modeling_x.py"):
        (run.folder(50) / name).write_text('{"of": "adapter"}')
    done = extrapolate(run.base, run.checkpoints, 80, tmp_path / "out", progress=False)
    folder = done.folders[80.0]
    assert "adapter" in (folder / "tokenizer.json").read_text()
    assert "adapter" in (folder / "chat_template.jinja").read_text()
    for name in ("config.json", "tokenizer_config.json", "modeling_x.py"):
        assert (folder / name).read_bytes() == (run.base / name).read_bytes()
    assert not list(folder.glob("adapter*"))


def test_where_verl_keeps_them(run: LoraRun, tmp_path: Path) -> None:
    for step in run.steps:
        place = tmp_path / "run" / f"global_step_{step}" / "actor" / "lora_adapter"
        shutil.copytree(run.folder(step), place)
        (place.parent / "model_world_size_1_rank_0.pt").write_bytes(b"state")
    done = extrapolate(run.base, tmp_path / "run", 80, tmp_path / "out", progress=False)
    same = extrapolate(run.base, run.checkpoints, 80, tmp_path / "same", progress=False)
    assert model_digest(done.folders[80.0]) == model_digest(same.folders[80.0])


def test_a_scan_of_another_alpha(tmp_path: Path) -> None:
    run = make_lora_run(tmp_path, llama())
    found = scan(run.base, run.checkpoints, progress=False)
    config = run.folder(30) / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 32'))
    with pytest.raises(InputError, match="made from other files than step 30 has now"):
        extrapolate(run.base, run.checkpoints, 80, tmp_path / "out", scan=found, progress=False)
    other = scan(run.base, run.checkpoints, progress=False)
    np.testing.assert_allclose(other.grams[Q][2, 2], 4 * found.grams[Q][2, 2], rtol=1e-12)
    np.testing.assert_allclose(other.grams[Q][2, 1], 2 * found.grams[Q][2, 1], rtol=1e-12)


def test_another_base_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_lora_run(tmp_path, llama())
    config = run.folder(30) / "adapter_config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "base_model_name_or_path": "another/model"}))
    with caplog.at_level(logging.INFO, "relex_ext"):
        scan(run.base, run.checkpoints, progress=False)
    assert "names another base than the newest adapter does: another/model" in caplog.text


@pytest.mark.parametrize(
    "options", [{}, {"strength": "auto"}, {"method": "secant"}], ids=["one", "auto", "secant"]
)
def test_goes_on_from_every_tensor(
    run: LoraRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def go(out: Path) -> None:
        extrapolate(run.base, run.checkpoints, [80, 400], out, progress=False, **options)

    go(tmp_path / "whole")
    expected = digest(tmp_path / "whole")
    entries = len(run.base_tensors) * (1 if "method" in options else 2)
    real = Journal.add
    for after in (1, 2, entries // 2, entries - 1):
        place = tmp_path / str(after)
        place.mkdir()
        turn = itertools.count()

        def add(self: Journal, *entry: Any, turn: Any = turn, after: int = after) -> None:
            if next(turn) >= after:
                raise KeyboardInterrupt
            real(self, *entry)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add", add)
            with pytest.raises(Interrupted):
                go(place / "out")
        assert published(place) == []
        go(place / "out")
        assert digest(place / "out") == expected
        assert listing(place) == ["out", *(f"out/{name}" for name in listing(tmp_path / "whole"))]


def test_bytes_do_not_depend_on_memory_or_threads(
    run: LoraRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"progress": False}
    extrapolate(run.base, run.checkpoints, [80, 400], tmp_path / "a", **options)
    expected = digest(tmp_path / "a")
    extrapolate(
        run.base, run.checkpoints, [80, 400], tmp_path / "b", threads=1, memory_limit="2MiB",
        **options,
    )  # fmt: skip
    assert digest(tmp_path / "b") == expected
    monkeypatch.setattr(movement, "stack_bytes", lambda *_: 1 << 62)  # factors are read again
    extrapolate(run.base, run.checkpoints, 80, tmp_path / "c", **options)
    assert model_digest(tmp_path / "c" / "step_80") == model_digest(tmp_path / "a" / "step_80")


def test_bytes_do_not_depend_on_blas_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of products so large that BLAS adds them up otherwise on one thread than on several."""
    model = llama()
    model.resize_token_embeddings(2500)
    run = make_lora_run(tmp_path, model, target_modules=["lm_head"], r=160)
    monkeypatch.setattr(gram, "TILE", 320)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            found.append(scan(run.base, run.checkpoints, progress=False).grams["lm_head.weight"])
    assert (found[0] == found[1]).all()


def test_verify(run: LoraRun, tmp_path: Path) -> None:
    """Samples are computed again from the factors; a bit that is another is found."""
    for name, options in {"a": {}, "b": {"dtype": "float32", "rank": 2}}.items():
        out = tmp_path / name
        extrapolate(run.base, run.checkpoints, [80, 400], out, progress=False, **options)
        found = check(out, samples=1000)
        assert found.ok and found.samples >= 50, found
        shard, begin, _ = place_of(out / "step_400", Q)
        with flipped(shard, begin + 1):
            redigest(out)
            (damage,) = check(out, samples=1000).damages
            assert f"tensor {Q}: 1 of its elements 0 to 2303 are not what the inputs give" in damage
