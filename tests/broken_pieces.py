"""Checkpoints in pieces, changed, and what gather says of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from relex_ext import gather
from relex_ext.errors import InputError

EMBED = "model.model.embed_tokens.weight"


def refusal(place: Path) -> str:
    """What gather says of the run that a place is in. It writes nothing."""
    out = place.parents[2] / "out"
    with pytest.raises(InputError, match=f"^{place}") as caught:
        gather(place.parents[1], out, progress=False)
    assert not out.exists()
    assert str(caught.value).isprintable()
    return str(caught.value)


def change(place: Path, how: Callable[[Metadata], object]) -> None:
    """A checkpoint's metadata, changed in memory and written back."""
    metadata = pickle.loads((place / ".metadata").read_bytes())
    how(metadata)
    (place / ".metadata").write_bytes(pickle.dumps(metadata))


def piece(metadata: Metadata) -> Any:
    """Where the embedding's first piece is."""
    chunk = metadata.state_dict_metadata[EMBED].chunks[0]
    return metadata.storage_data[MetadataIndex(EMBED, chunk.offsets)]
