"""Adapters that are no updates s·BA of the base they are given with: one line each, no output."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import numpy as safetensors

import adapters
from adapters import LoraRun, llama, make_lora_run
from folders import Raw, listing, read_model, write_model
from relex_ext import InputError, extrapolate
from relex_ext.cli import main

pytestmark = [pytest.mark.filterwarnings(text) for text in adapters.IGNORED]

STEPS = (1, 2, 3)

Change = Callable[[Path, Path], object]
"""Of (the base's folder, the newest adapter's)."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> LoraRun:
    return make_lora_run(tmp_path_factory.mktemp("lora"), llama(), STEPS)


@pytest.fixture
def root(original: LoraRun, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(original.base.parent, tmp_path / "lora")
    return tmp_path / "lora"


def set_to(**values: Any) -> Change:
    """Settings of the newest adapter, others."""

    def change(base: Path, adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Change:
    """Tensors of the newest adapter, changed."""

    def rewrite(base: Path, adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        found = safetensors.load_file(path)
        change(found)
        path.unlink()
        safetensors.save_file(found, path)

    return rewrite


def as_pickle(base: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def with_weights(base: Path, adapter: Path) -> None:
    shutil.copy(base / "model.safetensors", adapter)


def whole_model(base: Path, adapter: Path) -> None:
    shutil.rmtree(adapter)
    shutil.copytree(base, adapter)


def leading_out(base: Path, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.rename(base / path.name)
    path.symlink_to(base / path.name)


def long_config(base: Path, adapter: Path) -> None:
    with (adapter / "adapter_config.json").open("a") as file:
        file.write(" " * (1 << 20))


def requantise(dtype: str) -> Change:
    def change(base: Path, adapter: Path) -> None:
        found = read_model(base)
        found["model.layers.0.self_attn.q_proj.weight"] = Raw(dtype, (48, 48), bytes(48 * 48))
        write_model(base, found)

    return change


MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
RENAMED = A.replace("layers.0", "layers.7"), B.replace("layers.0", "layers.7")
EMBEDDING = "base_model.model.model.embed_tokens"


def put(name: str, *shape: int) -> Change:
    return tensors(lambda found: found.update({name: np.zeros(shape, np.float32)}))


def nan(found: dict[str, np.ndarray]) -> None:
    found[B][3, 1] = np.nan
    found[B][5, 0] = np.inf


CASES: Mapping[str, tuple[Change, str]] = {
    "another kind": (set_to(peft_type="IA3"), "peft_type: expected LORA, found IA3"),
    "no kind": (set_to(peft_type=None), "peft_type: expected LORA, found None"),
    "DoRA": (set_to(use_dora=True), "use_dora: expected none, found True: DoRA scales each row"),
    "PiSSA": (
        set_to(init_lora_weights="pissa_niter_4"),
        "init_lora_weights: expected a start that leaves the base as it is, found pissa_niter_4",
    ),
    "biases": (set_to(bias="all"), "bias: expected none, found all"),
    "biases of B": (set_to(lora_bias=True), "lora_bias: expected none, found True"),
    "experts": (
        set_to(target_parameters=["mlp.experts.down_proj"]),
        "target_parameters: expected none, found",
    ),
    "a later setting": (set_to(use_whatever=2), "use_whatever: expected none, found 2: what it"),
    "no α": (set_to(lora_alpha=None), "lora_alpha: expected a number, found None"),
    "an α of text": (set_to(lora_alpha="8"), "lora_alpha: expected a number, found 8"),
    "rsLoRA of 1": (set_to(use_rslora=1), "use_rslora: expected true or false, found 1"),
    "a slow pattern": (
        set_to(alpha_pattern={"(a+)+b": 2}),
        "alpha_pattern: expected names or simple patterns, found (a+)+b",
    ),
    "a wrong pattern": (set_to(alpha_pattern={"+": 2}), "alpha_pattern: +: nothing to repeat"),
    "other layers": (set_to(layer_replication=[[0, 2]]), "layer_replication: expected none"),
    "no JSON": (
        lambda _, adapter: (adapter / "adapter_config.json").write_text("{'r': 8}"),
        "adapter_config.json: expected JSON, found",
    ),
    "no object": (
        lambda _, adapter: (adapter / "adapter_config.json").write_text("[]"),
        "adapter_config.json: expected an object",
    ),
    "a long config": (long_config, "adapter_config.json: expected at most 1048576 bytes, found"),
    "a config elsewhere": (leading_out, "adapter_config.json"),
    "no tensors": (
        lambda _, adapter: (adapter / "adapter_model.safetensors").unlink(),
        "expected adapter_model.safetensors, found none",
    ),
    "a pickle": (as_pickle, "found none; load adapter_model.bin where you trust it and save_pre"),
    "no safetensors": (
        lambda _, adapter: (adapter / "adapter_model.safetensors").write_bytes(b"x" * 99),
        "not a safetensors file",
    ),
    "weights beside it": (with_weights, "found adapter_config.json: a PEFT (LoRA) adapter; merge"),
    "a model among adapters": (whole_model, "found adapter_config.json: a PEFT (LoRA) adapter"),
    "another module": (
        tensors(lambda f: f.update(zip(RENAMED, (f[A], f[B]), strict=True))),
        "module model.layers.7.self_attn.q_proj: missing",
    ),
    "a module less": (
        tensors(lambda f: (f.pop(A), f.pop(B))),
        "module model.layers.0.self_attn.q_proj: missing",
    ),
    "B alone": (
        tensors(lambda f: f.pop(A)), "expected A and B of a module, found one of them only"
    ),
    "another rank": (
        tensors(lambda f: f.update({A: f[A][:3].copy()})),
        f"tensor {B}: expected the rank of A, [3, 48], found [48, 4]",
    ),
    "another width": (
        tensors(lambda f: f.update({A: f[A][:, :40].copy()})),
        "module model.layers.0.self_attn.q_proj: expected an update of [48, 48], found [48, 40]",
    ),
    "(in, out)": (
        set_to(fan_in_fan_out=True),
        "module model.layers.0.mlp.down_proj: expected an update of [48, 80], found [80, 48]",
    ),
    "a convolution": (
        tensors(lambda f: f.update({A: f[A].reshape(4, 48, 1, 1)})),
        f"tensor {A}: expected a matrix, as linear modules and embeddings have it, found [4, 48,",
    ),
    "whole numbers": (
        tensors(lambda f: f.update({A: f[A].astype(np.int32)})),
        f"tensor {A}: expected F32, F16 or BF16, found I32",
    ),
    "NaN": (tensors(nan), f"tensor {B}: 2 NaN or Inf in step 3"),
    "a whole tensor": (
        put("base_model.model.lm_head.weight", 211, 48),
        "expected a factor lora_A or lora_B, found a whole tensor that was trained or saved beside",
    ),
    "magnitudes": (put(f"{MODULE}.lora_magnitude_vector", 48), "found DoRA's, whose update"),
    "tokens": (
        put(f"{EMBEDDING}.token_adapter.trainable_tokens_delta", 2, 48),
        "found rows of the embedding trained by themselves",
    ),
    "packed": (requantise("U8"), "found quantised weights; save them as float32"),
    "quantised": (
        requantise("F8_E4M3"),
        "self_attn.q_proj.weight: dtype: expected F32, F16 or BF16, found F8_E4M3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", list(CASES))
def test_refused(root: Path, what: str) -> None:
    change, message = CASES[what]
    change(root / "base", root / "run" / "checkpoint-3")
    before = listing(root)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        extrapolate(root / "base", root / "run", 9, root / "out", nonfinite="carry", progress=False)
    assert "\n" not in str(caught.value)
    assert listing(root) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--solver", "power"], "solver: expected auto or gram with LoRA adapters, found power"),
        (["--backend", "triton"], "backend: expected auto, cpu or reference with LoRA adapters"),
        (["--device", "cuda:0"], "device: expected none with LoRA adapters, found cuda:0"),
        (["--io", "mmap"], "io: expected auto or pread with LoRA adapters, found mmap"),
        (["--delta-dtype", "float16"], "delta_dtype: expected float32 with LoRA adapters"),
        (["--memory-limit", "9KiB"], "memory_limit: expected at least"),
        (["--until", "1"], "checkpoints: expected at least 2, found 1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options(
    original: LoraRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    inputs = ["--base", str(original.base), "--checkpoints", str(original.checkpoints)]
    out = ["--target-step", "9", "--out", str(tmp_path / "out")]
    assert main(["extrapolate", *inputs, *out, *options]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"relex: {message}") or message in said.err
    assert said.err.count("\n") == 1
    assert listing(tmp_path) == []


def test_a_search(original: LoraRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["--base", str(original.base), "--checkpoints", str(original.checkpoints)]
    assert main(["search", *inputs, "--out", str(tmp_path / "out"), "--eval", "true {model}"]) == 2
    assert (
        "expected models, of which the newest is evaluated, found LoRA" in capsys.readouterr().err
    )
    assert listing(tmp_path) == []


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_a_head_that_is_the_embedding(tmp_path: Path, module: str) -> None:
    run = make_lora_run(tmp_path, llama(tie=True), STEPS, target_modules=[module])
    with pytest.raises(InputError, match=r"found .*base with head and embedding tied; untie them"):
        extrapolate(run.base, run.checkpoints, 9, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, r"lm_head\.weight: .*a whole tensor"),
        ({"trainable_token_indices": [3, 4]}, "rows of the embedding trained by themselves"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_as_peft_writes_it(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    run = make_lora_run(tmp_path, llama(adapters.torch.float32), STEPS, **config)
    with pytest.raises(InputError, match=message):
        extrapolate(run.base, run.checkpoints, 9, tmp_path / "out", progress=False)
