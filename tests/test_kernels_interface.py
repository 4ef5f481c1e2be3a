"""What the compiled core refuses, and that Ctrl-C reaches it."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory import training_run
from relex_ext import InputError, _core
from relex_ext.backends import open_backends
from relex_ext.backends.cpu import CpuBackend
from tables import ISAS

MEMORY = training_run(3, 500)
STRIPS = MEMORY.strips()

Call = dict[str, Any]


def common() -> Call:
    return {
        "rows": STRIPS.rows,
        "dtypes": STRIPS.dtypes,
        "base": STRIPS.base,
        "base_dtype": STRIPS.base_dtype,
        "columns": STRIPS.columns,
        "threads": 1,
        "isa": "scalar",
    }


def gram(**changes: Any) -> np.ndarray:
    call = {**common(), "gram": np.zeros((3, 3)), **changes}
    _core.gram(**call)
    return call["gram"]


def power_step(**changes: Any) -> np.ndarray:
    call = {
        **common(),
        "u": np.ones((3, 2), np.float32),
        "y": np.zeros((3, 2)),
        "energy": np.zeros(3),
        **changes,
    }
    _core.power_step(**call)
    return call["y"]


OUT = np.zeros(500, np.uint16)


def combine(**changes: Any) -> np.ndarray:
    address = np.array([OUT.ctypes.data], np.uint64)
    call = {**common(), "weights": np.ones((1, 3)), "out": address, "out_dtype": 2, **changes}
    _core.combine(**call)
    return OUT


def test_the_calls_they_are_made_from_work() -> None:
    assert gram().any() and power_step().any() and combine().any()


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


WRONG_ROWS: list[tuple[str, Any]] = [
    ("rows", np.zeros(0, np.uint64)),
    ("rows", STRIPS.rows[:2]),
    ("rows", STRIPS.rows.reshape(3, 1)),
    ("rows", STRIPS.rows.astype(np.int64)),
    ("rows", np.zeros(_core.MAX_ROWS + 1, np.uint64)),
    ("dtypes", np.array([0, 1], np.uint8)),
    ("dtypes", np.array([0, 1, 3], np.uint8)),
    ("dtypes", np.array([0, 1, 2], np.int64)),
    ("base_dtype", 3),
    ("base_dtype", -1),
    ("base", -1),
    ("base", "0"),
    ("columns", -1),
    ("columns", 1.5),
    ("threads", 0),
    ("threads", 1025),
    ("isa", "neon"),
    ("isa", ""),
]


@pytest.mark.parametrize("call", [gram, power_step, combine])
@pytest.mark.parametrize(("name", "value"), WRONG_ROWS)
def test_wrong_rows(call: Any, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        call(**{name: value})
    if caught.type is ValueError:
        assert "expected" in str(caught.value) and "found" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [
        (gram, "gram", np.zeros((3, 2))),
        (gram, "gram", np.zeros(9)),
        (gram, "gram", np.zeros((4, 4))),
        (gram, "gram", np.zeros((3, 3), np.float32)),
        (gram, "gram", np.asfortranarray(np.arange(9.0).reshape(3, 3))),
        (gram, "gram", np.zeros((3, 6))[:, ::2]),
        (gram, "gram", read_only(np.zeros((3, 3)))),
        (gram, "gram", [[0.0] * 3] * 3),
        (power_step, "u", np.ones((3, 2))),
        (power_step, "u", np.ones((2, 2), np.float32)),
        (power_step, "u", np.ones(3, np.float32)),
        (power_step, "u", np.ones((3, 0), np.float32)),
        (power_step, "u", np.ones((3, _core.MAX_VECTORS + 1), np.float32)),
        (power_step, "y", np.zeros((3, 3))),
        (power_step, "y", np.zeros((3, 2), np.float32)),
        (power_step, "y", read_only(np.zeros((3, 2)))),
        (power_step, "energy", np.zeros(2)),
        (power_step, "energy", np.zeros(3, np.float32)),
        (power_step, "energy", read_only(np.zeros(3))),
        (combine, "weights", np.ones(3)),
        (combine, "weights", np.ones((1, 2))),
        (combine, "weights", np.ones((2, 3))),
        (combine, "out", np.zeros(2, np.uint64)),
        (combine, "out", np.zeros((1, 1), np.uint64)),
        (combine, "out", np.zeros(1)),
        (combine, "out_dtype", 3),
        (combine, "out_dtype", -1),
    ],
)
def test_wrong_arrays(call: Any, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        call(**{name: value})


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [
        (gram, "rows", STRIPS.rows),
        (gram, "dtypes", STRIPS.dtypes),
        (power_step, "u", np.arange(6, dtype=np.float32).reshape(3, 2)),
        (combine, "weights", np.arange(3.0).reshape(1, 3)),
    ],
)
def test_strided_inputs_are_refused_or_read_right(call: Any, name: str, value: Any) -> None:
    expected = call(**{name: value}).copy()
    spread = np.repeat(value, 2, axis=-1)[..., ::2]
    assert not spread.flags.c_contiguous and np.array_equal(spread, value)
    try:
        found = call(**{name: spread})
    except TypeError:
        return
    assert np.array_equal(found, expected)


def test_isas() -> None:
    assert ISAS[-1] == "scalar"
    assert set(ISAS) <= {"scalar", "avx2", "avx512", "avx512bf16"}
    assert CpuBackend(1).isa == ISAS[0]


def test_relex_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ISAS:
        monkeypatch.setenv("RELEX_ISA", name)
        assert CpuBackend(1).isa == name
    monkeypatch.setenv("RELEX_ISA", "auto")
    assert CpuBackend(1).isa == ISAS[0]
    monkeypatch.setenv("RELEX_ISA", "sse2")
    with pytest.raises(InputError, match=r"RELEX_ISA: expected one of auto, .*found sse2"):
        open_backends("cpu")


# ---- files -------------------------------------------------------------------------------------


def test_file(tmp_path: Path) -> None:
    place = tmp_path / "f"
    place.write_bytes(bytes(range(256)) * 40)
    mapped = _core.File(str(place), True)
    assert mapped.size == 10240
    assert ctypes.string_at(mapped.address, 10240) == place.read_bytes()
    file = _core.File(str(place), False)
    assert file.size == 10240
    into = np.zeros(100, np.uint8)
    failed = _core.read(
        np.array([file.descriptor], np.int32),
        np.array([255], np.uint64),
        np.array([into.ctypes.data], np.uint64),
        np.array([100], np.uint64),
        _core.StopToken(),
    )
    assert failed[0] == -1
    assert into.tolist() == [255, *range(99)]
    with pytest.raises(OSError) as caught:
        _core.File(str(tmp_path / "gone"), True)
    assert caught.value.errno == 2


def test_read_past_the_end_names_the_strip(tmp_path: Path) -> None:
    place = tmp_path / "f"
    place.write_bytes(bytes(100))
    file = _core.File(str(place), False)
    into = np.zeros(200, np.uint8)
    found = _core.read(
        np.array([file.descriptor] * 2, np.int32),
        np.array([0, 50], np.uint64),
        np.array([into.ctypes.data] * 2, np.uint64),
        np.array([100, 51], np.uint64),
        _core.StopToken(),
    )
    assert found == (1, 0)


# ---- Ctrl-C ------------------------------------------------------------------------------------

LONG = """
import numpy as np
from relex_ext import _core

