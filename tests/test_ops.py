"""torch.ops.relex.*: values on the CPU, and what is refused."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from relex_ext import InputError, combine_tensors, gram, rank1
from tables import SIZES
from tensors import (
    BF16,
    F16,
    F32,
    MIXES,
    NAME,
    OPS,
    Tensors,
    calls,
    check_combine,
    check_gram,
    check_power_step,
    run,
    same_bytes,
    vectors_of,
    weights_of,
    words,
)


def check_all(snapshots: Tensors, base: torch.Tensor | None, k: int = 3) -> None:
    """All three against float64; combine in each dtype."""
    rows = len(snapshots)
    check_gram(OPS.gram(snapshots, base), snapshots, base)
    u = vectors_of(rows, k)
    check_power_step(*OPS.power_step(snapshots, base, u), snapshots, base, u)
    weights = weights_of(2, rows)
    for dtype in (F32, F16, BF16):
        found = OPS.combine(snapshots, base, weights, dtype=dtype)
        check_combine(found, snapshots, weights, base, NAME[dtype])
    last = OPS.combine(snapshots, base, weights)
    assert [x.dtype for x in last] == [snapshots[-1].dtype] * 2


# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "rows"), MIXES)
@pytest.mark.parametrize("shape", [(53, 40), (3, 5, 7, 11), (66001,), (20,)])
@pytest.mark.parametrize("with_base", [True, False])
def test_every_dtype(
    base: torch.dtype, rows: tuple[torch.dtype, ...], shape: tuple[int, ...], with_base: bool
) -> None:
    snapshots, start = run(5, shape, rows, base)
    check_all(snapshots, start if with_base else None)


@pytest.mark.parametrize("columns", SIZES)
def test_every_size(columns: int) -> None:
    few = columns < 100  # then let every row move, though rounded
    check_all(*run(4, (columns,), step=0.02 if few else 1e-4))


@pytest.mark.parametrize("rows", [1, 2, 17, 75])
def test_every_number_of_rows(rows: int) -> None:
    check_all(*run(rows, (3001,)))


@pytest.mark.parametrize("k", [1, 4, 64])
def test_vectors(k: int) -> None:
    snapshots, base = run(6, (3001,))
    u = vectors_of(6, k)
    found = OPS.power_step(snapshots, base, u)
    check_power_step(*found, snapshots, base, u)
    assert same_bytes(found, OPS.power_step(snapshots, base, u.double()))
    assert same_bytes(found, OPS.power_step(snapshots, base, u.t().contiguous().t()))


def test_not_contiguous() -> None:
    snapshots, base = run(5, (60, 80))
    views = [s.t()[3:, ::2] for s in snapshots]
    check_all(views, base.t()[3:, ::2])
    check_all(views, base.t()[3:, ::2].contiguous())
    assert all(x.is_contiguous() for x in OPS.combine(views, None, weights_of(2, 5)))
    one = base[:1].expand(60, 80)
    moved = [s + 0.5 for s in snapshots]
    check_gram(OPS.gram(moved, one), moved, one)


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_unaligned_views(offset: int, dtype: torch.dtype) -> None:
    snapshots, base = run(5, (3007,), (dtype,), dtype)
    views = [s[offset:] for s in snapshots]
    assert all(v.storage_offset() == offset for v in views)
    check_all(views, base[offset:])
    copies = [v.clone() for v in views]
    for view, copy in zip(
        calls(views, base[offset:]).values(), calls(copies, base[offset:].clone()).values(),
        strict=True,
    ):  # fmt: skip
        assert same_bytes(view(), copy())


def test_repeated_calls_and_threads_give_the_same_bytes() -> None:
    snapshots, base = run(7, (200_003,))
    before = torch.get_num_threads()
    try:
        for call in calls(snapshots, base).values():
            found = []
            for threads in (1, 2, 7, 7):
                torch.set_num_threads(threads)
                found.append(call())
            assert all(same_bytes(found[0], x) for x in found[1:])
    finally:
        torch.set_num_threads(before)


def test_the_same_bytes_as_arrays_and_as_the_public_functions() -> None:
    snapshots, base = run(5, (70_001,), (F32,), F32)
    arrays, origin = [s.numpy() for s in snapshots], base.numpy()
    weights = weights_of(2, 5)
    assert np.array_equal(OPS.gram(snapshots, base).numpy(), gram(arrays, origin))
    assert same_bytes(OPS.gram(snapshots, base), gram(snapshots, base))
    made = [words(x).tobytes() for x in OPS.combine(snapshots, base, weights)]
    for x in (arrays, origin), (snapshots, base):
        assert [words(y).tobytes() for y in combine_tensors(x[0], weights, x[1])] == made


def test_empty_tensors() -> None:
    snapshots = [torch.zeros(0, 3, dtype=BF16)] * 4
    assert OPS.gram(snapshots, None).tolist() == [[0.0] * 4] * 4
    y, energy = OPS.power_step(snapshots, snapshots[0], vectors_of(4, 2))
    assert y.tolist() == [[0.0] * 2] * 4 and energy.tolist() == [0.0] * 4
    assert [tuple(x.shape) for x in OPS.combine(snapshots, None, weights_of(3, 4))] == [(0, 3)] * 3


def test_no_targets() -> None:
    snapshots, base = run(3, (50,))
    assert OPS.combine(snapshots, base, torch.zeros(0, 3, dtype=torch.float64)) == []


def test_weights_of_any_float_and_layout() -> None:
    snapshots, base = run(4, (501,))
    weights = weights_of(3, 4).float()
    expected = OPS.combine(snapshots, base, weights.double())
    assert same_bytes(expected, OPS.combine(snapshots, base, weights))
    assert same_bytes(expected, OPS.combine(snapshots, base, weights.t().contiguous().t()))


def test_inputs_are_left_alone() -> None:
    snapshots, base = run(4, (501,))
    before = [x.clone() for x in (*snapshots, base)]
    for call in calls(snapshots, base).values():
        call()
    assert same_bytes(before, [*snapshots, base])


def test_results_hold_no_inputs() -> None:
    """What is copied to be contiguous is freed with the call."""
    snapshots, base = run(4, (64, 64))
    views = [s.t() for s in snapshots]
    out = [call() for call in calls(views, base.t()).values()]
    gc.collect()
    held = {x.data_ptr() for x in (*snapshots, base)}
    flat = [x for result in out for x in ([result] if isinstance(result, torch.Tensor) else result)]
    assert not held & {x.data_ptr() for x in flat}


# ---- not differentiable ------------------------------------------------------------------------


def test_results_do_not_require_grad() -> None:
    snapshots, base = run(3, (40, 2), (F32,), F32)
    parameters = [torch.nn.Parameter(s) for s in snapshots]
    views = [p.t() for p in parameters]  # carries a graph
    u, weights = vectors_of(3, 2).requires_grad_(), weights_of(1, 3).requires_grad_()
    found = [
        OPS.gram(views, base.t()),
        *OPS.power_step(views, base.t(), u),
        *OPS.combine(views, base.t(), weights),
        gram(views, base.t()),
        combine_tensors(views, weights, base.t())[0],
    ]
    assert not any(x.requires_grad or x.grad_fn is not None for x in found)
    check_gram(found[0], parameters, base)
    assert rank1(views, base.t()).sigma > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(mode: Any) -> None:
    snapshots, base = run(4, (501,))
    with mode():
        check_all(snapshots, base)


def test_under_autocast() -> None:
    snapshots, base = run(4, (501,), (F32,), F32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_all(snapshots, base)


# ---- refusals, with and without data -----------------------------------------------------------

X = torch.ones(4)
REFUSED: list[tuple[str, tuple[Any, ...], str]] = [
    ("gram", ([], None), "snapshots: expected at least 1, found none"),
    ("gram", ([X, torch.ones(5)], None), r"snapshots\[1\]: expected shape \(4,\), found \(5,\)"),
    ("gram", ([X, torch.ones(2, 2)], None), r"snapshots\[1\]: expected shape"),
    ("gram", ([X], torch.ones(3)), r"base: expected shape \(4,\), found \(3,\)"),
    ("gram", ([X, X.double()], None), r"snapshots\[1\]: expected float32, .*float64"),
    ("gram", ([X.long()], None), r"snapshots\[0\]: .*int64"),
    ("gram", ([X], X.int()), r"base: .*int32"),
    ("gram", ([X] * 4097, None), "snapshots: expected at most 4096, found 4097"),
    ("power_step", ([X], X.double(), torch.ones(1, 1)), "base: "),
    ("power_step", ([X], None, torch.ones(2, 1)), r"u: expected shape \(1, 1 to 64\)"),
    ("power_step", ([X], None, torch.ones(1, 65)), r"u: .*found \(1, 65\)"),
    ("power_step", ([X], None, torch.ones(1, 0)), r"u: .*found \(1, 0\)"),
    ("power_step", ([X], None, torch.ones(1)), r"u: expected 2 axes, found shape \(1,\)"),
    ("power_step", ([X], None, torch.ones(1, 1).int()), "u: expected floating-point"),
    ("combine", ([X], torch.ones(3), torch.ones(1, 1)), "base: "),
    ("combine", ([X], None, torch.ones(1, 2)), r"weights: expected shape \(targets, 1\)"),
    ("combine", ([X], None, torch.ones(1)), "weights: expected 2 axes"),
    ("combine", ([X], None, torch.ones(1, 1).long()), "weights: expected floating-point"),
    ("combine", ([X], None, torch.ones(1, 1), torch.float64), "dtype: .*found torch.float64"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_refusals(name: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        getattr(OPS, name)(*arguments)


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_fake_tensors_are_refused_alike(
    name: str, arguments: tuple[Any, ...], message: str
) -> None:
    with FakeTensorMode() as mode:
        fake = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments)
        with pytest.raises(InputError, match=message):
            getattr(OPS, name)(*fake)


def test_refused_devices_and_layouts() -> None:
    meta = torch.ones(4, device="meta")
    with pytest.raises(InputError, match=r"snapshots\[1\]: expected a tensor on cpu, found meta"):
        OPS.gram([X, meta], None)
    with pytest.raises(InputError, match="base: expected a tensor on meta, found cpu"):
        OPS.gram([meta], X)
    with pytest.raises(InputError, match="u: expected a tensor on cpu, found meta"):
        OPS.power_step([X], None, torch.ones(1, 1, device="meta"))
    with pytest.raises(InputError, match=r"snapshots\[0\]: expected a dense tensor"):
        gram([X.to_sparse()])


def test_meta_tensors_give_shapes() -> None:
    snapshots = [torch.ones(6, 7, dtype=BF16, device="meta")] * 3
    g = OPS.gram(snapshots, snapshots[0])
    assert (g.shape, g.dtype, g.device.type) == ((3, 3), torch.float64, "meta")
    y, energy = OPS.power_step(snapshots, None, torch.ones(3, 2, device="meta"))
    assert (y.shape, energy.shape) == ((3, 2), (3,))
    made = OPS.combine(snapshots, None, weights_of(2, 3))
    assert [(x.shape, x.dtype) for x in made] == [((6, 7), BF16)] * 2
    assert combine_tensors(snapshots, [1.0, 0.0, 2.0], dtype="f32").dtype == F32
