"""extrapolate_module: the bytes that the pipeline writes, put into a live module."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import oracle
from compare import Tally, checked_distance
from folders import read_model
from relex_ext import InputError, Weights, extrapolate, extrapolate_module
from tensors import NAME, values, words

STEPS = (10, 20, 35, 40, 70)
TARGET = 120.0
STATE = dict[str, Tensor]


class Net(nn.Module):
    """Ranks 0 to 4, three dtypes, a tied head, buffers of all kinds, an empty parameter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(53, 16)
        self.conv = nn.Conv2d(3, 5, (2, 7), dtype=torch.bfloat16)
        self.norm = nn.BatchNorm1d(16)
        self.half = nn.Linear(16, 33, dtype=torch.float16)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.zeros(0, 7))
        self.frozen = nn.Parameter(torch.full((9,), -0.0), requires_grad=False)
        self.head = nn.Linear(16, 53, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("cache", torch.arange(4.0), persistent=False)

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.norm(self.embed(tokens))) * self.scale


def state(module: nn.Module) -> STATE:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def trained(module: nn.Module, steps: tuple[int, ...] = STEPS) -> tuple[STATE, dict[int, STATE]]:
    """Base and snapshots of a run that drifts; the module is left at its base."""
    base = state(module)
    generator = torch.Generator().manual_seed(1)
    drift = {n: 2e-5 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
    snapshots = {}
    for step in steps:
        snapshots[step] = {}
        for name, tensor in base.items():
            moved = tensor.clone()
            if tensor.is_floating_point() and name != "frozen":
                noise = 2e-5 * torch.randn(tensor.shape, generator=generator)
                moved = (tensor.float() + drift[name] * step + noise).to(tensor.dtype)
            snapshots[step][name] = moved
        if "head.weight" in base:
            snapshots[step]["head.weight"] = snapshots[step]["embed.weight"]
    return base, snapshots


def save(root: Path, base: STATE, snapshots: Mapping[int, STATE], without: str = "head.") -> None:
    """As model folders; safetensors refuses tensors that share memory."""
    for place, tensors in [
        (root / "base", base),
        *((root / "run" / f"step_{s}", t) for s, t in snapshots.items()),
    ]:
        place.mkdir(parents=True)
        kept = {n: t.contiguous() for n, t in tensors.items() if not n.startswith(without)}
        save_file(kept, place / "model.safetensors")


def assert_state(module: nn.Module, folder: Path) -> None:
    """The module's state is what the pipeline wrote."""
    written = read_model(folder)
    found = module.state_dict()
    assert set(written) == {n for n in found if not n.startswith("head.")}
    for name, raw in written.items():
        if found[name].is_floating_point():
            assert NAME[found[name].dtype] == raw.dtype
            assert words(found[name]).tobytes() == raw.data, name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 2},
        {"solver": "power"},
        {"time_axis": "index", "step_scale": 2.0},
        {"method": "pinned", "strength": 0.5},
        {"method": "latest"},
        {"method": "two-point", "window": 1, "backend": "reference"},
        {"fit": "polynomial", "window": 4},
        {"backend": "reference"},
        {"threads": 3},
    ],
)
def test_the_bytes_that_the_pipeline_writes(tmp_path: Path, options: dict[str, Any]) -> None:
    module = Net()
    base, snapshots = trained(module)
    save(tmp_path, base, snapshots)
    done = extrapolate(
        tmp_path / "base", tmp_path / "run", TARGET, tmp_path / "out",
        progress=False, **{"backend": "cpu", **options},
    )  # fmt: skip
    before = state(module)
    weights = extrapolate_module(module, base, snapshots, TARGET, **options)
    assert_state(module, done.folders[TARGET])
    moved = [n for n, t in module.state_dict().items() if not torch.equal(t, before[n])]
    assert len(moved) >= 9, "otherwise this compares copies of the base"
    assert done.weights is not None
    assert (weights.steps, weights.targets) == (STEPS, (TARGET,))
    for name, found in weights.tensors.items():
        assert np.array_equal(found, done.weights.tensors[name])
        assert weights.components[name] == done.weights.components[name]
    assert set(weights.tensors) == set(done.weights.tensors)


