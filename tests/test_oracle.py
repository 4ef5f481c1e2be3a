"""The oracle itself, against values known by hand and against numpy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import oracle


def test_bf16_rounding_of_known_values() -> None:
    one = 0x3F80
    half_up = 1.0 + 2.0**-8  # halfway between one and its successor: to the even one
    cases = {
        1.0: one,
        half_up: one,
        half_up + 2.0**-40: one + 1,
        1.0 + 3 * 2.0**-8: one + 2,
        -0.0: 0x8000,
        2.0**-133: 1,
        2.0**-134: 0,
        3 * 2.0**-134: 2,
        float(2**128): 0x7F80,
        3.4e38: 0x7F80,
        -np.inf: 0xFF80,
    }
    found = oracle.round_to(np.array(list(cases)), "BF16")
    assert found.tolist() == list(cases.values())


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_rounding_agrees_with_numpy(dtype: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=20000) * 10.0 ** rng.integers(-10, 5, 20000)
    with np.errstate(over="ignore"):
        expected = values.astype({"F32": np.float32, "F16": np.float16}[dtype])
    assert np.array_equal(oracle.round_to(values, dtype), expected.view(oracle.WORD[dtype]))


def test_bf16_rounding_agrees_with_torch() -> None:
    rng = np.random.default_rng(2)
    values = (rng.normal(size=20000) * 10.0 ** rng.integers(-42, 38, 20000)).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(oracle.round_to(values.astype(np.float64), "BF16"), expected)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rounding_keeps_what_is_representable(dtype: str) -> None:
    word = oracle.WORD[dtype]
    words = np.random.default_rng(3).integers(0, 2 ** (8 * np.dtype(word).itemsize), 99999, word)
    exponent = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}[dtype]
    words = words[(words & exponent) != exponent]
    assert np.array_equal(oracle.round_to(oracle.to_float64(words, dtype), dtype), words)


def test_ulps_counts_across_zero() -> None:
    a = np.array([0x0001, 0x8000, 0x3F80], np.uint16)
    b = np.array([0x8001, 0x0000, 0x3F83], np.uint16)
    assert oracle.ulps(a, b, "BF16").tolist() == [2, 0, 3]


def test_forecast_of_an_exact_line_is_the_line() -> None:
    direction = np.array([1.0, -2.0, 0.5])
    base = np.array([10.0, 20.0, 30.0])
    steps = [10, 20, 40]
    found = oracle.forecast(base, [base + s * direction for s in steps], steps, [100.0, 0.0])
    assert np.allclose(found.theta, [base + 100 * direction, base], rtol=0, atol=1e-12)
    assert np.isclose(found.r2[0], 1.0, rtol=0, atol=1e-12)
    assert np.isclose(found.sigma[0], np.linalg.norm(direction) * np.linalg.norm(steps))
