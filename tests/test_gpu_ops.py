"""The operators on a GPU: values, streams, torch.compile, CUDA graphs, modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, library, nn

from folders import read_model
from relex_ext import InputError, combine_tensors, extrapolate, extrapolate_module, gram, ops, rank1
from tensors import (
    MIXES,
    NAME,
    check_combine,
    check_gram,
    check_power_step,
    run,
    values,
    vectors_of,
    weights_of,
    words,
)
from test_modules import STEPS, TARGET, Net, save, trained
from test_ops_compile import samples, through_functions, through_operators

pytestmark = pytest.mark.gpu

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
OPS = torch.ops.relex
GPU = torch.device("cuda", 0)

SHAPES = (
    *((t, (n,)) for t in (2, 5) for n in (17, 97, 8191, 8192, 8193, 200_001)),
    *((t, (2049,)) for t in (1, 16, 33, 75, 161, 200)),
    (6, (3, 5, 7, 11)),
    (75, (70_001,)),
    (9, (2_100_003,)),
)
"""(T, shape): around the kernels' parts and tiles; the last is large enough for tuned launches."""


@pytest.fixture(params=["cuda", "triton"])
def kernels(request: pytest.FixtureRequest) -> ops.Kernels:
    """Each kind that this machine has; at least one is a matter of test_auto."""
    try:
        return ops.device_kernels(GPU, request.param)
    except InputError as error:
        pytest.skip(str(error))


def same_bytes(a: Any, b: Any) -> bool:
    flat_a, flat_b = ([x] if isinstance(x, Tensor) else list(x) for x in (a, b))
    pairs = zip(flat_a, flat_b, strict=True)
    return all(bytes_of(x) == bytes_of(y) for x, y in pairs)


def bytes_of(x: Tensor) -> bytes:
    flat = x.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def check_all(
    snapshots: list[Tensor], base: Tensor | None, kernels: ops.Kernels | None = None, k: int = 3
) -> None:
    rows = len(snapshots)
    g = ops.gram(snapshots, base, kernels)
    assert g.device == GPU
    check_gram(g, snapshots, base)
    u, weights = vectors_of(rows, k).to(GPU), weights_of(2, rows).to(GPU)
    check_power_step(*ops.power_step(snapshots, base, u, kernels), snapshots, base, u)
    for dtype in (F32, F16, BF16):
        found = ops.combine(snapshots, base, weights, dtype, kernels)
        assert all(x.device == GPU for x in found)
        check_combine(found, snapshots, weights, base, NAME[dtype])


# ---- values ------------------------------------------------------------------------------------


def test_auto() -> None:
    """Some kernels run on every GPU that the suite runs on."""
    assert ops.device_kernels(GPU).isa in ("cuda", "triton")


@pytest.mark.parametrize(("rows", "shape"), SHAPES)
def test_every_shape(kernels: ops.Kernels, rows: int, shape: tuple[int, ...]) -> None:
    few = int(np.prod(shape)) < 100
    check_all(*run(rows, shape, device=GPU, step=0.02 if few else 1e-4), kernels)


@pytest.mark.parametrize(("base", "rows"), MIXES)
@pytest.mark.parametrize("with_base", [True, False])
def test_every_dtype(
    kernels: ops.Kernels, base: torch.dtype, rows: tuple[torch.dtype, ...], with_base: bool
) -> None:
    snapshots, start = run(7, (66_001,), rows, base, device=GPU)
    check_all(snapshots, start if with_base else None, kernels)


@pytest.mark.parametrize("k", [1, 4, 17, 64])
def test_vectors(kernels: ops.Kernels, k: int) -> None:
    snapshots, base = run(20, (9001,), device=GPU)
    u = vectors_of(20, k)
    found = ops.power_step(snapshots, base, u.to(GPU), kernels)
    check_power_step(*found, snapshots, base, u)
    assert same_bytes(found, ops.power_step(snapshots, base, u, kernels))
    assert same_bytes(found, ops.power_step(snapshots, base, u.to(GPU).double(), kernels))


@pytest.mark.parametrize("targets", [1, 3, 4, 5, 9])
def test_targets(kernels: ops.Kernels, targets: int) -> None:
    snapshots, base = run(6, (20_011,), device=GPU)
    weights = weights_of(targets, 6)
    found = ops.combine(snapshots, base, weights.to(GPU), None, kernels)
    check_combine(found, snapshots, weights, base, "BF16")
    assert same_bytes(found, ops.combine(snapshots, base, weights, None, kernels))
    alone = [ops.combine(snapshots, base, w[None], None, kernels)[0] for w in weights]
    assert same_bytes(found, alone)


