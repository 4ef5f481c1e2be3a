"""rank1 on arrays and tensors in memory, against the SVD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import oracle
import tolerances
from oracle import Float64
from relex_ext import InputError, rank1
from relex_ext.inmemory import _view
from tables import BACKENDS

Make = Callable[[Float64], Any]

KINDS: dict[str, Make] = {
    "numpy f32": lambda x: x.astype(np.float32),
    "numpy f16": lambda x: x.astype(np.float16),
    "torch f32": lambda x: torch.from_numpy(x).float(),
    "torch f16": lambda x: torch.from_numpy(x).half(),
    "torch bf16": lambda x: torch.from_numpy(x).bfloat16(),
    "torch parameter": lambda x: torch.nn.Parameter(torch.from_numpy(x).float()),
}


def values(array: Any) -> Float64:
    if isinstance(array, torch.Tensor):
        return array.detach().double().numpy()
    return np.asarray(array, np.float64)


def drift(rows: int, shape: tuple[int, ...], seed: int = 0) -> Float64:
    rng = np.random.default_rng([seed, rows])
    time = np.arange(1, rows + 1).reshape(rows, *[1] * len(shape))
    return rng.normal(size=shape) * time / rows + 0.1 * rng.normal(size=(rows, *shape))


def check(found: Any, snapshots: Any, base: Any) -> None:
    stacked = np.stack([values(s).ravel() for s in snapshots])
    m = stacked - (0 if base is None else values(base).ravel())
    u, sigma, _ = oracle.svd(m)
    assert found.sigma == pytest.approx(sigma[0], rel=tolerances.SIGMA)
    share = sigma[0] ** 2 / np.sum(m * m)
    assert found.explained_variance == pytest.approx(share, rel=tolerances.LINE)
    assert np.linalg.norm(found.u - u[:, 0]) <= tolerances.VECTOR
    assert found.u.dtype == np.float64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["auto", "gram", "power"])
@pytest.mark.parametrize("shape", [(40, 53), (7, 11, 13), (70001,)])
@pytest.mark.parametrize("with_base", [True, False])
def test_lists(kind: str, solver: str, shape: tuple[int, ...], with_base: bool) -> None:
    data = drift(6, shape)
    snapshots = [KINDS[kind](row) for row in data[1:]]
    base = KINDS[kind](data[0] * 0.1) if with_base else None
    check(rank1(snapshots, base, solver=solver), snapshots, base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(200,), (30, 20)])
def test_stacked(kind: str, shape: tuple[int, ...]) -> None:
    whole = KINDS[kind](drift(8, shape))
    check(rank1(whole), whole, None)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("rows", [1, 2, 17, 75])
def test_backends(monkeypatch: pytest.MonkeyPatch, name: str, rows: int) -> None:
    if name != "reference":
        monkeypatch.setenv("RELEX_ISA", name)
    whole = drift(rows, (300,)).astype(np.float32)
    found = rank1(whole, backend="reference" if name == "reference" else "cpu", threads=2)
    check(found, whole, None)


def test_mixed_dtypes_and_libraries() -> None:
    data = drift(6, (50, 3))
    snapshots = [make(row) for make, row in zip(KINDS.values(), data, strict=True)]
    base = torch.from_numpy(data[0] * 0.1).bfloat16()
    check(rank1(snapshots, base), snapshots, base)


@pytest.mark.parametrize("solver", ["gram", "power"])
def test_not_contiguous(solver: str) -> None:
    whole = drift(6, (40, 30)).astype(np.float32)
    for cut in (whole[:, ::2, ::3], whole.transpose(0, 2, 1), whole[::-1], whole[:, 5:9, 1:]):
        check(rank1(cut, solver=solver), cut, None)
        as_torch = [torch.from_numpy(np.ascontiguousarray(w)) for w in whole]
        views = [t.t()[3:, ::2] for t in as_torch]
        check(rank1(views, solver=solver), views, None)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "torch parameter"])
def test_contiguous_arrays_are_not_copied(kind: str) -> None:
    array = KINDS[kind](drift(3, (5, 7)))
    address = array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data
    assert _view(array, "x").address == address
    row = array[1]
    size = 35 * (row.element_size() if isinstance(row, torch.Tensor) else row.itemsize)
    assert _view(row, "x").address == address + size
    strided = array[:, ::2]
    assert not address <= _view(strided, "x").address < address + 3 * size


def test_inputs_are_left_alone() -> None:
    whole = drift(4, (100,)).astype(np.float32)
    before = whole.tobytes()
    rank1(whole, whole[0])
    assert whole.tobytes() == before


def test_read_only_arrays() -> None:
    whole = drift(4, (100,)).astype(np.float32)
    whole.flags.writeable = False
    check(rank1(whole), whole, None)


@pytest.mark.parametrize("solver", ["auto", "gram", "power"])
@pytest.mark.parametrize("rows", [2, 5, 80])
def test_nothing_moved(solver: str, rows: int) -> None:
    base = np.ones(1000, np.float32)
    found = rank1([base.copy() for _ in range(rows)], base, solver=solver)
    assert (found.sigma, found.explained_variance) == (0.0, 0.0)
    assert np.linalg.norm(found.u) == pytest.approx(1.0)


@pytest.mark.parametrize("solver", ["auto", "gram", "power"])
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-18, 1e18, 1e25])
@pytest.mark.parametrize("rows", [4, 80])
def test_squares_outside_fp32(solver: str, scale: float, rows: int) -> None:
    whole = (drift(rows, (500,)) * scale).astype(np.float32)
    check(rank1(whole, solver=solver), whole, None)


@pytest.mark.parametrize("solver", ["auto", "gram", "power"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [4, 80])
def test_not_finite(solver: str, value: float, rows: int) -> None:
    whole = drift(rows, (500,)).astype(np.float32)
    whole[2, 77] = value
    with pytest.raises(InputError, match="NaN or Inf"):
        rank1(whole, solver=solver)


F32 = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("snapshots", "base", "message"),
    [
        ([], None, "at least 1"),
        ([F32, np.ones(5, np.float32)], None, r"snapshots\[1\]: expected shape \(4,\)"),
        ([F32, np.ones((2, 2), np.float32)], None, r"snapshots\[1\]"),
        ([F32, F32], np.ones(3, np.float32), r"base: expected shape \(4,\), found \(3,\)"),
        ([F32, np.ones(4)], None, r"snapshots\[1\]: .*found float64"),
        ([np.ones(4, np.int32)], None, "found int32"),
        ([[1.0, 2.0]], None, "found float64"),
        ([np.ones(4, ">f4")], None, "found >f4"),
        ([torch.ones(4, dtype=torch.float64)], None, "float64"),
        ([torch.ones(4, dtype=torch.int64)], None, "int64"),
        ([torch.ones(4, device="meta")], None, "on the CPU, found meta"),
        ([F32], "base", "base: "),
    ],
)
def test_refusals(snapshots: Any, base: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rank1(snapshots, base)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"solver": "svd"}, "solver"), ({"backend": "gpu"}, "backend"), ({"threads": 0}, "threads")],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rank1([F32, F32], **options)
