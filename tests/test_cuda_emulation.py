"""The emulation of CUDA's execution model, against numpy and the PTX ISA's description.

The layouts below are written from the PTX ISA (the figures of mma.m16n8k16 with .bf16 and of
ldmatrix .m8n8), apart from tests/cuda/warp.cpp.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

import oracle
from emulated import Watched, cuda
from oracle import Float64

selftest = cuda.selftest

LANE = np.arange(32)
GROUP, IN_GROUP = LANE >> 2, LANE % 4


def bf16(values: NDArray[np.float64]) -> NDArray[np.uint32]:
    return oracle.round_to(values, "BF16").astype(np.uint32)


def pairs(matrix: NDArray[np.uint32], rows: NDArray, columns: NDArray, *, down: bool) -> NDArray:
    """A register of each lane: the element at its place in the low half, the next one above it."""
    after = matrix[rows + 1, columns] if down else matrix[rows, columns + 1]
    return matrix[rows, columns] | after << 16


def fragments(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> tuple[NDArray, NDArray]:
    """a (16 × 16) and b (16 × 8) as the lanes hold them.

    a_i: row groupID for i in 0, 1, 4, 5, else groupID + 8; column threadID_in_group * 2 + (i & 1),
    and 8 more for i ≥ 4. b_i: row threadID_in_group * 2 + (i & 1), and 8 more for i ≥ 2; column
    groupID.
    """
    k = 2 * IN_GROUP
    of_a = [(GROUP, k), (GROUP + 8, k), (GROUP, k + 8), (GROUP + 8, k + 8)]
    return (
        np.stack([pairs(a, row, column, down=False) for row, column in of_a], axis=1),
        np.stack([pairs(b, k + 8 * i, GROUP, down=True) for i in range(2)], axis=1),
    )


def accumulators(d: NDArray) -> NDArray:
    """c_i: row groupID, and 8 more for i ≥ 2; column threadID_in_group * 2 + (i & 1)."""
    return np.stack([d[GROUP + 8 * (i // 2), 2 * IN_GROUP + i % 2] for i in range(4)], axis=1)


def multiplied(a: Float64, b: Float64, d: Float64) -> NDArray[np.float32]:
    return selftest.multiply(*fragments(bf16(a), bf16(b)), accumulators(d.astype(np.float32)))


@pytest.mark.parametrize("sums", ["nearest", "truncated"])
def test_multiply_with_exact_sums(sums: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEX_EMULATED_SUMS", sums)
    rng = np.random.default_rng(1)
    a, b = rng.integers(-128, 129, (16, 16)), rng.integers(-128, 129, (16, 8))
    d = rng.integers(-1000, 1001, (16, 8))
    found = multiplied(a.astype(float), b.astype(float), d.astype(float))
    assert np.array_equal(found, accumulators((d + a @ b).astype(np.float32)))


def test_multiply_rounds_after_each_product() -> None:
    rng = np.random.default_rng(2)
    a, b, d = (rng.normal(size=shape) for shape in ((16, 16), (16, 8), (16, 8)))
    a, b = (oracle.to_float64(oracle.round_to(x, "BF16"), "BF16") for x in (a, b))
    expected = d.astype(np.float32)
    for k in range(16):
        expected = expected + np.outer(a[:, k], b[k]).astype(np.float32)
    assert np.array_equal(multiplied(a, b, d), accumulators(expected))


def truncated_sum(terms: list[float]) -> float:
    """Aligned to the largest, cut off 24 bits below its leading one, added, cut off to 24 bits."""
    unit = Fraction(2) ** (max(math.frexp(x)[1] for x in terms if x) - 1 - 24)
    total = sum(math.trunc(Fraction(x) / unit) for x in terms) * unit
    if total == 0:
        return 0.0
    unit = Fraction(2) ** (math.frexp(float(total))[1] - 24)
    return float(math.trunc(total / unit) * unit)


def test_multiply_truncates_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEX_EMULATED_SUMS", "truncated")
    rng = np.random.default_rng(3)
    spread = (rng.normal(size=s) * 2.0 ** rng.integers(-8, 9, s) for s in ((16, 16), (16, 8)))
    a, b = (oracle.to_float64(oracle.round_to(x, "BF16"), "BF16") for x in spread)
    d = rng.normal(size=(16, 8)).astype(np.float32).astype(np.float64)
    expected = d.copy()
    for i, j in np.ndindex(16, 8):
        for k in (0, 8):
            products = [float(x) for x in a[i, k : k + 8] * b[k : k + 8, j]]
            expected[i, j] = truncated_sum([*products, float(expected[i, j])])
    assert np.array_equal(multiplied(a, b, d), accumulators(expected.astype(np.float32)))
    assert not np.array_equal(expected, (d + a @ b).astype(np.float32)), "the case must tell"


@pytest.mark.parametrize("sums", ["nearest", "truncated"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_multiply_passes_on_what_is_not_finite(
    sums: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELEX_EMULATED_SUMS", sums)
    a, b = np.ones((16, 16)), np.ones((16, 8))
    a[3, 12] = value
    expected = np.full((16, 8), 16.0)
    expected[3] = value
    found = multiplied(a, b, np.zeros((16, 8)))
    assert np.array_equal(found, accumulators(expected), equal_nan=True)


def test_load_matrices() -> None:
    """Lane l names row l % 8 of matrix l / 8, and receives a pair of row l / 4 of each matrix."""
    rng = np.random.default_rng(4)
    tile = rng.integers(0, 256, 16 * 100, dtype=np.uint8)
    offsets = 16 * rng.choice(100, 32, replace=False)
    found = selftest.load_matrices(tile, offsets.astype(np.int32))
    rows = np.stack([tile[o : o + 16].view(np.uint32) for o in offsets])  # (lane, 4 pairs)
    expected = np.stack([rows[8 * m + GROUP, IN_GROUP] for m in range(4)], axis=1)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("mask", [1, 2, 4, 8, 16, 31])
def test_shuffle(mask: int) -> None:
    values = np.random.default_rng(5).normal(size=96).astype(np.float32)
    assert np.array_equal(selftest.shuffle_xor(values, mask), values[np.arange(96) ^ mask])


def test_votes_are_a_warps() -> None:
    values = np.zeros(96, np.uint8)
    values[40] = 1
    assert selftest.any_in_warp(values).tolist() == [0] * 32 + [1] * 32 + [0] * 32


def test_conversions() -> None:
    for half in (0, 1, 0x3FF, 0x400, 0x3C00, 0x7BFF, 0x7C00, 0x8001, 0xFC00):
        expected = np.array([half], np.uint16).view(np.float16)[0]
        assert selftest.half_to_float(half) == expected


# ---- when things happen ------------------------------------------------------------------------


@pytest.mark.parametrize("second", [0, 1, 5, 15, 16])
def test_copies_arrive_when_they_are_waited_for(
    second: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Watched(np.arange(100, 132, dtype=np.uint8))
    one = source.array[:16].tolist()
    two = source.array[16 : 16 + second].tolist() + [0] * (16 - second)
    nothing = [0xFF] * 16
    late = selftest.copies(source.address, second).tolist()
    assert late == [nothing + nothing, one + nothing, one + two]
    monkeypatch.setenv("RELEX_EMULATED_COPIES", "early")
    early = selftest.copies(source.address, second).tolist()
    assert early == [one + two] * 3


def test_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = [(x, y, t) for y in range(2) for x in range(3) for t in range(70)]
    assert selftest.visits(3, 2, 70) == everyone
    monkeypatch.setenv("RELEX_EMULATED_ORDER", "descending")
    assert selftest.visits(3, 2, 70) == everyone[::-1]
    found = set()
    for order in ("random:1", "random:2", "random:1"):
        monkeypatch.setenv("RELEX_EMULATED_ORDER", order)
        visits = selftest.visits(3, 2, 70)
        assert sorted(visits) == sorted(everyone)
        found.add(tuple(visits))
    assert len(found) == 2


def test_a_missing_barrier_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = [*range(1, 64), 0]
    results = set()
    for order in ("ascending", "descending", "random"):
        monkeypatch.setenv("RELEX_EMULATED_ORDER", order)
        assert selftest.rotate(64, True) == right
        results.add(tuple(selftest.rotate(64, False)))
    assert len(results) == 3


def test_shared_memory_begins_as_garbage() -> None:
    assert selftest.garbage(3, 1000)
    assert selftest.garbage(2, 227 * 1024)


def test_a_block_of_the_largest_size() -> None:
    assert len(selftest.visits(2, 1, 1024)) == 2048


def test_index_arithmetic_of_the_gram() -> None:
    """tests/cuda/tiles.cpp: who computes what, for every T."""
    assert selftest.check_tiles(700) > 10**7


# ---- mistakes ----------------------------------------------------------------------------------

MISTAKES = {
    "a thread returns before a barrier": "thread 40, .*returned while 40 threads wait",
    "barriers of two branches": r"thread 32, .*others wait at that of selftest.cpp:\d+",
    "a barrier in one more turn of a loop": r"thread 63, selftest.cpp:\d+: __syncthreads, but",
    "half a warp shuffles": "nothing can go on: .*lanes 0xffff of warp 1 wait at shuffle_xor",
    "lanes at different collectives": "any_in_warp, but other lanes .* wait at shuffle_xor",
    "a lane returns before a collective": "any_in_warp, but lanes of the warp have returned",
    "writes past the end": "written 0 bytes past the 100 bytes of dynamic shared memory",
    "writes far past the end": "touched what lies 130 bytes past the 100 bytes",
    "reads far past the end": "touched what lies 130 bytes past the 100 bytes",
    "writes before the beginning": "written 3 bytes before the 100 bytes",
    "copies past the end": "copy_async: writes 12 bytes past",
    "copies to an odd place": "copy_async: both addresses must lie on 16 bytes",
    "copies from an odd place": "copy_async: both addresses must lie on 16 bytes",
    "copies 17 bytes": "copy_async: 17 bytes",
    "never waits for a copy": "returned with copies that it never waited for",
    "loads matrices from an odd place": "thread 33, .*load_matrices: .* on 16 bytes",
    "loads matrices from elsewhere": "load_matrices: reads 4096 bytes before",
    "a misaligned vector": "a misaligned access",
    "an index beyond an array": "thread 4: .* index beyond an array",
    "a null pointer": "Segmentation fault at address 0",
    "too much stack": "bytes of stack",
}


def test_every_mistake_is_listed() -> None:
    assert {*MISTAKES, "none"} == set(selftest.mistakes())


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str) -> None:
    with pytest.raises(RuntimeError, match=f"(?s)^emulation: block .*{MISTAKES[mistake]}"):
        selftest.misbehave(mistake, 64, 100)
    selftest.misbehave("none", 64, 100)  # and leave nothing behind


@pytest.mark.parametrize("order", ["descending", "random"])
def test_mistakes_are_found_in_any_order(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEX_EMULATED_ORDER", order)
    for mistake in MISTAKES:
        with pytest.raises(RuntimeError, match=r"^emulation: block"):
            selftest.misbehave(mistake, 64, 100)


@pytest.mark.parametrize(("threads", "shared"), [(0, 0), (1025, 0), (32, 227 * 1024 + 1)])
def test_launches_that_cuda_refuses(threads: int, shared: int) -> None:
    with pytest.raises(RuntimeError, match="invalid configuration"):
        selftest.misbehave("none", threads, shared)


def test_less_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert selftest.shared_memory_limit() == 227 * 1024
    monkeypatch.setenv("RELEX_EMULATED_SHARED", str(99 * 1024))
    assert selftest.shared_memory_limit() == 99 * 1024
    selftest.misbehave("none", 32, 99 * 1024)
    with pytest.raises(RuntimeError, match="invalid configuration"):
        selftest.misbehave("none", 32, 99 * 1024 + 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RELEX_EMULATED_ORDER", "backwards"),
        ("RELEX_EMULATED_ORDER", "random:x"),
        ("RELEX_EMULATED_ORDER", "random7"),
        ("RELEX_EMULATED_COPIES", "never"),
        ("RELEX_EMULATED_SUMS", ""),
        ("RELEX_EMULATED_SHARED", "99K"),
    ],
)
def test_misspelt_settings(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=f"{name}: expected .*, found {value}"):
        selftest.misbehave("none", 32, 0)