def test_views(kernels: ops.Kernels) -> None:
    snapshots, base = run(5, (300, 80), device=GPU)
    check_all([s.t()[3:, ::2] for s in snapshots], base.t()[3:, ::2], kernels)
    for offset in (1, 3, 8):
        views, start = [s.view(-1)[offset:] for s in snapshots], base.view(-1)[offset:]
        check_all(views, start, kernels)
        copies = [v.clone() for v in views]
        a, b = (ops.gram(x, start, kernels) for x in (views, copies))
        assert same_bytes(a, b)


def test_empty_and_zero(kernels: ops.Kernels) -> None:
    empty = [torch.zeros(0, 3, device=GPU)] * 4
    assert ops.gram(empty, None, kernels).tolist() == [[0.0] * 4] * 4
    assert ops.combine(empty, None, weights_of(1, 4), None, kernels)[0].shape == (0, 3)
    base = torch.full((5000,), -0.0, device=GPU, dtype=BF16)
    found = ops.combine([base.clone()] * 2, base, torch.zeros(1, 2), None, kernels)
    assert torch.signbit(found[0]).all()
    assert not ops.gram([base.clone()] * 2, base, kernels).any()


def test_repeated_runs_give_the_same_bytes(kernels: ops.Kernels) -> None:
    snapshots, base = run(20, (1_500_003,), device=GPU)
    u, weights = vectors_of(20, 4).to(GPU), weights_of(2, 20).to(GPU)
    for call in (
        lambda: ops.gram(snapshots, base, kernels),
        lambda: ops.power_step(snapshots, base, u, kernels),
        lambda: ops.combine(snapshots, base, weights, None, kernels),
    ):
        first = call()
        assert all(same_bytes(first, call()) for _ in range(5))


@pytest.mark.parametrize("out", [F32, F16, BF16])
def test_combine_writes_the_bytes_of_the_cpu(kernels: ops.Kernels, out: torch.dtype) -> None:
    snapshots, base = run(12, (50_021,), (F32, F16, BF16), device=GPU)
    weights = weights_of(3, 12)
    found = ops.combine(snapshots, base, weights, out, kernels)
    host = OPS.combine([s.cpu() for s in snapshots], base.cpu(), weights, dtype=out)
    assert same_bytes(found, host)


def test_more_elements_than_32_bits_count(kernels: ops.Kernels) -> None:
    n = 2**31 + 8195
    if torch.cuda.mem_get_info(GPU)[0] < 12 * n:
        pytest.skip(f"needs {12 * n >> 30} GiB of device memory")
    snapshots = [torch.full((n,), v, dtype=BF16, device=GPU) for v in (1.0, 2.0)]
    snapshots[1][-1] = 3.0
    assert ops.gram(snapshots, None, kernels).tolist() == [[n, 2 * n + 1], [2 * n + 1, 4 * n + 5]]
    y, energy = ops.power_step(snapshots, None, torch.tensor([[1.0], [-1.0]]), kernels)
    assert energy.tolist() == [n, 4 * n + 5]
    assert y.flatten().tolist() == [-n - 1, -2 * n - 4]
    made = ops.combine(snapshots, None, torch.tensor([[0.5, 1.0]]), None, kernels)[0]
    assert (made[:-1] == 2.5).all() and made[-1] == 3.5


# ---- rank1 and the public functions ------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "gram", "power"])
@pytest.mark.parametrize("rows", [4, 80])
def test_rank1(kernels: ops.Kernels, solver: str, rows: int) -> None:
    snapshots, base = run(rows, (30_011,), device=GPU)
    found = rank1(snapshots, base, solver=solver, backend=kernels.isa)
    expected = rank1([s.cpu() for s in snapshots], base.cpu(), backend="reference")
    assert found.sigma == pytest.approx(expected.sigma, rel=1e-6)
    assert found.explained_variance == pytest.approx(expected.explained_variance, rel=2e-6)
    assert np.linalg.norm(found.u - expected.u) <= 4e-6
    assert isinstance(found.u, np.ndarray)


@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(kernels: ops.Kernels, solver: str, value: float) -> None:
    snapshots, base = run(5, (30_011,), device=GPU)
    snapshots[3][777] = value
    with pytest.raises(InputError, match=r"snapshots\[3\] or base: .*NaN or Inf"):
        rank1(snapshots, base, solver=solver, backend=kernels.isa)


@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_outside_fp32(kernels: ops.Kernels, solver: str, scale: float) -> None:
    snapshots = [s.float() * scale for s in run(5, (30_011,), (F32,), F32, device=GPU)[0]]
    found = rank1(snapshots, solver=solver, backend=kernels.isa)
    expected = rank1([s.cpu() for s in snapshots], backend="reference")
    assert found.sigma == pytest.approx(expected.sigma, rel=1e-6)


