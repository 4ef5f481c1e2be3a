"""The Triton combine kernel against the CPU's and the oracle. Run by test_triton_kernels.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import oracle
from memory import CODES, Memory, addresses, training_run
from oracle import Float64, Words
from relex_ext import _core
from relex_ext.backends.cpu import CpuBackend
from tables import DTYPES, MIXES
from test_kernels_combine import assert_rounded, assert_within_fp32, weights_of
from triton_device import INTERPRETED, combined, kernels, marks

pytestmark = marks

FUSED = [isa for isa in _core.isas() if isa != "scalar"][:1]
"""An instruction set with fused multiply-add, which the kernels have, too."""


def fuses() -> bool:
    """Old interpreters of Triton round an fma twice."""
    if not INTERPRETED:
        return True
    from triton._C.libtriton import interpreter

    return hasattr(interpreter, "fma_fp32")


def assert_as_on_cpu(found: list[Words], memory: Memory, weights: Float64, dtype: str) -> None:
    """Bit by bit what the processor's kernels write, where they fuse as these do."""
    if FUSED and fuses():
        out = [np.zeros(memory.columns, oracle.WORD[dtype]) for _ in weights]
        CpuBackend(2, isa=FUSED[0]).combine(memory.strips(), weights, addresses(out), CODES[dtype])
        assert [a.tobytes() for a in found] == [a.tobytes() for a in out]


def check(memory: Memory, weights: Float64, dtype: str, shift: bool = False) -> list[Words]:
    """Within the oracle's tolerances, and bit by bit what the processor writes."""
    found = combined(memory, weights, dtype, shift=shift)
    assert_rounded(found, memory, weights, dtype)
    assert_as_on_cpu(found, memory, weights, dtype)
    return found


def test_there_is_something_to_compare_bits_with() -> None:
    if not (FUSED and fuses()):
        pytest.skip("no fused multiply-add here")


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(t, 97) for t in (1, 2, 3, 4, 5, 8, 9, 75, 200)] + [(3, n) for n in (1, 15, 1023, 1024, 5001)],
)
def test_every_shape_in_bf16(rows: int, columns: int) -> None:
    check(training_run(rows, columns), weights_of(1, rows), "BF16")


