"""Model folders written byte by byte: safetensors files from a header made by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import oracle
from oracle import Float64, Words

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

TRAINER_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
COMPANIONS = {
    "config.json": b'{"model_type": "toy", "torch_dtype": "bfloat16"}\n',
    "generation_config.json": b'{"do_sample": true}\n',
    "tokenizer.json": b'{"version": "1.0"}\n',
    "tokenizer_config.json": b"{}\n",
    "special_tokens_map.json": b"{}\n",
    "merges.txt": b"a b\n",
    "chat_template.jinja": b"{{ messages }}\n",
}


@dataclass(frozen=True)
class Raw:
    """A tensor as a file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def words(self) -> Words:
        return np.frombuffer(self.data, oracle.WORD[self.dtype])

    @property
    def values(self) -> Float64:
        return oracle.to_float64(self.words, self.dtype)


Tensors = Mapping[str, Raw]


def raw(words: np.ndarray, dtype: str, shape: tuple[int, ...] | None = None) -> Raw:
    return Raw(
        dtype, words.shape if shape is None else shape, np.ascontiguousarray(words).tobytes()
    )


def file_bytes(
    tensors: Tensors, *, metadata: Mapping[str, str] | None = None, pad: int = 0
) -> bytes:
    """A safetensors file. ``pad``: spaces after the header, to move the data's alignment."""
    described: dict[str, Any] = {}
    if metadata is not None:
        described["__metadata__"] = dict(metadata)
    at = 0
    for name, tensor in tensors.items():
        end = at + len(tensor.data)
        described[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    return with_header(described, b"".join(t.data for t in tensors.values()), pad)


def with_header(described: Any, data: bytes, pad: int = 0) -> bytes:
    header = json.dumps(described).encode() + b" " * pad
    return len(header).to_bytes(8, "little") + header + data


def write_model(
    folder: Path,
    tensors: Tensors,
    shards: Sequence[Sequence[str]] | None = None,
    *,
    companions: Mapping[str, bytes] | None = None,
    pad: int = 0,
) -> Path:
    """A model folder, in one file or in ``shards`` (names of tensors in each) with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards is None:
        (folder / SINGLE).write_bytes(file_bytes(tensors, metadata={"format": "pt"}, pad=pad))
    else:
        weight_map = {}
        for i, names in enumerate(shards):
            file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            part = {name: tensors[name] for name in names}
            (folder / file).write_bytes(file_bytes(part, metadata={"format": "pt"}, pad=pad))
            weight_map.update(dict.fromkeys(names, file))
        write_index(folder, weight_map)
    for name, data in (companions or {}).items():
        (folder / name).write_bytes(data)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_model(folder: Path) -> dict[str, Raw]:
    """All tensors of a folder, read by hand."""
    found: dict[str, Raw] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        for name, value in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = (8 + length + o for o in value["data_offsets"])
                found[name] = Raw(value["dtype"], tuple(value["shape"]), data[begin:end])
    return found


def digest(folder: Path) -> dict[str, str]:
    """Every file below a folder → its SHA-256."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def model_digest(folder: Path) -> dict[str, str]:
    """:func:`digest` of a model folder without its card, which says more where more is known."""
    found = digest(folder)
    del found["README.md"]
    return found


def without_cards(folder: Path) -> dict[str, str]:
    """Digests of all but the model cards, which say the command."""
    return {n: d for n, d in digest(folder).items() if not n.endswith("README.md")}


def listing(folder: Path) -> list[str]:
    """Everything below a folder, hidden files among it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def published(folder: Path) -> list[str]:
    """:func:`listing` without unfinished runs that the same command goes on with."""
    return [name for name in listing(folder) if not any(map(_unfinished, Path(name).parts))]


def _unfinished(name: str) -> bool:
    return name.startswith(".") and name.endswith(".partial")


@dataclass
class RunFolder:
    """A base and its checkpoints on disk, with what was written."""

    base: Path
    checkpoints: Path
    steps: tuple[int, ...]
    base_tensors: dict[str, Raw]
    step_tensors: dict[int, dict[str, Raw]] = field(default_factory=dict)

    def folder(self, step: int) -> Path:
        return self.checkpoints / f"checkpoint-{step}"

    def forecast(
        self,
        name: str,
        targets: Sequence[float],
        rank: int = 1,
        steps: Sequence[int] | None = None,
        axis: Sequence[float] | None = None,
        step_scale: float = 1.0,
    ) -> oracle.Forecast:
        """The oracle's answer for one of its tensors."""
        chosen = self.steps if steps is None else steps
        rows = [self.step_tensors[step][name].values for step in chosen]
        base = self.base_tensors[name].values
        return oracle.forecast(base, rows, axis or chosen, targets, rank, step_scale)


@dataclass(frozen=True)
class Spec:
    """A tensor of a synthetic run. ``kind``: trained, frozen, integer."""

    shape: tuple[int, ...]
    base: str = "BF16"
    rows: tuple[str, ...] = ("BF16",)
    kind: str = "trained"


MODEL: Mapping[str, Spec] = {
    "model.embed_tokens.weight": Spec((331, 64)),
    "model.layers.0.attn.weight": Spec((48, 3, 5, 7)),
    "model.layers.0.mlp.weight": Spec((40, 9, 11), "F32", ("F32",)),
    "model.layers.0.norm.bias": Spec((97,), "F16", ("F16",)),
    "model.layers.0.mixed": Spec((70, 1001), "F32", ("BF16", "F16", "F32")),
    "model.layers.0.frozen": Spec((33, 5), kind="frozen"),
    "model.layers.0.scale": Spec((), "F32", ("F32",)),
    "model.layers.0.empty": Spec((0, 7)),
    "model.layers.0.position_ids": Spec((1, 19), "I64", ("I64",), "integer"),
    "model.layers.0.mask": Spec((3,), "BOOL", ("BOOL",), "integer"),
}
"""Ranks 0 to 4, every dtype, an empty tensor, a frozen one with −0, buffers of integers."""

SHARDS = (
    tuple(MODEL)[:3],
    tuple(MODEL)[3:7],
    tuple(MODEL)[7:],
)


def make_run(
    root: Path,
    steps: Sequence[int] = (10, 20, 35, 40, 70),
    model: Mapping[str, Spec] = MODEL,
    *,
    seed: int = 0,
    noise: float = 0.3,
    step_size: float = 2e-5,
    shards: Sequence[Sequence[str]] | None = None,
    base_shards: Sequence[Sequence[str]] | None = None,
) -> RunFolder:
    """A synthetic training run: a drift along one direction per tensor, a second one, and noise."""
    rng = np.random.default_rng(seed)
    run = RunFolder(root / "base", root / "run", tuple(sorted(steps)), {})
    run.step_tensors = {step: {} for step in run.steps}
    for name, spec in model.items():
        _make_tensor(run, name, spec, rng, noise, step_size)
    write_model(run.base, run.base_tensors, base_shards, companions=COMPANIONS, pad=1)
    for i, step in enumerate(run.steps):
        config = {"config.json": COMPANIONS["config.json"]}
        write_model(run.folder(step), run.step_tensors[step], shards, companions=config, pad=i)
        for name in TRAINER_STATE:
            (run.folder(step) / name).write_bytes(b"state")
    return run


def _make_tensor(
    run: RunFolder,
    name: str,
    spec: Spec,
    rng: np.random.Generator,
    noise: float,
    step_size: float,
) -> None:
    count = int(np.prod(spec.shape))
    if spec.kind == "integer":
        width = {"I64": 8, "BOOL": 1}[spec.base]
        data = rng.integers(0, 2, count * width, np.uint8).tobytes()
        run.base_tensors[name] = Raw(spec.base, spec.shape, data)
        for step in run.steps:
            run.step_tensors[step][name] = Raw(spec.base, spec.shape, bytes(len(data)))
        return
    base = oracle.round_to(rng.normal(0, 0.02, count), spec.base)
    if spec.kind == "frozen":
        base[::2] = oracle.round_to(np.array([-0.0]), spec.base)[0]
    run.base_tensors[name] = raw(base, spec.base, spec.shape)
    start = oracle.to_float64(base, spec.base)
    first, second = rng.normal(0, step_size, (2, count))
    for i, step in enumerate(run.steps):
        dtype = spec.rows[i % len(spec.rows)]
        wander = second * 3 * np.sin(step / 9) + rng.normal(0, 1, count) * step_size * noise
        moved = start if spec.kind == "frozen" else start + first * step + wander
        run.step_tensors[step][name] = raw(oracle.round_to(moved, dtype), dtype, spec.shape)
