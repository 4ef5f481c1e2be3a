"""LoRA adapters as checkpoints: their Gram matrices and forecasts against PEFT's own, dense."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adapters
import oracle
import tolerances
from adapters import STEPS, LoraRun, gpt2, llama, make_lora_run
from compare import Tally
from folders import read_model
from relex_ext import extrapolate, scan
from relex_ext.adapters import gram, movement

pytestmark = [pytest.mark.filterwarnings(text) for text in adapters.IGNORED]

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

RUNS: dict[str, Any] = {
    "plain": (llama, {}),
    "all linear, rsLoRA": (llama, {"target_modules": LINEAR, "use_rslora": True, "r": 7}),
    "patterns": (
        llama,
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 9},
            "alpha_pattern": {"model.layers.0.self_attn.v_proj": 3, "q_proj": 5},
        },
    ),
    "embedding and head": (llama, {"target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "stored as (in, out)": (gpt2, {"target_modules": ["c_attn", "c_proj"]}),
    "adapters in bf16": (llama, {"dtype": torch.bfloat16}),
    "a start that moves": (llama, {"init_lora_weights": False}),
}


@pytest.fixture(scope="module", params=list(RUNS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    model, config = RUNS[request.param]
    return make_lora_run(tmp_path_factory.mktemp("lora"), model(), **config)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    """Over a base in fp32."""
    return make_lora_run(tmp_path_factory.mktemp("full"), llama(torch.float32))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tiny models are cut as large ones are."""
    monkeypatch.setattr(gram, "TILE", 10)
    monkeypatch.setattr(gram, "COLUMNS", 31)
    monkeypatch.setattr(movement, "BLOCK", 500)
    monkeypatch.setattr(movement, "CHUNK", 9)


def check_grams(run: LoraRun) -> None:
    found = scan(run.base, run.checkpoints, progress=False)
    assert set(found.grams) == set(run.base_tensors)
    for name, values in found.grams.items():
        if name in run.deltas:
            m = run.deltas[name]
            expected = m @ m.T
            size = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
            assert size.min() > 0
            assert (np.abs(values - expected) <= tolerances.EXACT * size).all(), name
            assert (values == values.T).all()
        else:
            assert not values.any()


def test_gram(run: LoraRun, small_blocks: None) -> None:
    check_grams(run)


def test_forecast(run: LoraRun, tmp_path: Path, small_blocks: None) -> None:
    targets = (80.0, 400.0)
    done = extrapolate(run.base, run.checkpoints, targets, tmp_path / "out", progress=False)
    tally = Tally()
    for target in targets:
        found = read_model(done.folders[target])
        assert list(found) == list(run.base_tensors)
        for name, base in run.base_tensors.items():
            assert (found[name].dtype, found[name].shape) == (base.dtype, base.shape)
            if name in run.deltas:
                tally.add("BF16", run.distance(name, found[name], target))
                assert (found[name].words != base.words).any()
            else:
                assert found[name].data == base.data
    tally.check()


def test_ranks_that_differ(tmp_path: Path, small_blocks: None) -> None:
    """From step to step, as after a change of the configuration between two phases."""
    run = make_lora_run(tmp_path / "a", llama())
    other = make_lora_run(tmp_path / "b", llama(), r=7, use_rslora=True)
    for step in (20, 50):
        shutil.rmtree(run.folder(step))
        shutil.copytree(other.folder(step), run.folder(step))
    check_grams(run)
    done = extrapolate(run.base, run.checkpoints, 60, tmp_path / "out", progress=False)
    found, tally = read_model(done.folders[60.0]), Tally()
    for name in run.deltas:
        tally.add("BF16", run.distance(name, found[name], 60))
    tally.check()