@pytest.mark.parametrize(("base", "dtypes"), MIXES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("shift", [False, True])
def test_every_dtype(base: str, dtypes: tuple[str, ...], out: str, rows: int, shift: bool) -> None:
    check(training_run(rows, 3001, base, dtypes), weights_of(2, rows), out, shift)


@pytest.mark.parametrize("out", DTYPES)
def test_no_base_means_zeros(out: str) -> None:
    memory, weights = training_run(5, 1001, with_base=False), weights_of(1, 5)
    found = combined(memory, weights, out)
    assert_within_fp32(found, memory, weights, out)
    assert_as_on_cpu(found, memory, weights, out)


def test_sums_are_fused() -> None:
    """Rounding the product on its own, too, would change some bits in forty thousand."""
    if not fuses():
        pytest.skip("this interpreter does not")
    memory = training_run(17, 40_000, "F32", ("F32",), step=0.05)
    weights = np.random.default_rng(2).normal(size=(1, 17))
    found = combined(memory, weights, "F16")[0]
    assert_as_on_cpu([found], memory, weights, "F16")
    sums = np.zeros(memory.columns, np.float32)
    for delta, weight in zip(memory.deltas, weights[0], strict=True):
        sums += delta.astype(np.float32) * np.float32(weight)
    assert not np.array_equal(found, oracle.round_to(memory.base_values + sums, "F16"))


@pytest.mark.parametrize("targets", range(1, 10))
@pytest.mark.parametrize("out", ["BF16", "F32"])
def test_many_targets(targets: int, out: str) -> None:
    memory, weights = training_run(5, 2011), weights_of(targets, 5)
    together = check(memory, weights, out)
    for q in (0, targets - 1):  # a target's bits do not depend on the others
        alone = combined(memory, np.ascontiguousarray(weights[q : q + 1]), out)
        assert alone[0].tobytes() == together[q].tobytes()


@pytest.mark.parametrize("out", DTYPES)
def test_tuning_changes_no_bit(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, weights = training_run(11, 2500, "F16", ("BF16",)), weights_of(3, 11)
    found = set()
    for config in kernels.COMBINE.configs:
        monkeypatch.setattr(kernels, "COMBINE", replace(kernels.COMBINE, configs=[config]))
        found.add(b"".join(a.tobytes() for a in combined(memory, weights, out)))
    assert len(found) == 1


def test_every_setting_fits_the_padded_weights() -> None:
    together = [config.kwargs["TOGETHER"] for config in kernels.COMBINE.configs]
    assert all(kernels._PADDED_ROWS % n == 0 for n in together)


@pytest.mark.parametrize("out", DTYPES)
def test_windows_change_no_bit(out: str) -> None:
    memory, weights = training_run(5, 5077), weights_of(1, 5)
    whole = combined(memory, weights, out)[0]
    pieces = [combined(memory, weights, out, cut)[0] for cut in ((0, 4096), (4096, None))]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_weights_give_the_base_bits(dtype: str) -> None:
    memory = training_run(3, 2001, dtype, (dtype,))
    assert memory.base is not None
    memory.base[::7] = 0
    memory.base[::3] = oracle.round_to(np.array([-0.0]), dtype)[0]
    found = combined(memory, np.zeros((2, 3)), dtype)
    assert all(np.array_equal(words, memory.base) for words in found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_zero_of_a_frozen_base_survives(dtype: str) -> None:
    memory = training_run(2, 1001, dtype, (dtype,))
    assert memory.base is not None
    memory.base[::3] = oracle.round_to(np.array([-0.0]), dtype)[0]
    memory.rows = [memory.base.copy(), memory.base.copy()]
    found = combined(memory, weights_of(1, 2), dtype)[0]
    assert found.tobytes() == memory.base.tobytes()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_word_of_the_base_survives(dtype: str) -> None:
    """Every finite 16-bit number but −0, subnormals among them, through the rounding."""
    exponent = {"F16": 0x7C00, "BF16": 0x7F80}[dtype]
    words = np.arange(2**16, dtype=np.uint16)
    words = words[((words & exponent) != exponent) & (words != 0x8000)]
    memory = Memory(words, dtype, [words.copy()], [dtype])
    assert np.array_equal(combined(memory, np.ones((1, 1)), dtype)[0], words)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_ties_go_to_even_and_near_ties_to_their_side(dtype: str) -> None:
    """Rounding to float32 first would send the near ones to the tie and then to the even number."""
    bits = {"F16": 11, "BF16": 8}[dtype]
    half = 2.0**-bits
    rng = np.random.default_rng(6)
    base = 1.0 + rng.integers(0, 2 ** (bits - 1), 3000) * 2.0 ** (1 - bits)
    nudge = np.tile([0.0, 2.0**-30, -(2.0**-30)], 1000)
    memory = Memory(
        oracle.round_to(base, dtype),
        dtype,
        [oracle.round_to(base + half, "F32"), oracle.round_to(base + nudge * 2**12, "F32")],
        ["F32", "F32"],
    )
    weights = np.array([[1.0, 2.0**-12]])
    exact = memory.base_values + weights @ memory.deltas
    assert np.array_equal(exact[0], base + half + nudge)
    assert np.array_equal(combined(memory, weights, dtype)[0], oracle.round_to(exact[0], dtype))


def test_overflow_becomes_infinity() -> None:
    base = oracle.round_to(np.full(40, 60000.0), "F16")
    row = oracle.round_to(np.full(40, 62000.0), "F16")
    found = combined(Memory(base, "F16", [row], ["F16"]), np.array([[10.0]]), "F16")[0]
    assert (found == 0x7C00).all()


def test_no_columns_write_nothing() -> None:
    memory = Memory(None, "BF16", [np.zeros(0, np.uint16)] * 2, ["BF16"] * 2)
    assert combined(memory, np.ones((3, 2)), "BF16")[2].size == 0