def test_many_steps_as_the_pipeline(tmp_path: Path) -> None:
    """Where solver="auto" may take power iteration."""
    module = nn.Linear(64, 40)
    base, snapshots = trained(module, tuple(range(1, 76)))
    save(tmp_path, base, snapshots)
    done = extrapolate(
        tmp_path / "base", tmp_path / "run", TARGET, tmp_path / "out",
        progress=False, backend="cpu",
    )  # fmt: skip
    extrapolate_module(module, base, snapshots, TARGET)
    assert_state(module, done.folders[TARGET])


def test_against_the_oracle() -> None:
    module = Net()
    base, snapshots = trained(module)
    extrapolate_module(module, base, snapshots, TARGET)
    tally = Tally()
    for name, tensor in module.named_parameters():
        if name in ("empty", "frozen"):
            continue
        rows = [values(snapshots[s][name]) for s in STEPS]
        answer = oracle.forecast(values(base[name]), rows, STEPS, [TARGET])
        dtype = NAME[tensor.dtype]
        tally.add(dtype, checked_distance(words(tensor), dtype, values(base[name]), rows, answer))
    tally.check()
    assert torch.signbit(module.frozen).all(), "−0 of a frozen tensor survives"


# ---- in place ----------------------------------------------------------------------------------


def test_parameters_keep_identity_and_storage() -> None:
    module = Net()
    base, snapshots = trained(module)
    before = {n: (p, p.data_ptr(), p._version) for n, p in module.named_parameters()}
    flags = {n: p.requires_grad for n, p in module.named_parameters()}
    extrapolate_module(module, base, snapshots, TARGET)
    assert module.head.weight is module.embed.weight
    for name, parameter in module.named_parameters():
        old, address, version = before[name]
        assert parameter is old and parameter.data_ptr() == address
        assert parameter._version > version, "autograd must see that saved values are stale"
        assert parameter.requires_grad is flags[name]
        assert parameter.is_leaf and parameter.grad is None


def test_the_optimizer_goes_on() -> None:
    module = Net()
    base, snapshots = trained(module)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        module(torch.arange(8)).sum().backward()
        optimizer.step()

    step()
    kept = copy.deepcopy(optimizer.state_dict())
    extrapolate_module(module, base, snapshots, TARGET)
    after = optimizer.state_dict()
    for key, held in kept["state"].items():
        assert all(torch.equal(held[k], after["state"][key][k]) for k in held)
    forecast = module.embed.weight.clone()
    step()
    assert not torch.equal(module.embed.weight, forecast)


def test_a_compiled_module_sees_it() -> None:
    torch._dynamo.reset()
    module = nn.Linear(6, 4)
    base, snapshots = trained(module)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.ones(2, 6)
    before = compiled(x)
    extrapolate_module(module, base, snapshots, 1e4)
    assert torch.equal(compiled(x), module(x))
    assert not torch.equal(compiled(x), before)
    again = {f"_orig_mod.{n}": t for n, t in base.items()}
    rows = {s: {f"_orig_mod.{n}": t for n, t in found.items()} for s, found in snapshots.items()}
    moved = module.weight.clone()
    extrapolate_module(compiled, again, rows, 1e4)
    assert torch.equal(module.weight, moved)


def test_parameters_in_other_layouts_and_dtypes() -> None:
    """Transposed in memory; and rounded once to the parameter's own dtype, whatever the rows'."""
    module = nn.Linear(40, 30, bias=False)
    base, snapshots = trained(module)
    extrapolate_module(module, base, snapshots, TARGET)
    other = nn.Linear(40, 30, bias=False)
    other.weight = nn.Parameter(torch.empty(40, 30).t())
    extrapolate_module(other, base, snapshots, TARGET)
    assert torch.equal(other.weight, module.weight)
    assert other.weight.stride() == (1, 30)
    narrow = nn.Linear(40, 30, bias=False, dtype=torch.bfloat16)
    extrapolate_module(narrow, base, snapshots, TARGET)
    rows = [values(snapshots[s]["weight"]) for s in STEPS]
    answer = oracle.forecast(values(base["weight"]), rows, STEPS, [TARGET])
    distance = checked_distance(words(narrow.weight), "BF16", values(base["weight"]), rows, answer)
    assert np.count_nonzero(distance) <= 1