rows = np.zeros(1 << 22, np.uint16)
addresses = np.full(1500, rows.ctypes.data, np.uint64)
dtypes = np.full(1500, 2, np.uint8)
print("begun", flush=True)
{call}
print("ended")
"""
CALLS = {
    "gram": "_core.gram(addresses, dtypes, 0, 0, rows.size, np.zeros((1500, 1500)), 2, 'scalar')",
    "power_step": "_core.power_step(addresses, dtypes, 0, 0, rows.size, "
    "np.ones((1500, 64), np.float32), np.zeros((1500, 64)), None, 2, 'scalar')",
    "combine": "out = np.zeros((64, rows.size), np.float32)\n"
    "_core.combine(addresses, dtypes, 0, 0, rows.size, np.ones((64, 1500)), "
    "out.ctypes.data + np.arange(64, dtype=np.uint64) * out.strides[0], 0, 2, 'scalar')",
}


@pytest.mark.parametrize("kernel", CALLS)
def test_interrupt(kernel: str) -> None:
    """Minutes of work, given up within a second of SIGINT."""
    package = Path(re.sub(r"relex_ext/.*", "", _core.__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", LONG.format(call=CALLS[kernel])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(package)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.4)
    assert process.poll() is None, "the kernel was to be at work"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    took = time.monotonic() - begun
    assert stdout == ""
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode in (-signal.SIGINT, 130)
    assert took < 1.0
