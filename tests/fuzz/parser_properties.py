"""What has to hold of every file whatsoever that is given as a safetensors file or an index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, deserialize

from relex_ext import lookalikes
from relex_ext.checkpoints import parse_index
from relex_ext.errors import InputError
from relex_ext.headers import Described, header_of, parse

Tensor: TypeAlias = "tuple[str, str, tuple[int, ...], bytes]"

STRICTER = re.compile(
    r"begins with \{|each name once|up to 20 digits|UTF-8|less than 2⁶³|description: expected"
    r"|dtype: expected (one of|text)|: expected a list|__metadata__: expected an object"
)
"""Our reasons for refusing what the library takes: what a header may do without losing anything."""


class File:
    """A file in memory that has a path, to be filled again and again."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("input")
        self.path = Path(f"/proc/self/fd/{self._descriptor}")

    def fill(self, data: bytes) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)


def check_header(data: bytes, file: File) -> bool:
    """Whether it is accepted; by all or none of those who are asked, but for what we forbid.

    They are the library, our rules alone, and the reading of a file in which both have a say.
    """
    length = int.from_bytes(data[:8], "little")
    alone: list[Described] | str
    try:
        alone, _ = parse(data[8 : 8 + length], len(data) - 8 - length)
    except ValueError as error:
        alone = str(error)
    library = accepted_by_library(data)
    if isinstance(alone, str):
        assert library is None or STRICTER.search(alone), alone
    else:
        assert library == of_described(alone, data[8 + length :])
    file.fill(data)
    try:
        header = header_of(file.path)
    except InputError as error:
        assert isinstance(alone, str) or not 2 <= length <= len(data) - 8, error
        check_line(str(error), str(file.path))
        return False
    try:
        lookalikes.check_header(header)
    except InputError as error:
        check_line(str(error), str(file.path))
    found = [
        (e.name, e.dtype, e.shape, data[e.offset : e.offset + e.nbytes]) for e in header.entries
    ]
    assert sorted(found) == library
    assert (header.shard.size, sum(e.nbytes for e in header.entries)) == (
        len(data), len(data) - 8 - length,
    )  # fmt: skip
    return True


def accepted_by_library(data: bytes) -> list[Tensor] | None:
    """Its tensors, sorted by name; None where it rejects them."""
    try:
        found: Sequence[tuple[str, dict[str, Any]]] = deserialize(data)
    except SafetensorError:
        return None
    return sorted((n, t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in found)


def of_described(tensors: Sequence[Described], data: bytes) -> list[Tensor]:
    return sorted((t.name, t.dtype, t.shape, data[t.begin : t.end]) for t in tensors)


def check_index(data: bytes) -> bool:
    """Whether it is accepted: as JSON that everybody reads alike, naming files of its folder."""
    try:
        weight_map, noted = parse_index(data)
    except ValueError as error:
        check_line(str(InputError(str(error))), "")
        return False
    try:
        lookalikes.check_noted(Path("index"), noted)
    except InputError as error:
        check_line(str(error), "index")
    assert json.loads(data.decode())["weight_map"] == weight_map
    for name in weight_map.values():
        assert Path("folder", name).parent == Path("folder")
        assert Path("folder", name).name == name
        assert "\0" not in name
    return True


def check_line(message: str, path: str) -> None:
    assert message.isprintable()
    assert len(message) <= 1000
    assert message.startswith(path)