def test_pairs_of_names_and_any_order_of_steps() -> None:
    module, other = Net(), Net()
    base, snapshots = trained(module)
    extrapolate_module(module, base, snapshots, TARGET)
    pairs = {step: iter(snapshots[step].items()) for step in reversed(STEPS)}
    weights = extrapolate_module(other, iter(base.items()), pairs, TARGET)
    assert weights.steps == STEPS
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_a_base_that_is_the_module_itself() -> None:
    """A state dict refers to the live parameters: read before it is overwritten."""
    module, other = Net(), Net()
    base, snapshots = trained(module)
    extrapolate_module(module, base, snapshots, TARGET)
    extrapolate_module(other, other.state_dict(), snapshots, TARGET)
    assert words(other.embed.weight).tobytes() == words(module.embed.weight).tobytes()


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_tied_weights_under_either_name(name: str) -> None:
    module, other = Net(), Net()
    base, snapshots = trained(module)
    extrapolate_module(module, base, snapshots, TARGET)
    gone = {"embed.weight", "head.weight"} - {name}
    rows = {s: {n: t for n, t in found.items() if n not in gone} for s, found in snapshots.items()}
    weights = extrapolate_module(other, base, rows, TARGET)
    assert torch.equal(other.head.weight, module.head.weight)
    assert name in weights.tensors and not gone & set(weights.tensors)


def test_buffers() -> None:
    """Those of the newest snapshot move if they are floats; the others stay."""
    module = Net()
    base, snapshots = trained(module)
    for found in snapshots.values():
        found["norm.num_batches_tracked"] += 5
    extrapolate_module(module, base, snapshots, TARGET)
    assert not torch.equal(module.norm.running_mean, base["norm.running_mean"])
    assert module.norm.num_batches_tracked == 0
    assert module.cache.tolist() == [0.0, 1.0, 2.0, 3.0]
    other = Net()
    kept = {s: {n: t for n, t in f.items() if "running" not in n} for s, f in snapshots.items()}
    extrapolate_module(other, base, kept, TARGET)
    assert torch.equal(other.norm.running_mean, base["norm.running_mean"])
    assert torch.equal(other.norm.weight, module.norm.weight)


def test_tensors_of_the_snapshots_alone_are_not_looked_at() -> None:
    module, other = Net(), Net()
    base, snapshots = trained(module)
    extrapolate_module(module, base, snapshots, TARGET)
    extra = {s: {**found, "value_head": torch.ones(3)} for s, found in snapshots.items()}
    extrapolate_module(other, base, extra, TARGET)
    assert torch.equal(other.embed.weight, module.embed.weight)


# ---- refusals ----------------------------------------------------------------------------------


def change(step: int, name: str, value: Any) -> Any:
    def edit(base: STATE, snapshots: dict[int, STATE]) -> None:
        tensors = base if step == 0 else snapshots[step]
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value(tensors[name])

    return edit


