"""Module type and layer, read off a tensor's name."""

from __future__ import annotations

from dataclasses import dataclass

LAYER_LISTS = frozenset({"layers", "layer", "h", "blocks", "block", "resblocks"})
"""What model code calls its list of layers; the number after it is the layer's."""

WRAPPERS = frozenset(
    {"self_attn", "attn", "attention", "self_attention", "mlp", "feed_forward", "block_sparse_moe"}
)
"""Parts of a layer whose members' own names say enough: ``self_attn.q_proj`` is ``q_proj``."""

AMBIGUOUS = frozenset({"c_proj", "dense", "proj", "out_proj", "fc1", "fc2"})
"""Names that mean different things in different parts, and keep the part's name for it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lives. ``stack``: the list of layers it is in, and ``layer`` its number there;
    "" and None for what is in no layer."""

    module: str
    stack: str = ""
    layer: int | None = None


def place_of(name: str) -> Place:
    """``model.layers.12.self_attn.q_proj.weight`` → q_proj in layer 12 of ``model.layers``.

    Experts share a type (``experts.down_proj``), whatever their number. A bias is a type of its
    own (``q_proj.bias``): it moves differently from the matrix, and its energy is negligible.
    """
    parts = name.split(".")
    for i in range(len(parts) - 2):
        if parts[i] in LAYER_LISTS and parts[i + 1].isdigit():
            stack, layer = ".".join(parts[: i + 1]), int(parts[i + 1])
            return Place(_module(parts[i + 2 :], inside=True), stack, layer)
    return Place(_module(parts, inside=False))


def _module(parts: list[str], inside: bool) -> str:
    """The type of what ``parts`` lead to, from a layer's root (``inside``) or the model's."""
    kept = [part for part in parts if not part.isdigit()] or parts
    suffix = ".bias" if kept[-1] == "bias" and len(kept) > 1 else ""
    if kept[-1] in ("weight", "bias") and len(kept) > 1:
        kept = kept[:-1]
    ambiguous = kept[-1] in AMBIGUOUS
    if not inside:
        kept = kept[-2:] if ambiguous else kept[-1:]
    elif not ambiguous and len(kept) > 1 and kept[0] in WRAPPERS:
        kept = kept[1:]
    return ".".join(kept) + suffix
