"""Every rule of a header by itself: a good one is made, one rule broken, and that rule named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.parser_mutations import mutated_header, mutated_index
from fuzz.parser_properties import File, check_header, check_index, of_described
from relex_ext.dtypes import ITEM_SIZE
from relex_ext.headers import parse

REPEATABLE = settings(derandomize=True, deadline=None, database=None)

FILE = File()

Described = dict[str, Any]
Spoil = Callable[[Described], None]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXT.filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 5), max_size=4)


@st.composite
def headers(draw: st.DrawFn) -> tuple[Described, int]:
    """What a good header describes, at least one tensor with data in it, and the data's size."""
    found: Described = {}
    at = 0
    shapes = [*draw(st.lists(SHAPES, max_size=4)), [draw(st.integers(1, 5))]]
    names = draw(st.lists(NAMES, min_size=len(shapes), max_size=len(shapes), unique=True))
    for name, shape in zip(names, shapes, strict=True):
        dtype = draw(st.sampled_from(sorted(ITEM_SIZE)))
        end = at + ITEM_SIZE[dtype] * math.prod(shape)
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    items = draw(st.permutations(list(found.items())))
    if draw(st.booleans()):
        items = [("__metadata__", draw(st.dictionaries(TEXT, TEXT, max_size=3))), *items]
    return dict(items), at


def text_of(described: Described, **options: Any) -> bytes:
    """``RAW…`` in quotes is what the file has without them: numbers that json does not write."""
    return json.dumps(described, **options).replace('"RAW', "").replace('WAR"', "").encode()


def file_of(text: bytes, size: int) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(i % 251 for i in range(size))


def last(described: Described) -> Described:
    """The tensor that has data and nothing behind it."""
    tensors = [v for n, v in described.items() if n != "__metadata__"]
    return max(tensors, key=lambda tensor: tensor["data_offsets"])


def moved(described: Described, begin: int, end: int) -> None:
    offsets = last(described)["data_offsets"]
    offsets[:] = offsets[0] + begin, offsets[1] + end


def spoilt(field: str, value: object) -> Spoil:
    return lambda described: last(described).update({field: value})


def beside(value: object) -> Spoil:
    return lambda described: described.update(value=value)


NUMBERS = {
    "a fraction": ("1.5", "whole number"), "an exponent": ("1e0", "whole number"),
    "minus one": ("-1", "whole number"), "minus zero": ("-0", "whole number"),
    "21 digits": ("1" * 21, "up to 20 digits"), "5000 digits": ("1" * 5000, "up to 20 digits"),
    "not a number": ("NaN", "a number"), "infinity": ("Infinity", "a number"),
    "minus infinity": ("-Infinity", "a number"), "a leading zero": ("01", "expected JSON"),
}  # fmt: skip

RULES: Mapping[str, tuple[Spoil, str]] = {
    "a gap": (lambda d: moved(d, 1, 1), "data_offsets: expected a begin at"),
    "begin before the end before": (lambda d: moved(d, -1, -1), "data_offsets|whole number"),
    "too few bytes for the shape": (lambda d: moved(d, 0, -1), "bytes, found"),
    "too many bytes for the shape": (lambda d: moved(d, 0, 1), "bytes, found"),
    "end before begin": (lambda d: last(d)["data_offsets"].reverse(), "begin and end"),
    "one offset": (spoilt("data_offsets", [0]), "begin and end"),
    "three offsets": (lambda d: last(d)["data_offsets"].append(9), "begin and end"),
    "offsets that are no list": (spoilt("data_offsets", 4), "data_offsets: expected a list"),
    "a shape too large": (lambda d: last(d)["shape"].append(2), "bytes, found"),
    "a shape that overflows": (spoilt("shape", [1 << 62, 4, 0]), "less than 2⁶³"),
    "a shape that overflows later": (spoilt("shape", [0, 1 << 63]), "less than 2⁶³"),
    "a shape that is no list": (spoilt("shape", {}), "shape: expected a list, found an object"),
    "a true extent": (lambda d: last(d)["shape"].append(True), "shape: expected whole numbers"),
    "a shape in a shape": (lambda d: last(d)["shape"].append([1]), "expected whole numbers"),
    "an unknown dtype": (spoilt("dtype", "Q7"), "dtype: expected one of .*, found Q7"),
    "a dtype of half bytes": (spoilt("dtype", "F4"), "dtype: expected one of .*, found F4"),
    "a dtype that is no text": (spoilt("dtype", ["F32"]), "dtype: expected text, found a list"),
    "a field more": (spoilt("x", 1), "description: expected .*, found .*, x"),
    "a field less": (lambda d: last(d).pop("shape"), "found data_offsets, dtype$"),
    "a tensor that is no object": (beside(["F32", [1], [0, 4]]), "an object, found a list"),
    "a tensor that is null": (beside(None), "expected an object, found null"),
    "parts nested deeply": (beside("RAW" + "[" * 99999 + "WAR"), "nested too deeply|expected JSON"),
    "metadata that is none": (lambda d: d.update(__metadata__=None), "an object, found null"),
    "metadata that is no text": (
        lambda d: d.update(__metadata__={"a": 1}), "__metadata__: a: expected text, found 1"
    ),
    "half a surrogate pair": (lambda d: d.update({"\ud800": last(d)}), "Unicode"),
    "and in the metadata": (lambda d: d.update(__metadata__={"a": "\udc00"}), "Unicode"),
    **{f"{w} as an extent": (spoilt("shape", [f"RAW{t}WAR"]), m) for w, (t, m) in NUMBERS.items()},
    **{f"{w} as an offset": (spoilt("data_offsets", [0, f"RAW{t}WAR"]), m)
       for w, (t, m) in NUMBERS.items()},
}  # fmt: skip