@pytest.mark.parametrize(
    ("base", "out"),
    [
        (torch.float32, "F32"),
        (torch.float32, "BF16"),
        (torch.float16, "F16"),
        (torch.bfloat16, "F16"),
        (torch.bfloat16, "F32"),
    ],
)
def test_dtypes(tmp_path: Path, base: torch.dtype, out: str) -> None:
    """Of the base, and of the weights written, adapted or not."""
    run = make_lora_run(tmp_path, llama(base))
    done = extrapolate(
        run.base, run.checkpoints, 90, tmp_path / "out", dtype=out, rank=2, progress=False
    )
    found = read_model(done.folders[90.0])
    tally = Tally()
    for name, start in run.base_tensors.items():
        assert found[name].dtype == out
        if name in run.deltas:
            tally.add(out, run.distance(name, found[name], 90, rank=2))
        else:
            assert (found[name].words == oracle.round_to(start.values, out)).all()
    tally.check()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "secant"},
        {"method": "secant", "backend": "reference"},
        {"method": "two-point", "window": 2},
        {"method": "ema"},
        {"method": "pinned", "fit": "polynomial"},
        {"window": 3, "rank": 2},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_methods(full: LoraRun, tmp_path: Path, options: dict[str, Any]) -> None:
    run = full
    done = extrapolate(run.base, run.checkpoints, 90, tmp_path / "out", progress=False, **options)
    found = read_model(done.folders[90.0])
    asked = {"method": "relex", **options}
    asked.pop("backend", None)
    for name, m in run.deltas.items():
        base = run.base_tensors[name].values
        moved = oracle.movement(m=m, steps=STEPS, targets=[90], **asked)[0]
        terms = np.abs(base) + np.abs(m).sum(axis=0)
        assert (np.abs(found[name].values - (base + moved)) <= 2.0**-23 * terms).all()


def test_strength_and_given_scan(tmp_path: Path) -> None:
    """λ = 0 is the newest adapter, merged; a kept scan gives the same bytes as a new one."""
    run = make_lora_run(tmp_path, llama())
    options: dict[str, Any] = {"strength": 0.0, "progress": False}
    done = extrapolate(run.base, run.checkpoints, 200, tmp_path / "a", **options)
    assert done.weights is not None
    newest = run.merged(50).state_dict()
    for name, tensor in read_model(done.folders[200.0]).items():
        expected = oracle.round_to(newest[name].numpy().ravel(), "BF16")
        assert np.mean(tensor.words == expected) >= tolerances.EQUAL_BITS
        assert oracle.ulps(tensor.words, expected, "BF16").max() <= tolerances.ULP
    again = extrapolate(
        run.base, run.checkpoints, 200, tmp_path / "b", scan=tmp_path / "a" / "scan.safetensors",
        **options,
    )  # fmt: skip
    for name in ("model.safetensors", "config.json"):
        a, b = (d.folders[200.0] / name for d in (done, again))
        assert a.read_bytes() == b.read_bytes()


def test_logits(tmp_path: Path) -> None:
    """An observed step, extrapolated, answers as PEFT's merge of its adapter does."""
    run = make_lora_run(tmp_path, llama(torch.float32), shard_size="60KB")
    options: dict[str, Any] = {"method": "latest", "progress": False}
    done = extrapolate(run.base, run.checkpoints, 50, tmp_path / "out", **options)
    assert len(list(done.folders[50.0].glob("*.safetensors"))) > 1
    loaded, report = adapters.transformers.AutoModelForCausalLM.from_pretrained(
        done.folders[50.0], dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        merged = run.merged(50)
        expected = merged(tokens).logits
        by_hand = copy.deepcopy(merged).float()(tokens).logits
        found = loaded(tokens).logits
        start = run.model(tokens).logits
    assert torch.equal(found, by_hand)
    assert (found - expected).abs().max() < 1e-5
    assert (start - expected).abs().max() > 1e-3


def test_trained(tmp_path: Path) -> None:
    """A real training: AdamW on a LoRA, an adapter saved at every other step."""
    model = llama(torch.float32)
    model.save_pretrained(tmp_path / "base")
    wrapped = adapters.wrap(model, target_modules=LINEAR)
    optimizer = torch.optim.AdamW((p for p in wrapped.parameters() if p.requires_grad), lr=1e-3)
    tokens = torch.randint(0, 211, (4, 16), generator=torch.Generator().manual_seed(3))
    losses = []
    for step in range(1, 21):
        loss = wrapped(tokens, labels=tokens).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 2 == 0:
            adapters.save(wrapped, tmp_path / "run" / f"checkpoint-{step}")
    run = LoraRun(tmp_path / "base", tmp_path / "run", model, tuple(range(2, 21, 2)))
    check_grams(run)
    done = extrapolate(run.base, run.checkpoints, 30, tmp_path / "out", progress=False)
    found = read_model(done.folders[30.0])
    tally = Tally()
    for name in run.deltas:
        tally.add("F32", run.distance(name, found[name], 30))
    tally.check()
    forecast = adapters.transformers.AutoModelForCausalLM.from_pretrained(done.folders[30.0])
    with torch.no_grad():
        assert float(forecast(tokens, labels=tokens).loss) < losses[10] < losses[0]
    assert done.verdicts[30.0].decision in ("go", "go shrunk", "no-go")