def test_public_functions_name_their_backend(kernels: ops.Kernels) -> None:
    snapshots, base = run(5, (3001,), device=GPU)
    check_gram(gram(snapshots, base, backend=kernels.isa), snapshots, base)
    weights = weights_of(2, 5)
    found = combine_tensors(snapshots, weights.numpy(), base, backend=kernels.isa)
    check_combine(found, snapshots, weights, base, "BF16")
    stacked = torch.stack(snapshots)
    assert same_bytes(gram(stacked, base), gram(snapshots, base))


def test_refusals() -> None:
    on_gpu, on_cpu = torch.ones(4, device=GPU), torch.ones(4)
    with pytest.raises(InputError, match=r"snapshots\[1\]: expected a tensor on cuda:0, found cpu"):
        gram([on_gpu, on_cpu])
    with pytest.raises(InputError, match="base: expected a tensor on cpu, found cuda:0"):
        rank1([on_cpu], on_gpu)
    with pytest.raises(InputError, match=r"snapshots\[1\]: expected a tensor on cuda:0, found cpu"):
        gram([on_gpu, np.ones(4, np.float32)])
    with pytest.raises(InputError, match="weights: expected a tensor on cpu, found cuda:0"):
        combine_tensors([on_cpu], torch.ones(1, 1, device=GPU))
    for backend in ("cpu", "reference"):
        with pytest.raises(InputError, match=f"backend: .*for cuda:0, found {backend}"):
            gram([on_gpu], backend=backend)


# ---- streams -----------------------------------------------------------------------------------


def test_on_the_current_stream(kernels: ops.Kernels) -> None:
    """Inputs that arrive late on a stream are waited for by what is queued there."""
    snapshots, base = run(5, (100_003,), device=GPU)
    u, weights = vectors_of(5, 3).to(GPU), weights_of(2, 5).to(GPU)

    def work(rows: list[Tensor]) -> list[Tensor]:
        return [
            ops.gram(rows, base, kernels),
            *ops.power_step(rows, base, u, kernels),
            *ops.combine(rows, base, weights, None, kernels),
        ]

    expected = work(snapshots)
    late = [torch.zeros_like(s) for s in snapshots]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(GPU)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second
        for to, source in zip(late, snapshots, strict=True):
            to.copy_(source)
        found = work(late)
        for to in late:
            to.zero_()  # comes after the work, which has no business reading this
    assert not stream.query(), "the host must not have waited"
    stream.synchronize()
    assert same_bytes(expected, found)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_the_host_does_not_wait(kernels: ops.Kernels) -> None:
    snapshots, base = run(5, (100_003,), device=GPU)
    u, weights = vectors_of(5, 3).to(GPU), weights_of(2, 5).to(GPU)
    for mode in ("default", "error"):  # Triton compiles the first time
        torch.cuda.set_sync_debug_mode(mode)
        try:
            ops.gram(snapshots, base, kernels)
            ops.power_step(snapshots, base, u, kernels)
            ops.combine(snapshots, base, weights, None, kernels)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_two_streams_at_once(kernels: ops.Kernels) -> None:
    """Each call has a workspace of its own."""
    runs = [run(5 + i, (1_000_003,), device=GPU) for i in range(2)]
    expected = [ops.gram(*r, kernels) for r in runs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(GPU) for _ in runs]
    found: list[list[Tensor]] = [[], []]
    for _ in range(20):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[i].append(ops.gram(*runs[i], kernels))
    torch.cuda.synchronize()
    for i in range(2):
        assert all(same_bytes(expected[i], g) for g in found[i])


def test_another_device_than_the_current_one(kernels: ops.Kernels) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    other = torch.device("cuda", 1)
    snapshots, base = run(5, (10_003,), device=GPU)
    there = [s.to(other) for s in snapshots]
    on_other = ops.device_kernels(other, kernels.isa)
    found = ops.gram(there, base.to(other), on_other)
    assert found.device == other and torch.cuda.current_device() == 0
    assert same_bytes(found, ops.gram(snapshots, base, kernels))


# ---- opcheck, torch.compile, graphs ------------------------------------------------------------


