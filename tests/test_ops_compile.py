"""What torch asks of an operator: opcheck, torch.compile, export, fake tensors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import library

from relex_ext import combine_tensors, gram
from tensors import (
    BF16,
    F16,
    F32,
    OPS,
    Tensors,
    check_gram,
    run,
    vectors_of,
    weights_of,
)


def samples() -> dict[str, tuple[Tensors, torch.Tensor | None]]:
    mixed, base = run(3, (5, 7), (F32, F16, BF16), BF16)
    wide, origin = run(6, (40, 30))
    parameters = [torch.nn.Parameter(s) for s in run(2, (9,), (F32,), F32)[0]]
    return {
        "mixed": (mixed, base),
        "no base": (mixed, None),
        "views": ([s.t()[1:, ::2] for s in wide], origin.t()[1:, ::2]),
        "one": (mixed[:1], base),
        "the same twice": ([mixed[0], mixed[0]], mixed[0]),
        "parameters": (list(parameters), None),
        "empty": ([torch.zeros(0, 3)] * 2, None),
        "scalar": ([torch.tensor(1.5), torch.tensor(2.0)], torch.tensor(1.0)),
    }


@pytest.mark.parametrize("sample", samples())
def test_opcheck(sample: str) -> None:
    snapshots, base = samples()[sample]
    rows = len(snapshots)
    for args, kwargs in (
        ((OPS.gram.default, (snapshots, base)), {}),
        ((OPS.power_step.default, (snapshots, base, vectors_of(rows, 2))), {}),
        ((OPS.combine.default, (snapshots, base, weights_of(2, rows))), {}),
        ((OPS.combine.default, (snapshots, base, weights_of(1, rows))), {"dtype": BF16}),
    ):
        found = library.opcheck(*args, kwargs)
        assert set(found.values()) == {"SUCCESS"}
        assert len(found) >= 4


def through_operators(snapshots: Tensors, base: torch.Tensor, weights: torch.Tensor) -> Any:
    g = OPS.gram(snapshots, base) * 2
    y, energy = OPS.power_step(snapshots, base, weights.t())
    made = OPS.combine(snapshots, base, weights, dtype=torch.float32)
    return g, y + 1, energy, made[0] - base, made[1]


def through_functions(snapshots: Tensors, base: torch.Tensor, weights: torch.Tensor) -> Any:
    g = gram(snapshots, base) * 2
    made = combine_tensors(snapshots, weights, base, dtype=torch.float32)
    alone = combine_tensors(snapshots, [0.5] * len(snapshots), base)
    return g, made[0] - base, made[1], alone, gram(torch.stack(snapshots))


@pytest.fixture
def compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, inside inductor
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("function", [through_operators, through_functions])
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_whole(backend: str, function: Callable[..., Any], dynamic: bool | None) -> None:
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    for shape in ((40, 3), (50, 4)):
        snapshots, base = run(3, shape)
        snapshots[1] = torch.nn.Parameter(snapshots[1])
        weights = weights_of(2, 3)
        for expected, found in zip(
            function(snapshots, base, weights), compiled(snapshots, base, weights), strict=True
        ):
            assert torch.equal(expected, found)
            assert not found.requires_grad


@pytest.mark.usefixtures("compiler")
def test_compiled_refusals() -> None:
    compiled = torch.compile(lambda x: OPS.gram([x, x[1:]], None), backend="eager")
    with pytest.raises(Exception, match=r"snapshots\[1\]: expected shape"):
        compiled(torch.ones(4))


def test_exported() -> None:
    class Module(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return OPS.gram([a, b], None)

    a, b = (torch.from_numpy(np.random.default_rng(i).normal(size=50)).float() for i in (1, 2))
    program = torch.export.export(Module(), (a, b))
    check_gram(program.module()(a, b), [a, b], None)


SCRIPT = """
import torch
import relex_ext
assert "relex_ext.ops" not in __import__("sys").modules
x, y = torch.arange(6.0), torch.ones(6)
compiled = torch.compile(lambda x, y: relex_ext.gram([x, y]), backend="eager", fullgraph=True)
assert compiled(x, y).tolist() == [[55.0, 15.0], [15.0, 6.0]]
"""


def test_first_use_inside_a_compiled_function() -> None:
    """Registration then happens while torch.compile traces."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=300)


def test_plain_numpy_needs_no_torch() -> None:
    script = (
        "import sys, numpy, relex_ext;"
        "assert 'numpy' in sys.modules and 'torch' not in sys.modules;"
        "x = numpy.ones((2, 4), numpy.float32);"
        "assert relex_ext.gram(x).tolist() == [[4.0, 4.0]] * 2;"
        "assert relex_ext.combine_tensors(x, [1, 1]).tolist() == [2.0] * 4;"
        "assert relex_ext.rank1(x).sigma > 2.8;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)
