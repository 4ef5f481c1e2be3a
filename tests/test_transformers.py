"""A real (tiny, random) Qwen2 through save_pretrained, extrapolate and from_pretrained."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracle
import tiny
from compare import Tally, checked_distance
from folders import read_model
from relex_ext import extrapolate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what transformers warns about on import is not ours
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

STEPS = (10, 20, 30, 40)
TARGET = 100.0


def model_of(tie: bool, dtype: torch.dtype) -> Any:
    made = tiny.qwen2(
        211, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=tie,
    )  # fmt: skip
    return made.to(dtype)


def words(tensor: torch.Tensor) -> np.ndarray:
    kind = torch.uint16 if tensor.element_size() == 2 else torch.uint32
    return tensor.detach().contiguous().view(kind).numpy().ravel().copy()


def train(base: Any, root: Path, shard_size: str) -> dict[int, dict[str, np.ndarray]]:
    """Perturbed copies of the base, saved by transformers; step → parameter → words."""
    saved: dict[int, dict[str, np.ndarray]] = {}
    generator = torch.Generator().manual_seed(1)
    drift = {
        name: torch.randn(p.shape, generator=generator) * 2e-5
        for name, p in base.named_parameters()
    }
    for step in STEPS:
        model = copy.deepcopy(base)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * 1e-4
                parameter.copy_((parameter.float() + drift[name] * step + noise).to(base.dtype))
        model.save_pretrained(root / "run" / f"checkpoint-{step}", max_shard_size=shard_size)
        saved[step] = {name: words(p) for name, p in model.named_parameters()}
    return saved


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("shard_size", ["1GB", "60KB"])
@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float32, "F32")])
def test_round_trip(
    tmp_path: Path, tie: bool, shard_size: str, dtype: torch.dtype, name: str
) -> None:
    base = model_of(tie, dtype)
    base.save_pretrained(tmp_path / "base")
    saved = train(base, tmp_path, shard_size)
    done = extrapolate(
        tmp_path / "base", tmp_path / "run", TARGET, tmp_path / "out", progress=False
    )
    folder = done.folders[TARGET]
    assert len(list(folder.glob("*.safetensors"))) == (
        1
        if shard_size == "1GB"
        else len(list((tmp_path / "run" / "checkpoint-40").glob("*.safetensors")))
    )
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.dtype == dtype
    assert (loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()) is tie
    origin = {n: words(p) for n, p in base.named_parameters()}
    assert set(origin) == {n for n, _ in loaded.named_parameters()}
    tally = Tally()
    for parameter, tensor in loaded.named_parameters():
        start = oracle.to_float64(origin[parameter], name)
        rows = [oracle.to_float64(saved[s][parameter], name) for s in STEPS]
        answer = oracle.forecast(start, rows, STEPS, [TARGET])
        tally.add(name, checked_distance(words(tensor), name, start, rows, answer))
    tally.check()
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.isfinite(loaded(tokens).logits).all()


def test_head_saved_only_in_the_base(tmp_path: Path) -> None:
    """A base from elsewhere may write the tied head out; the checkpoints of transformers do not."""
    from safetensors.torch import load_file, save_file

    base = model_of(True, torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    train(base, tmp_path, "1GB")
    plain = extrapolate(tmp_path / "base", tmp_path / "run", TARGET, tmp_path / "a", progress=False)
    place = tmp_path / "base" / "model.safetensors"
    tensors = load_file(place)
    assert "lm_head.weight" not in tensors
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, place)
    other = extrapolate(tmp_path / "base", tmp_path / "run", TARGET, tmp_path / "b", progress=False)
    a, b = (f.folders[TARGET] / "model.safetensors" for f in (plain, other))
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("shard_size", ["1GB", "60KB"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logits_are_those_of_the_weights_loaded_by_hand(
    tmp_path: Path, tie: bool, shard_size: str, dtype: torch.dtype
) -> None:
    """from_pretrained of the folder, and its bytes put into a model made from the config."""
    base = model_of(tie, dtype)
    base.save_pretrained(tmp_path / "base")
    train(base, tmp_path, shard_size)
    done = extrapolate(
        tmp_path / "base", tmp_path / "run", TARGET, tmp_path / "out", progress=False
    )
    written = read_model(done.folders[TARGET])
    state = {
        name: torch.frombuffer(bytearray(tensor.data), dtype=dtype).reshape(tensor.shape)
        for name, tensor in written.items()
    }
    assert ("lm_head.weight" in state) is not tie
    if tie:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    by_hand = transformers.AutoModelForCausalLM.from_config(base.config, dtype=dtype)
    by_hand.load_state_dict(state)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(done.folders[TARGET], dtype="auto")
    tokens = torch.arange(60).reshape(3, 20) % 211
    with torch.no_grad():
        logits, expected, before = (
            model.eval()(tokens).logits for model in (loaded, by_hand, base)
        )
    assert logits.dtype == dtype
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, before)