@given(headers(), st.sampled_from([None, 1]), st.integers(0, 9))
@settings(REPEATABLE, max_examples=80)
def test_good_ones_are_accepted(made: tuple[Described, int], indent: int | None, pad: int) -> None:
    described, size = made
    text = text_of(described, indent=indent) + b" " * pad
    assert check_header(file_of(text, size), FILE)
    tensors, metadata = parse(text, size)
    assert metadata == described.pop("__metadata__", {})
    assert {
        t.name: {"dtype": t.dtype, "shape": [*t.shape], "data_offsets": [t.begin, t.end]}
        for t in tensors
    } == described
    assert [t.begin for t in tensors] == sorted(t.begin for t in tensors)
    assert len(of_described(tensors, bytes(size))) == len(described)


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_named(rule: str) -> None:
    spoil, message = RULES[rule]

    @given(headers())
    @settings(REPEATABLE, max_examples=8)
    def check(made: tuple[Described, int]) -> None:
        described, size = made
        spoil(described)
        text = text_of(described)
        with pytest.raises(ValueError, match=message):
            parse(text, size)
        assert not check_header(file_of(text, size), FILE)

    check()


@given(headers(), st.sampled_from([-1, 1, 8]))
@settings(REPEATABLE, max_examples=25)
def test_data_that_is_too_short_or_too_long(made: tuple[Described, int], more: int) -> None:
    text, size = text_of(made[0]), made[1]
    with pytest.raises(ValueError, match=f"expected {size} bytes of data, found {size + more}"):
        parse(text, size + more)
    assert not check_header(file_of(text, size + more), FILE)


@given(headers(), st.data())
@settings(REPEATABLE, max_examples=25)
def test_a_name_twice(made: tuple[Described, int], data: st.DataObject) -> None:
    """In whatever object: readers differ about which of the two counts."""
    described, size = made
    name = data.draw(st.sampled_from(sorted(described)))
    text = text_of(described)[:-1] + b", " + text_of({name: described[name]})[1:]
    with pytest.raises(ValueError, match="expected each name once"):
        parse(text, size)
    assert not check_header(file_of(text, size), FILE)
    text = text_of(described).replace(b'"dtype":', b'"dtype": "F32", "dtype":', 1)
    with pytest.raises(ValueError, match="expected each name once, found dtype twice"):
        parse(text, size)


@given(headers(), st.data())
@settings(REPEATABLE, max_examples=25)
def test_bytes_before_behind_and_within(made: tuple[Described, int], data: st.DataObject) -> None:
    text, size = text_of(made[0]), made[1]
    odd = data.draw(st.sampled_from([b" ", b"\xef\xbb\xbf", b"\0", b"[", b"\xff"]))
    with pytest.raises(ValueError, match=r"begins with \{"):
        parse(odd + text, size)
    assert not check_header(file_of(odd + text, size), FILE)
    if odd != b" ":
        with pytest.raises(ValueError, match=r"expected JSON|expected UTF-8, found byte 0xff"):
            parse(text + odd, size)
        assert not check_header(file_of(text + odd, size), FILE)
    at = data.draw(st.integers(1, len(text) - 1))
    assert not check_header(file_of(text[:at], size), FILE)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
@settings(REPEATABLE, max_examples=500)
def test_what_the_library_rejects_is_rejected(first: int, second: int) -> None:
    check_header(mutated_header(mutated_header(b"", first), second), FILE)


@given(st.binary(max_size=64))
@settings(REPEATABLE, max_examples=80)
def test_bytes_anyhow(data: bytes) -> None:
    check_header(data, FILE)
    check_index(data)


@given(st.integers(0, 1 << 40))
@settings(REPEATABLE, max_examples=300)
def test_an_index_leads_nowhere_but_into_its_folder(seed: int) -> None:
    check_index(mutated_index(b"", seed))
