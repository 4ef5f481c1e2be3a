"""What a torch distributed checkpoint says it holds, and in which bytes of which files.

Its ``.metadata`` is a pickle, which torch's own reader loads without limits. Here every class that
it may name is listed, and stands for nothing but its name.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from relex_ext.dtypes import ITEM_SIZE
from relex_ext.errors import InputError
from relex_ext.gathering.inert import Inert, is_a, stand_in
from relex_ext.gathering.stored import TORCH_DTYPES, Stored
from relex_ext.plainfiles import read_small

METADATA = ".metadata"
MOST_BYTES = 256 << 20
"""Of it: about a million and a half pieces."""

_DCP = "torch.distributed.checkpoint.metadata"
_TENSOR = f"{_DCP}.TensorStorageMetadata"
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")

ALLOWED = frozenset({
    f"{_DCP}.Metadata",
    f"{_DCP}.MetadataIndex",
    f"{_DCP}.StorageMeta",
    f"{_DCP}.BytesStorageMetadata",
    f"{_DCP}.ChunkStorageMetadata",
    f"{_DCP}.TensorProperties",
    f"{_DCP}._MEM_FORMAT_ENCODING",
    _TENSOR,
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.Size",
    "torch.serialization._get_layout",
    "collections.OrderedDict",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
    *TORCH_DTYPES,
})  # fmt: skip
"""All that a pickle may name. None of it is imported or called: each is an :class:`Inert`."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor, and the bytes ``[begin, begin + length)`` of the file that hold it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    length: int


@dataclass(frozen=True, slots=True)
class Chunked(Stored):
    """A tensor whose ``chunks`` fill it without gap or overlap; empty ones are left out."""

    chunks: tuple[Chunk, ...]


def read_metadata(folder: Path) -> dict[str, Chunked]:
    """Every tensor of a checkpoint, by its key; what else it holds is passed over.

    Raises:
        InputError: it is not what torch writes, or its pieces do not make whole tensors.
    """
    path = folder / METADATA
    data = read_small(path, MOST_BYTES, folder)
    try:
        found = _unpickled(data)
    except Exception as error:  # what is no such pickle may raise anything
        raise InputError(f"{path}: expected torch's metadata, found: {error}") from error
    try:
        return _tensors(found)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # parts that are not what they are in torch's
        raise InputError(f"{path}: expected torch's metadata, found: {error!r}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._classes = {path: stand_in(path) for path in ALLOWED}

    def find_class(self, module: str, name: str) -> Any:
        found = self._classes.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(
                f"a pickle that names {module}.{name}; nothing of it was run"
            )
        return found


def _unpickled(data: bytes) -> Any:
    # A place in the memo far beyond its end would have the unpickler fill all memory up to it.
    for code, argument, _ in pickletools.genops(data):
        if code.name.endswith("PUT") and int(argument or 0) > len(data):
            raise ValueError(f"place {argument} in the memo of a pickle of {len(data)} bytes")
    return _Unpickler(data).load()


def _tensors(found: Any) -> dict[str, Chunked]:
    if not is_a(found, f"{_DCP}.Metadata"):
        raise ValueError(f"expected torch's metadata, found {type(found).__name__}")
    places: dict[tuple[str, tuple[int, ...]], Inert] = {}
    for index, info in _table(found, "storage_data").items():
        if index.said("offset") is not None:
            places[_text(index.said("fqn")), _numbers(index.said("offset"))] = info
    tensors = {
        key: _tensor(_text(key), said, places)
        for key, said in _table(found, "state_dict_metadata").items()
        if is_a(said, _TENSOR)
    }
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def _tensor(key: str, said: Inert, places: Mapping[tuple[str, tuple[int, ...]], Inert]) -> Chunked:
    dtype = TORCH_DTYPES[said.said("properties").state[0].path]
    shape = _numbers(said.said("size"))
    chunks = []
    for box in said.said("chunks"):
        offsets, sizes = _numbers(box.said("offsets")), _numbers(box.said("sizes"))
        if 0 in sizes:
            continue
        place = places.get((key, offsets))
        if place is None:
            raise ValueError(f"tensor {key}: expected a file for its piece at {list(offsets)}")
        if place.said("transform_descriptors"):
            raise ValueError(f"tensor {key}: expected pieces as they are, found transformed ones")
        file, begin, length = (place.said(name) for name in ("relative_path", "offset", "length"))
        chunk = Chunk(offsets, sizes, _text(file), _number(begin), _number(length))
        if math.prod(sizes) * ITEM_SIZE[dtype] > chunk.length:
            raise ValueError(f"tensor {key}: expected its bytes in {file}, found {length}")
        chunks.append(chunk)
    if not _fill(shape, chunks):
        raise ValueError(f"tensor {key}: expected pieces that fill {list(shape)}, found others")
    return Chunked(dtype, shape, tuple(chunks))


def _fill(shape: tuple[int, ...], chunks: Sequence[Chunk]) -> bool:
    """Whether the chunks are all the cells of one grid over the whole tensor, each once."""
    if 0 in shape:
        return not chunks
    if {len(chunk.offsets) for chunk in chunks} != {len(shape)}:
        return False
    lines = []
    for axis, extent in enumerate(shape):
        begins = sorted({chunk.offsets[axis] for chunk in chunks})
        lines.append(dict(pairwise([*begins, extent])))
        if begins[0] != 0 or begins[-1] >= extent:
            return False
    if len(chunks) != math.prod(map(len, lines)):
        return False
    cells = {chunk.offsets: chunk.sizes for chunk in chunks}
    return all(
        cells.get(begins) == tuple(line[b] - b for line, b in zip(lines, begins, strict=True))
        for begins in product(*lines)
    )


def files_of(tensors: Mapping[str, Chunked]) -> dict[str, tuple[int, int]]:
    """File name → where its last piece ends, and the bytes of all its pieces together."""
    ends: defaultdict[str, int] = defaultdict(int)
    sums: defaultdict[str, int] = defaultdict(int)
    for chunk in (chunk for tensor in tensors.values() for chunk in tensor.chunks):
        ends[chunk.file] = max(ends[chunk.file], chunk.begin + chunk.length)
        sums[chunk.file] += chunk.length
    return {name: (ends[name], sums[name]) for name in sorted(ends)}


def _table(found: Inert, name: str) -> dict[Any, Any]:
    table = found.said(name)
    if not isinstance(table, dict):
        raise ValueError(f"{name}: expected a table, found {type(table).__name__}")
    return table


def _numbers(size: Any) -> tuple[int, ...]:
    (numbers,) = size.arguments
    return tuple(map(_number, numbers))


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"expected a whole number, found {value!r:.40}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"expected text, found {type(value).__name__}")
    return value