@pytest.mark.parametrize("sample", samples())
def test_opcheck(sample: str) -> None:
    snapshots, base = samples()[sample]
    snapshots = [s.detach().to(GPU).requires_grad_(s.requires_grad) for s in snapshots]
    base = None if base is None else base.to(GPU)
    rows = len(snapshots)
    for args in (
        (OPS.gram.default, (snapshots, base)),
        (OPS.power_step.default, (snapshots, base, vectors_of(rows, 2).to(GPU))),
        (OPS.combine.default, (snapshots, base, weights_of(2, rows).to(GPU))),
        (OPS.combine.default, (snapshots, base, weights_of(2, rows))),
    ):
        assert set(library.opcheck(*args).values()) == {"SUCCESS"}


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's own, inside inductor
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("function", [through_operators, through_functions])
def test_compiled_whole(mode: str, function: Callable[..., Any]) -> None:
    if mode == "reduce-overhead" and ops.device_kernels(GPU).isa == "triton":
        pytest.skip("CUDA graphs need the compiled kernels")
    snapshots, base = run(3, (40, 300), device=GPU)
    weights = weights_of(2, 3).to(GPU)
    expected = function(snapshots, base, weights)
    compiled = torch.compile(function, fullgraph=True, mode=mode)
    for _ in range(4):  # graphs are recorded at the second call and replayed from the third
        found = [x.clone() for x in compiled(snapshots, base, weights)]
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_captured_in_a_graph(kernels: ops.Kernels) -> None:
    snapshots, base = run(20, (100_003,), device=GPU)
    others, origin = run(20, (100_003,), (F32,), F32, device=GPU)
    u, weights = vectors_of(20, 3).to(GPU), weights_of(2, 20).to(GPU)

    def work() -> list[Tensor]:
        return [
            ops.gram(snapshots, base, kernels),
            *ops.power_step(snapshots, base, u, kernels),
            *ops.combine(snapshots, base, weights, None, kernels),
        ]

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    if kernels.isa == "triton":
        with pytest.raises(InputError, match="cannot be captured"), torch.cuda.graph(graph):
            work()
        return
    with torch.cuda.graph(graph):
        held = work()
    for to, source in zip([*snapshots, base], [*others, origin], strict=True):
        to.copy_(source)
    weights.mul_(0.5)
    expected = work()
    for _ in range(2):
        for x in held:
            x.zero_()
        graph.replay()
        assert same_bytes(expected, held)


# ---- modules -----------------------------------------------------------------------------------


def to(device: Any, snapshots: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    return {s: {n: t.to(device) for n, t in found.items()} for s, found in snapshots.items()}


def test_module_on_a_gpu_snapshots_on_the_cpu() -> None:
    module, other = Net(), Net().to(GPU)
    base, snapshots = trained(module)
    extrapolate_module(module, base, snapshots, TARGET)
    before = {n: p.data_ptr() for n, p in other.named_parameters()}
    extrapolate_module(other, base, snapshots, TARGET)
    assert {n: p.data_ptr() for n, p in other.named_parameters()} == before
    for name, tensor in module.state_dict().items():
        assert bytes_of(other.state_dict()[name]) == bytes_of(tensor)


@pytest.mark.parametrize("place", ["cpu", "cuda:0"])
def test_snapshots_on_a_gpu(kernels: ops.Kernels, tmp_path: Path, place: str) -> None:
    """The bytes that the pipeline writes with the same kernels."""
    module = Net()
    base, snapshots = trained(module)
    save(tmp_path, base, snapshots)
    done = extrapolate(
        tmp_path / "base", tmp_path / "run", TARGET, tmp_path / "out",
        progress=False, backend=kernels.isa,
    )  # fmt: skip
    there = to(GPU, {0: base, **snapshots})
    module.to(place)
    extrapolate_module(module, there.pop(0), there, TARGET, backend=kernels.isa)
    for name, raw in read_model(done.folders[TARGET]).items():
        if module.state_dict()[name].is_floating_point():
            assert words(module.state_dict()[name]).tobytes() == raw.data, name
    assert module.scale.device == torch.device(place)


def test_module_against_the_cpu(kernels: ops.Kernels) -> None:
    module, other = nn.Linear(300, 200, dtype=BF16), nn.Linear(300, 200, dtype=BF16).to(GPU)
    base, snapshots = trained(module)
    extrapolate_module(module, base, snapshots, TARGET)
    there = to(GPU, {0: base, **snapshots})
    weights = extrapolate_module(other, there.pop(0), there, TARGET, backend=kernels.isa)
    assert weights.steps == STEPS
    a, b = values(module.weight), values(other.weight)
    assert np.mean(a == b) >= 0.999
    assert not np.array_equal(a, values(base["weight"]))


def test_base_and_snapshots_on_different_devices_are_refused() -> None:
    module = nn.Linear(3, 2)
    base, snapshots = trained(module)
    there = to(GPU, {0: base, **snapshots})
    mixed = {**there, 20: snapshots[20]}
    with pytest.raises(
        InputError, match="step 20: tensor weight: device: expected cuda:0, found cpu"
    ):
        extrapolate_module(module, mixed.pop(0), mixed, TARGET)
