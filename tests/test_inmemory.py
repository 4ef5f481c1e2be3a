"""rank1, gram and combine_tensors on arrays and tensors in memory, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import oracle
import tolerances
from oracle import Float64
from relex_ext import InputError, combine_tensors, gram, inmemory, rank1
from relex_ext.backends import Strips
from tables import BACKENDS
from tensors import NAME, check_combine, check_gram, values, weights_of, words

Make = Callable[[Float64], Any]

KINDS: dict[str, Make] = {
    "numpy f32": lambda x: x.astype(np.float32),
    "numpy f16": lambda x: x.astype(np.float16),
    "torch f32": lambda x: torch.tensor(x).float(),
    "torch f16": lambda x: torch.tensor(x).half(),
    "torch bf16": lambda x: torch.tensor(x).bfloat16(),
    "torch parameter": lambda x: torch.nn.Parameter(torch.tensor(x).float()),
}


def drift(rows: int, shape: tuple[int, ...], seed: int = 0) -> Float64:
    rng = np.random.default_rng([seed, rows])
    time = np.arange(1, rows + 1).reshape(rows, *[1] * len(shape))
    return rng.normal(size=shape) * time / rows + 0.1 * rng.normal(size=(rows, *shape))


def network(rows: int, shape: tuple[int, ...]) -> Float64:
    """A base of a network's size, then so many rows close to it."""
    base = np.random.default_rng(1).normal(0, 0.02, (1, *shape))
    return np.concatenate([base, base + 1e-4 * drift(rows, shape)])


def check(found: Any, snapshots: Any, base: Any) -> None:
    stacked = np.stack([values(s) for s in snapshots])
    m = stacked - (0 if base is None else values(base))
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


class Seen:
    """A backend that notes where it was sent."""

    def gram(self, strips: Strips, gram: Any) -> None:
        self.rows, self.base = strips.rows.tolist(), strips.base


@pytest.mark.parametrize("kind", KINDS)
def test_contiguous_arrays_are_not_copied(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    seen = Seen()
    monkeypatch.setattr(inmemory, "CpuBackend", lambda threads: seen)
    array = KINDS[kind](drift(3, (5, 7)))
    torch_array = isinstance(array, torch.Tensor)
    address = array.data_ptr() if torch_array else array.ctypes.data
    size = 35 * (array.element_size() if torch_array else array.itemsize)
    gram(array[1:], array[0], threads=1)
    assert seen.rows == [address + size, address + 2 * size]
    assert seen.base == address
    gram(array[1:, :, ::2], array[0, :, ::2], threads=1)
    assert not any(address <= row < address + 3 * size for row in (*seen.rows, seen.base))


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
        ([torch.ones(4, device="meta")], None, "on meta"),
        ([torch.ones(4), torch.ones(4, device="meta")], None, "on cpu, found meta"),
        ([torch.ones(4)], torch.ones(4).to_sparse(), "base: expected a dense tensor"),
        ([torch.ones(4), "row"], None, r"snapshots\[1\]: expected an array or tensor"),
        ([torch.ones(4), np.ones(4, ">f4")], None, r"snapshots\[1\]: "),
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


# ---- gram and combine_tensors ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 53), (7, 11, 13), (70001,), (), (1,)])
@pytest.mark.parametrize("with_base", [True, False])
def test_gram(kind: str, shape: tuple[int, ...], with_base: bool) -> None:
    data = drift(6, shape)
    snapshots = [KINDS[kind](row) for row in data[1:]]
    base = KINDS[kind](data[0] * 0.1) if with_base else None
    found = gram(snapshots, base)
    assert isinstance(found, torch.Tensor) is ("torch" in kind)
    check_gram(found, snapshots, base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 53), (70001,), ()])
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("targets", [1, 2, 5])
def test_combine(kind: str, shape: tuple[int, ...], with_base: bool, targets: int) -> None:
    data = network(5, shape)
    snapshots = [KINDS[kind](row) for row in data[1:]]
    base = KINDS[kind](data[0]) if with_base else None
    weights = weights_of(targets, 5)
    found = combine_tensors(snapshots, weights, base)
    assert len(found) == targets
    name = NAME[snapshots[-1].dtype]
    check_combine(found, snapshots, weights, base, name)
    as_lists = combine_tensors(snapshots, weights.tolist(), base)
    assert [words(x).tobytes() for x in as_lists] == [words(x).tobytes() for x in found]
    alone = combine_tensors(snapshots, weights[0].numpy(), base)
    assert words(alone).tobytes() == words(found[0]).tobytes()
    assert alone.shape == snapshots[0].shape


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("library", ["numpy f32", "torch bf16"])
def test_named_backends(monkeypatch: pytest.MonkeyPatch, name: str, library: str) -> None:
    if name != "reference":
        monkeypatch.setenv("RELEX_ISA", name)
    options: dict[str, Any] = {"backend": "reference" if name == "reference" else "cpu"}
    data = network(5, (40, 53))
    snapshots = [KINDS[library](row) for row in data[1:]]
    base = KINDS[library](data[0])
    check_gram(gram(snapshots, base, **options), snapshots, base)
    weights = weights_of(2, 5)
    found = combine_tensors(snapshots, weights, base, threads=2, **options)
    check_combine(found, snapshots, weights, base, NAME[snapshots[0].dtype])


