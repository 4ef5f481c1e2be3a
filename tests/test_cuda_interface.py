"""What the bindings of the CUDA kernels refuse; those of the emulation are the same source."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from emulated import Watched, common, cuda
from memory import training_run
from relex_ext import _core

MEMORY = training_run(3, 500)
STRIPS = MEMORY.strips()
SPACE = Watched(np.zeros(1 << 20, np.uint8))
GRAM = Watched(np.zeros((3, 3)))
U = Watched(np.ones((3, 2), np.float32))
Y = Watched(np.zeros((3, 2)))
ENERGY = Watched(np.zeros(3))
WEIGHTS = Watched(np.ones((2, 3)))
OUT = [Watched(np.zeros(500, np.uint16)) for _ in range(2)]
OUT_ADDRESSES = np.array([out.address for out in OUT], np.uint64)

Call = dict[str, Any]


def call(operation: Any, own: Call, changes: Call) -> None:
    names = ("rows", "dtypes", "base", "base_dtype", "columns")
    given = dict(zip(names, common(STRIPS), strict=True))
    space = {"workspace": SPACE.address, "workspace_size": SPACE.array.size, "stream": 0}
    operation(**{**given, **own, **space, **changes})


def gram(**changes: Any) -> None:
    call(cuda.gram, {"gram": GRAM.address}, changes)


def power_step(**changes: Any) -> None:
    own = {"u": U.address, "k": 2, "y": Y.address, "energy": ENERGY.address}
    call(cuda.power_step, own, changes)


def combine(**changes: Any) -> None:
    own = {"weights": WEIGHTS.address, "targets": 2, "out": OUT_ADDRESSES, "out_dtype": 2}
    call(cuda.combine, own, changes)


OPERATIONS = (gram, power_step, combine)


def test_constants() -> None:
    assert cuda.PART > 0 and _core.SEGMENT % cuda.PART == 0
    assert (cuda.MAX_ROWS, cuda.MAX_VECTORS) == (_core.MAX_ROWS, _core.MAX_VECTORS)
    assert cuda.EMULATED is True
    assert cuda.unavailable(0) is None


def test_the_calls_they_are_made_from_work() -> None:
    for operation in OPERATIONS:
        operation()
    assert GRAM.array.any() and Y.array.all() and ENERGY.array.all()
    assert all(out.array.any() for out in OUT)


WRONG: list[tuple[str, Any]] = [
    ("rows", np.zeros(0, np.uint64)),
    ("rows", np.zeros(3, np.uint64)),
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
    ("workspace", 0),
    ("workspace", SPACE.address + 8),
    ("workspace_size", -1),
    ("workspace_size", 0),
    ("stream", -1),
    ("stream", None),
]


def in_words(value: Any) -> str | None:
    """A test's name for a value: addresses are others in every process, and names must not be."""
    return "address" if isinstance(value, int) and value > 1 << 32 else None


def refused(operation: Any, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        operation(**{name: value})
    if caught.type is ValueError:
        assert "expected" in str(caught.value) and "found" in str(caught.value)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("name", "value"), WRONG, ids=in_words)
def test_wrong_rows_and_workspaces(operation: Any, name: str, value: Any) -> None:
    refused(operation, name, value)


@pytest.mark.parametrize(
    ("operation", "name", "value"),
    [
        (gram, "gram", 0),
        (gram, "gram", GRAM.address + 4),
        (gram, "gram", GRAM.array),
        (power_step, "u", 0),
        (power_step, "u", U.address + 2),
        (power_step, "k", 0),
        (power_step, "k", _core.MAX_VECTORS + 1),
        (power_step, "y", 0),
        (power_step, "y", Y.address + 4),
        (power_step, "energy", ENERGY.address + 4),
        (power_step, "energy", None),
        (combine, "weights", 0),
        (combine, "weights", WEIGHTS.address + 4),
        (combine, "targets", -1),
        (combine, "targets", 1),
        (combine, "out", OUT_ADDRESSES[:1]),
        (combine, "out", np.zeros(2, np.uint64)),
        (combine, "out", OUT_ADDRESSES.reshape(2, 1)),
        (combine, "out", OUT_ADDRESSES.astype(np.float64)),
        (combine, "out_dtype", 3),
        (combine, "out_dtype", -1),
    ],
    ids=in_words,
)
def test_wrong_operands(operation: Any, name: str, value: Any) -> None:
    refused(operation, name, value)


@pytest.mark.parametrize(
    ("operation", "needs"),
    [
        (gram, cuda.gram_needs(3, 500)),
        (power_step, cuda.power_step_needs(3, 500, 2)),
        (combine, cuda.combine_needs(3, 2)),
    ],
)
def test_a_workspace_below_the_least(operation: Any, needs: tuple[int, int]) -> None:
    operation(workspace_size=needs[0])
    with pytest.raises(ValueError, match=f"workspace_size: expected at least {needs[0]} bytes"):
        operation(workspace_size=needs[0] - 1)


@pytest.mark.parametrize(
    ("needs", "arguments"),
    [
        (cuda.gram_needs, (0, 5)),
        (cuda.gram_needs, (_core.MAX_ROWS + 1, 5)),
        (cuda.gram_needs, (3, -1)),
        (cuda.power_step_needs, (3, 5, 0)),
        (cuda.power_step_needs, (3, 5, _core.MAX_VECTORS + 1)),
        (cuda.combine_needs, (0, 1)),
        (cuda.combine_needs, (3, -1)),
    ],
)
def test_needs_of_impossible_shapes(needs: Any, arguments: tuple[int, ...]) -> None:
    with pytest.raises((ValueError, TypeError)):
        needs(*arguments)


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 160, 161, 1000, _core.MAX_ROWS])
@pytest.mark.parametrize("columns", [0, 1, 8192, 8193, 10**6, 10**10])
def test_needs_are_moderate(rows: int, columns: int) -> None:
    """The least fits any GPU beside a window; the most is bounded whatever the tensor."""
    for least, most in (
        cuda.gram_needs(rows, columns),
        cuda.power_step_needs(rows, columns, 64),
        cuda.combine_needs(rows, 5),
    ):
        assert 0 <= least <= most < 1 << 30
        assert least <= (1 << 20) + 8 * rows * (rows + 64)


def test_no_columns_are_no_work() -> None:
    before = [w.array.tobytes() for w in (GRAM, Y, ENERGY, *OUT)]
    for operation in OPERATIONS:
        operation(columns=0)
        operation(columns=0, rows=np.zeros(3, np.uint64))
    assert [w.array.tobytes() for w in (GRAM, Y, ENERGY, *OUT)] == before


def test_no_targets_are_no_work() -> None:
    combine(targets=0, weights=0, out=np.zeros(0, np.uint64))


def test_errors_of_a_launch_are_runtime_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELEX_EMULATED_ORDER", "sideways")
    for operation in OPERATIONS:
        with pytest.raises(RuntimeError, match="RELEX_EMULATED_ORDER: expected"):
            operation()


def test_calls_from_several_threads() -> None:
    """They release the GIL; the emulation runs one launch at a time."""
    found = [Watched(np.zeros((3, 3))) for _ in range(4)]
    spaces = [Watched(np.zeros(1 << 20, np.uint8)) for _ in found]
    m = MEMORY.deltas
    expected = np.tril(m @ m.T)

    def work(gram_: Watched, space: Watched) -> None:
        gram(gram=gram_.address, workspace=space.address)

    threads = [threading.Thread(target=work, args=both) for both in zip(found, spaces, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.allclose(np.tril(g.array), expected, rtol=1e-5, atol=1e-12) for g in found)
