"""adapter_config.json: what it makes of A and B, or why that is no update of the base."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relex_ext import strictjson
from relex_ext.errors import InputError
from relex_ext.headers import Shard, shard_of
from relex_ext.plainfiles import opened, read_at

CONFIG = "adapter_config.json"
LARGEST = 1 << 20

PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base what it is; the others (PiSSA, OLoRA, LoftQ,
CorDA, …) put a part of it into the adapter, which is then no update."""

HARMLESS = frozenset({
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path",
    "revision", "inference_mode", "r", "lora_alpha", "lora_dropout", "fan_in_fan_out",
    "use_rslora", "init_lora_weights", "rank_pattern", "alpha_pattern", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "eva_config",
    "qalora_group_size", "runtime_config", "modules_to_save", "trainable_token_indices",
    "ensure_weight_tying", "bias",
})  # fmt: skip
"""Settings that are read here, that choose modules, or whose tensors are judged by their names."""

REASONS = {
    "use_dora": "DoRA scales each row anew, so its update is not s·BA",
    "layer_replication": "its layers are not the base's",
    "target_parameters": "experts' parameters are not modules",
    "alora_invocation_tokens": "it acts on a part of the tokens only",
}

_PATTERN = re.compile(r"[\w^$.\\*+-]{1,200}")
_REPEATS = 1
_LONGEST_NAME = 1000
"""With these the worst pattern takes a square of that many steps."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a module's s and orientation follow from its name and rank."""

    alpha: float
    by_root: bool
    """s = α/√r (rsLoRA) instead of α/r."""
    transposed: bool
    """Weights are stored as (in, out)."""
    patterns: tuple[tuple[re.Pattern[str], float], ...]
    """Of the modules' names → another α, the first that fits counts."""
    base: str | None
    shard: Shard
    """The file itself, by which a change of it is noticed."""

    def scale(self, module: str, rank: int) -> float:
        if self.patterns and len(module) > _LONGEST_NAME:
            raise InputError(f"{self.shard.path}: module {module}: its name is too long to match")
        alpha = next((a for p, a in self.patterns if p.match(module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def read_settings(folder: Path) -> Settings:
    """Read a folder's adapter_config.json.

    Raises:
        InputError: it is none, or its adapter is not an update s·BA of the base's weights.
    """
    path = folder / CONFIG
    with opened(path, folder) as (descriptor, info):
        if info.st_size > LARGEST:
            raise InputError(f"{path}: expected at most {LARGEST} bytes, found {info.st_size}")
        data = read_at(path, descriptor, 0, info.st_size)
    try:
        found = strictjson.load(data, floats=True)
        if not isinstance(found, dict):
            raise ValueError("expected an object")
        _check(found)
        return Settings(
            alpha=_number("lora_alpha", found.get("lora_alpha")),
            by_root=found.get("use_rslora") is True,
            transposed=found.get("fan_in_fan_out") is True,
            patterns=_patterns(found.get("alpha_pattern") or {}),
            base=_text(found.get("base_model_name_or_path")),
            shard=shard_of(path, info, data),
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _check(found: Mapping[str, Any]) -> None:
    kind = found.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"peft_type: expected LORA, found {kind}")
    start = found.get("init_lora_weights", True)
    if start not in PLAIN_STARTS:
        raise ValueError(
            f"init_lora_weights: expected a start that leaves the base as it is, found {start}; "
            "convert the adapter to a plain LoRA (path_initial_model_for_weight_conversion)"
        )
    for name in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(found.get(name, False), bool):
            raise ValueError(f"{name}: expected true or false, found {found[name]}")
    for name, value in found.items():
        if name not in HARMLESS and value not in (None, False, "none", {}, []):
            why = REASONS.get(name, "what it does to the update is not known here")
            raise ValueError(f"{name}: expected none, found {value}: {why}")
    if found.get("bias", "none") != "none":
        raise ValueError(f"bias: expected none, found {found['bias']}: biases are trained beside")


def _patterns(found: Any) -> tuple[tuple[re.Pattern[str], float], ...]:
    """alpha_pattern's, matched as PEFT does: against the end of a name, after a dot."""
    if not isinstance(found, dict):
        raise ValueError("alpha_pattern: expected an object")
    patterns = []
    for key, value in found.items():
        if not _PATTERN.fullmatch(key) or sum(map(key.count, "*+")) > _REPEATS:
            raise ValueError(f"alpha_pattern: expected names or simple patterns, found {key}")
        try:
            pattern = re.compile(rf"(.*\.)?({key})$")
        except re.error as error:
            raise ValueError(f"alpha_pattern: {key}: {error}") from error
        patterns.append((pattern, _number(f"alpha_pattern: {key}", value)))
    return tuple(patterns)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a number, found {value}")
    return float(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