def spoil(value: float) -> Any:
    def edit(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return edit


def aliased(base: STATE, snapshots: dict[int, STATE]) -> None:
    snapshots[20] = dict(snapshots[70])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(0, "scale", None), "base: tensor scale: missing"),
        (change(70, "scale", None), "step 70: tensor scale: missing"),
        (change(20, "norm.running_var", None), "step 20: tensor norm.running_var: missing"),
        (
            change(20, "half.bias", lambda x: x[1:]),
            r"step 20: tensor half.bias: shape: expected \[33\], found \[32\]",
        ),
        (change(0, "half.bias", Tensor.double), "base: tensor half.bias: dtype: .*float64"),
        (change(35, "half.bias", lambda x: x.to("meta")), "step 35: tensor half.bias: .*on meta"),
        (change(35, "scale", lambda x: 1.0), "step 35: tensor scale: expected a tensor, found"),
        (change(35, "half.weight", Tensor.to_sparse), "half.weight: layout: .*sparse"),
        (change(40, "half.weight", spoil(np.nan)), "tensor half.weight: NaN or Inf in step 40"),
        (change(0, "head.weight", spoil(np.inf)), "tensor embed.weight: NaN or Inf"),
        (aliased, "steps 20 and 70 are the same memory; expected a clone"),
    ],
)
@pytest.mark.parametrize("solver", ["gram", "power"])
def test_refusals_leave_the_module_alone(edit: Any, message: str, solver: str) -> None:
    module = Net()
    base, snapshots = trained(module)
    before = state(module)
    edit(base, snapshots)
    if "head.weight" in base and not torch.equal(base["head.weight"], base["embed.weight"]):
        del base["embed.weight"]
    with pytest.raises(InputError, match=message):
        extrapolate_module(module, base, snapshots, TARGET, solver=solver)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"solver": "svd"}, "solver"),
        ({"backend": "gpu"}, "backend"),
        ({"threads": 0}, "threads"),
        ({"time_axis": "epoch"}, "time_axis"),
        ({"step_scale": np.inf}, "step_scale"),
        ({"method": "svd"}, "method"),
        ({"window": 99}, "window: expected at most"),
        ({"strength": "auto", "solver": "power"}, "solver: expected auto or gram"),
        ({"target_step": np.nan}, "target_step"),
        ({"target_step": [1.0, 2.0]}, "target_step: expected one step, found 2"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    module = nn.Linear(3, 2)
    base, snapshots = trained(module)
    before = state(module)
    with pytest.raises(InputError, match=message):
        extrapolate_module(module, base, snapshots, **{"target_step": TARGET, **options})
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


def test_too_few_or_unnamed_steps() -> None:
    module = nn.Linear(3, 2)
    base, snapshots = trained(module)
    with pytest.raises(InputError, match="snapshots: expected at least 2 steps, found 1"):
        extrapolate_module(module, base, {10: snapshots[10]}, TARGET)
    with pytest.raises(InputError, match=r"snapshots: .*found the key 'step_10'"):
        extrapolate_module(module, base, {"step_10": snapshots[10]}, TARGET)


def test_modules_that_cannot_be_moved() -> None:
    module = nn.Linear(3, 2)
    base, snapshots = trained(module)
    for other, message in (
        (copy.deepcopy(module).to("meta"), "module: tensor weight: expected data"),
        (copy.deepcopy(module).double(), "module: tensor weight: dtype: .*found torch.float64"),
        (nn.ReLU(), "module: expected floating-point parameters, found none"),
    ):
        with pytest.raises(InputError, match=message):
            extrapolate_module(other, base, snapshots, TARGET)


@pytest.fixture
def mesh(tmp_path: Path) -> Any:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_available():
        pytest.skip("torch was built without torch.distributed")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # of torch.distributed's own, on machines with one process
def test_sharded_parameters_are_refused(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    module = nn.Linear(4, 2)
    base, snapshots = trained(module)
    sharded = nn.Linear(4, 2)
    for name, parameter in list(sharded.named_parameters()):
        setattr(sharded, name, nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)])))
    with pytest.raises(InputError, match=r"module: tensor weight: .*found DTensor; gather it"):
        extrapolate_module(sharded, base, snapshots, TARGET)
    spread = {**snapshots, 20: dict(sharded.state_dict())}
    with pytest.raises(InputError, match=r"step 20: tensor weight: .*found DTensor"):
        extrapolate_module(module, base, spread, TARGET)


def test_returns_weights_for_combine() -> None:
    module = nn.Linear(5, 3)
    base, snapshots = trained(module)
    weights = extrapolate_module(module, base, snapshots, 500, rank=2)
    assert isinstance(weights, Weights)
    fits = weights.components["weight"]
    assert len(fits) == 2 and fits[0].sigma > fits[1].sigma > 0
    assert weights.tensors["weight"].shape == (1, len(STEPS))
