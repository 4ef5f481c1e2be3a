"""Headers and indexes that are nearly right: one that is, and then some of it changed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

DTYPES = ("F32", "F16", "BF16", "U8", "I64", "BOOL", "F64", "F8_E4M3")
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I64": 8, "BOOL": 1, "F64": 8, "F8_E4M3": 1}
ODD_DTYPES = ("F4", "F8_E8M0", "C64", "f32", "", "Q7", "F32 ")
ODD_NUMBERS = (
    "1.0", "1e0", "-0", "-1", "01", "0x1", "1E400", "NaN", "Infinity", "true", "null", '"1"', "[1]",
    "9223372036854775808", "18446744073709551615", "18446744073709551616", "1" * 21, "1" * 5000,
)  # fmt: skip
ODD_VALUES = (
    None,
    True,
    [],
    {},
    [[]],
    "text",
    1.5,
    -1,
    [1, 2],
    {"a": {"a": {}}},
    "\ud800",
    "x" * 99,
)
ODD_TEXT = (
    b"\\ud800", b"\\udc00\\ud800", b"\\u0000", b"\\n", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\0",
    b"\xf0\x9f\x98\x80", b"\x1b", b"\xe2\x80\xae", b'"', b"\\", b"/", b"..", b"{", b"}", b"[", b"]",
    b",", b":", b" ", b"\xef\xbb\xbf", b"[" * 2000, b'{"a":' * 200,
)  # fmt: skip
NAMES = (
    "w", "a.weight", "b", "", "__metadata__", "a.indices", "a.values", "é", "dtype", "x" * 40,
    "sparse", "delta_encoding", "DCP_SHARDING_INFO",
)  # fmt: skip
OFFSETS = {"w": {"saved_offsets": [0, 3]}}

Described = dict[str, Any]
Change = Callable[[random.Random, Described], None]


def mutated_header(data: bytes, seed: int) -> bytes:
    """Another file, from the header of ``data`` where it has one that can be read."""
    rng = random.Random(seed)
    described, size = read(data)
    if described is None or rng.random() < 0.05:
        described, size = made(rng), 0
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        rng.choice(CHANGES)(rng, described)
    if rng.random() < 0.7:
        size = repaired(described)
    if rng.random() < 0.15:
        size = max(0, size + rng.choice((-1, 1, 4, 1000)))
    text = json.dumps(described, separators=rng.choice(((",", ":"), (", ", ": ")))).encode()
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        text = changed_text(rng, text)
    text += b" " * rng.choice((0, 0, 0, 1, 7))
    length = len(text)
    if rng.random() < 0.1:
        length = max(
            0, rng.choice((length - 1, length + 1, length + size, 0, 1, 1 << 40, 100000001))
        )
    return length.to_bytes(8, "little") + text + bytes(min(size, 4096))


def mutated_index(data: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    described = read_json(data) or {}
    weight_map = described.get("weight_map")
    if not isinstance(weight_map, dict):
        weight_map = {"w": "model-1.safetensors"}
        described = {"metadata": {"total_size": 4}, "weight_map": weight_map}
    change = rng.randrange(6)
    if change == 0:
        weight_map[rng.choice(NAMES)] = rng.choice(
            ("a", "../a", "/a", ".", "..", "", "a/b", "a\0", "é")
        )
    elif change == 1:
        weight_map[rng.choice(NAMES)] = odd_value(rng)
    elif change == 2:
        described[rng.choice(("metadata", "weight_map", "x"))] = odd_value(rng)
    elif change == 3 and isinstance(described.get("metadata"), dict):
        described["metadata"][rng.choice(NAMES)] = odd_value(rng)
    elif change == 4 and weight_map:
        del weight_map[rng.choice(list(weight_map))]
    text = json.dumps(described).encode()
    for _ in range(rng.choice((0, 1, 1, 2))):
        text = changed_text(rng, text)
    return text


def read(data: bytes) -> tuple[Described | None, int]:
    length = int.from_bytes(data[:8], "little")
    described = read_json(data[8 : 8 + length])
    return described, 0 if described is None else max(0, len(data) - 8 - length)


def read_json(text: bytes) -> Described | None:
    if text.count(b"[") + text.count(b"{") > 300:  # nested too deeply to be written again
        return None
    try:
        described = json.loads(text)
    except ValueError:
        return None
    return described if isinstance(described, dict) else None


def odd_value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(ODD_VALUES))  # it may be changed in turn


def made(rng: random.Random) -> Described:
    """A good header of a few tensors."""
    described: Described = {}
    if rng.random() < 0.5:
        described["__metadata__"] = {"format": "pt"}
    for i in range(rng.randrange(4)):
        described[f"{i}.weight"] = tensor(rng)
    repaired(described)
    return described


def tensor(rng: random.Random) -> Described:
    shape = [rng.choice((0, 1, 1, 2, 3)) for _ in range(rng.randrange(4))]
    return {"dtype": rng.choice(DTYPES), "shape": shape, "data_offsets": [0, 0]}


def repaired(described: Described) -> int:
    """Give tensors the offsets that their shapes ask for, where they still have a shape; the size
    of all data."""
    at = 0
    for name, value in described.items():
        if name == "__metadata__" or not isinstance(value, dict):
            continue
        dtype, shape = value.get("dtype"), value.get("shape")
        if not isinstance(dtype, str) or not isinstance(shape, list):
            continue
        size = SIZES.get(dtype, 1)
        for extent in shape:
            size *= extent if isinstance(extent, int) else 1
        if 0 <= size <= 4096:
            value["data_offsets"] = [at, at + size]
            at += size
    return at


def described_tensor(rng: random.Random, described: Described) -> Described:
    found = [v for n, v in described.items() if n != "__metadata__" and isinstance(v, dict)]
    if not found:
        described["w"] = tensor(rng)
    return rng.choice(found or [described["w"]])


def add(rng: random.Random, described: Described) -> None:
    described[rng.choice(NAMES)] = tensor(rng)


def drop(rng: random.Random, described: Described) -> None:
    if described:
        del described[rng.choice(list(described))]


def shuffle(rng: random.Random, described: Described) -> None:
    items = list(described.items())
    rng.shuffle(items)
    described.clear()
    described.update(items)


def change_dtype(rng: random.Random, described: Described) -> None:
    described_tensor(rng, described)["dtype"] = rng.choice((*DTYPES, *ODD_DTYPES))


def change_shape(rng: random.Random, described: Described) -> None:
    shape = described_tensor(rng, described).setdefault("shape", [])
    if isinstance(shape, list):
        shape.insert(rng.randrange(len(shape) + 1), rng.choice((0, 1, 2, 1 << 31, 1 << 62, -1)))


def change_offsets(rng: random.Random, described: Described) -> None:
    offsets = described_tensor(rng, described).get("data_offsets")
    if isinstance(offsets, list) and offsets:
        i = rng.randrange(len(offsets))
        move = rng.choice((-1, 1, 4, 1 << 63))
        offsets[i] = offsets[i] + move if isinstance(offsets[i], int) else move


def change_field(rng: random.Random, described: Described) -> None:
    field = rng.choice(("dtype", "shape", "data_offsets", "x", "name"))
    described_tensor(rng, described)[field] = odd_value(rng)


def drop_field(rng: random.Random, described: Described) -> None:
    drop(rng, described_tensor(rng, described))


def change_value(rng: random.Random, described: Described) -> None:
    described[rng.choice(NAMES)] = odd_value(rng)


def change_metadata(rng: random.Random, described: Described) -> None:
    metadata = described.setdefault("__metadata__", {})
    if isinstance(metadata, dict):
        value = odd_value(rng)
        metadata[rng.choice(NAMES)] = rng.choice((value, json.dumps(value), json.dumps(OFFSETS)))


CHANGES: Sequence[Change] = (
    add, drop, shuffle, change_dtype, change_shape, change_offsets, change_field, drop_field,
    change_value, change_metadata,
)  # fmt: skip


def changed_text(rng: random.Random, text: bytes) -> bytes:
    """What no JSON writer would write: odd numbers, a part twice, a part gone, odd bytes."""
    kind = rng.randrange(5)
    at = rng.randrange(len(text) + 1)
    if kind == 0:
        digits = [i for i, c in enumerate(text) if 48 <= c <= 57]
        if digits:
            at = rng.choice(digits)
            return text[:at] + rng.choice(ODD_NUMBERS).encode() + text[at + 1 :]
    if kind == 1:
        commas = [0, *(i for i, c in enumerate(text) if c == 44), len(text) - 1]
        i = rng.randrange(len(commas) - 1)
        part = text[commas[i] + (i == 0) : commas[i + 1]]
        part = part if part.startswith(b",") else b"," + part
        return text[: commas[i + 1]] + part + text[commas[i + 1] :]
    if kind == 2:
        return text[:at] + text[at + rng.choice((1, 1, 2, 8)) :]
    if kind == 3:
        return text[:at] + rng.choice(ODD_TEXT) + text[at:]
    return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