@pytest.mark.parametrize("library", ["numpy f32", "torch f32"])
def test_threads_change_no_bit(library: str) -> None:
    snapshots = [KINDS[library](row) for row in drift(6, (100_003,))]
    one, several = (values(gram(snapshots, threads=n)).tobytes() for n in (1, 7))
    assert one == several == values(gram(snapshots)).tobytes()
    a, b = (combine_tensors(snapshots, np.ones(6), threads=n) for n in (1, 7))
    assert words(a).tobytes() == words(b).tobytes()


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("bf16", "BF16"),
        (torch.bfloat16, "BF16"),
        (torch.float32, "F32"),
        (np.float16, "F16"),
        (np.dtype(np.float32), "F32"),
        ("float16", "F16"),
    ],
)
@pytest.mark.parametrize("library", ["numpy f32", "torch bf16"])
def test_dtype_of_the_result(library: str, dtype: Any, name: str) -> None:
    snapshots = [KINDS[library](row) for row in drift(4, (5, 77)) * 1e-2]
    weights = weights_of(1, 4)
    if library == "numpy f32" and name == "BF16":
        with pytest.raises(InputError, match="found bfloat16"):
            combine_tensors(snapshots, weights, dtype=dtype)
    else:
        found = combine_tensors(snapshots, weights, dtype=dtype)
        check_combine(found, snapshots, weights, None, name)


def test_numpy_among_tensors() -> None:
    data = network(6, (50, 3))
    snapshots = [make(row) for make, row in zip(KINDS.values(), data[1:], strict=True)]
    snapshots[0].flags.writeable = False
    base, weights = torch.from_numpy(data[0]).bfloat16(), weights_of(2, 6)
    check_gram(gram(snapshots, base), snapshots, base)
    found = combine_tensors(snapshots, weights, base)
    assert all(isinstance(x, torch.Tensor) for x in found)
    check_combine(found, snapshots, weights, base, "F32")
    check_gram(gram(snapshots[:2], base), snapshots[:2], base)


def test_tensor_weights_for_arrays() -> None:
    snapshots = list((drift(3, (50,)) * 1e-2).astype(np.float32))
    weights = torch.nn.Parameter(weights_of(1, 3))
    check_combine(combine_tensors(snapshots, weights), snapshots, weights, None, "F32")


@pytest.mark.parametrize("kind", ["numpy f32", "torch f32"])
def test_nothing_to_sum(kind: str) -> None:
    empty = [KINDS[kind](np.zeros((0, 3))) for _ in range(4)]
    found = gram(empty)
    assert found.shape == (4, 4) and not values(found).any()
    made = combine_tensors(empty, np.ones((2, 4)), empty[0])
    assert [tuple(x.shape) for x in made] == [(0, 3), (0, 3)]
    assert combine_tensors(empty, np.ones((0, 4))) == []
    assert rank1(empty).sigma == 0.0


@pytest.mark.parametrize("kind", ["numpy f32", "numpy f16", "torch f32", "torch bf16"])
def test_zero_weights_give_the_base_bits(kind: str) -> None:
    data = drift(3, (500,))
    data[0, ::7] = -0.0
    base, *snapshots = (KINDS[kind](row) for row in data)
    found = combine_tensors(snapshots, [0.0, 0.0], base)
    assert words(found).tobytes() == words(base).tobytes()


@pytest.mark.parametrize("library", ["numpy f32", "torch f32"])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((2, 3)), r"weights: expected shape \(targets, 2\), found \(2, 3\)"),
        (np.ones((1, 2, 2)), "weights: "),
        (np.array(1.0), "weights: "),
        ([[1.0], [1.0, 2.0]], "weights: "),
        (["a", "b"], "weights: "),
    ],
)
def test_refused_weights(library: str, weights: Any, message: str) -> None:
    snapshots = [KINDS[library](row) for row in drift(2, (5,))]
    with pytest.raises(InputError, match=message):
        combine_tensors(snapshots, weights)


@pytest.mark.parametrize("library", ["numpy f32", "torch f32"])
@pytest.mark.parametrize("dtype", ["float64", np.int32, torch.float64, "four", np.dtype("f8")])
def test_refused_dtypes(library: str, dtype: Any) -> None:
    snapshots = [KINDS[library](row) for row in drift(2, (5,))]
    with pytest.raises(InputError, match="dtype: expected float32, float16 or bfloat16, found"):
        combine_tensors(snapshots, np.ones(2), dtype=dtype)


@pytest.mark.parametrize("library", ["numpy f32", "torch f32"])
@pytest.mark.parametrize("name", ["cuda", "triton", "gpu"])
def test_other_backends_are_not_for_this_memory(library: str, name: str) -> None:
    snapshots = [KINDS[library](row) for row in drift(2, (5,))]
    for call in (lambda: gram(snapshots, backend=name), lambda: rank1(snapshots, backend=name)):
        with pytest.raises(InputError, match=f"backend: .*found {name}"):
            call()
    with pytest.raises(InputError, match="backend: "):
        combine_tensors(snapshots, np.ones(2), backend=name)
