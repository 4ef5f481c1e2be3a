"""The Triton backend's face: names, refusals, workspace. Run by test_triton_kernels.py."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from memory import training_run
from relex_ext import InputError
from relex_ext.backends.triton import TritonBackend
from triton_device import (
    DEVICE,
    INTERPRETED,
    Place,
    Placed,
    backend,
    combined,
    gram_of,
    kernels,
    marks,
)

pytestmark = marks


def test_name() -> None:
    assert backend().name.startswith("triton (")
    assert INTERPRETED is (backend().name == "triton (interpreter)")
    assert INTERPRETED is kernels.INTERPRETED.value


def test_the_other_kind_of_device_is_refused() -> None:
    with pytest.raises(InputError, match="backend triton: expected"):
        TritonBackend(torch.device("cuda:0" if INTERPRETED else "cpu"))


def calls(strips: Any) -> list[Any]:
    triton = backend()
    out = Place(np.zeros(strips.columns, np.uint16))
    return [
        lambda: triton.gram(strips, triton.zeros(3, 3)),
        lambda: triton.power_step(
            strips, np.ones((3, 2), np.float32), triton.zeros(3, 2), triton.zeros(3)
        ),
        lambda: triton.combine(
            strips, np.ones((1, 3)), np.array([out.address], np.uint64), 2
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("operation", range(3))
def test_elements_across_their_boundaries_are_refused(operation: int) -> None:
    """They would end the process's GPU context."""
    placed = Placed(training_run(3, 100))
    strips = placed.strips
    calls(strips)[operation]()
    with pytest.raises(ValueError, match=r"address: expected a multiple of 2, found 0x"):
        calls(replace(strips, rows=strips.rows + np.uint64(1)))[operation]()
    with pytest.raises(ValueError, match=r"address: expected a multiple of 4"):
        calls(replace(strips, base=strips.base + 2, base_dtype=0))[operation]()


@pytest.mark.parametrize("operation", range(3))
def test_rows_and_dtypes_that_do_not_fit_are_refused(operation: int) -> None:
    placed = Placed(training_run(3, 100))
    strips = placed.strips
    for wrong in (strips.rows[:0], strips.rows[:2], np.repeat(strips.rows, 2000)):
        with pytest.raises(ValueError, match="rows: expected 1 to"):
            calls(replace(strips, rows=wrong))[operation]()


def test_wrong_shapes_are_refused() -> None:
    placed = Placed(training_run(3, 100))
    strips, triton = placed.strips, backend()
    u, y = np.ones((3, 2), np.float32), triton.zeros(3, 2)
    for call in (
        lambda: triton.gram(strips, triton.zeros(3, 2)),
        lambda: triton.power_step(strips, u, triton.zeros(2, 3), None),
        lambda: triton.power_step(strips, u[:2], y, None),
        lambda: triton.power_step(strips, u, y, triton.zeros(2)),
        lambda: triton.power_step(strips, np.ones((3, 65), np.float32), y, None),
        lambda: triton.combine(strips, np.ones((2, 3)), np.zeros(1, np.uint64), 2),
        lambda: triton.combine(strips, np.ones((1, 4)), np.zeros(1, np.uint64), 2),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


@pytest.mark.parametrize("rows", [1, 75, 200, 4096])
@pytest.mark.parametrize("columns", [0, 1, 16384, 10**7, 10**9])
def test_workspace_is_bounded(rows: int, columns: int) -> None:
    found = backend().workspace_bytes(rows, columns, 4, 2)
    one = max(kernels._gram_bytes(rows), kernels._power_bytes(rows, 4))
    assert min(columns, 1) * one <= found <= max(64 << 20, one)


def test_timed_launches_write_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's autotuner, but for the clock: the last setting that it tries is the best."""
    memory, weights = training_run(4, 2500), np.ones((1, 4))
    expected = gram_of(memory).tobytes(), combined(memory, weights, "BF16")[0].tobytes()
    tried = 0

    def seconds(call: Any, quantiles: Any) -> list[float]:
        nonlocal tried
        call()
        tried += 1
        return [1.0 / tried] * len(quantiles)

    monkeypatch.setattr(kernels, "_seconds", seconds)
    monkeypatch.setattr(kernels.Tuning, "choose", lambda tuning, columns: (tuning.timed, {}))
    for name in ("GRAM", "COMBINE"):
        monkeypatch.setattr(kernels, name, replace(getattr(kernels, name)))
    for _ in range(2):
        found = gram_of(memory).tobytes(), combined(memory, weights, "BF16")[0].tobytes()
        assert found == expected
    assert tried == len(kernels.GRAM.configs) + len(kernels.COMBINE.configs)


def test_the_clock() -> None:
    if INTERPRETED:
        pytest.skip("there is no stream to wait for")
    assert all(0 < t < 10 for t in kernels._seconds(lambda: backend().zeros(1000), (0.5, 0.2)))


def test_threads_take_turns() -> None:
    """Backends side by side launch from threads of their own."""
    memory = training_run(4, 300)
    expected = gram_of(memory).tobytes()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(gram_of(memory).tobytes())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_the_device_is_the_one_that_was_meant() -> None:
    assert backend().zeros(2).device.type == DEVICE.type
