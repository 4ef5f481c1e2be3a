"""Which backend a run gets, on which devices, and how it says so."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from devices import LazyAccelerator, ProcessorBackend, install
from folders import RunFolder, digest, make_run
from relex_ext import InputError, backends, cli, extrapolate, scan
from relex_ext.backends import Entry, available, device, open_backends
from relex_ext.backends.device import DeviceBackend
from relex_ext.plan import TensorPlan, choose_solver, share


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("choice"), steps=(10, 20, 30))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what there is: how many devices torch counts, why cuda or triton are missing, which
    devices cuda refuses."""

    def set_up(
        counts: dict[str, int], missing: dict[str, str] | None = None, refused: str = ""
    ) -> None:
        def row(name: str, *kinds: str) -> Entry:
            def opened(threads: int | None, where: str) -> DeviceBackend:
                backend = ProcessorBackend()
                backend.name = f"{name} on {where}"
                return backend

            def refuses(where: str) -> str | None:
                return f"{where} is too old" if where == refused and name == "cuda" else None

            return Entry(kinds, lambda: (missing or {}).get(name), refuses, opened)

        monkeypatch.setitem(backends.TABLE, "cuda", row("cuda", "cuda"))
        monkeypatch.setitem(backends.TABLE, "triton", row("triton", "cuda", "xpu"))
        monkeypatch.setattr(device, "count_devices", lambda kind: counts.get(kind, 0))

    return set_up


# ---- by name -----------------------------------------------------------------------------------


def test_the_table() -> None:
    assert list(backends.TABLE) == ["cpu", "cuda", "triton", "reference"]
    assert backends.AUTO == ("cuda", "triton", "cpu")


@pytest.mark.parametrize(
    ("missing", "name", "why"),
    [
        ({}, "cuda", "the first choice where there is a GPU"),
        ({"cuda": "not built"}, "triton", "cuda: not built"),
        ({"cuda": "no GPU", "triton": "no GPU"}, "cpu", "cuda, triton: no GPU"),
        ({"cuda": "not built", "triton": "none"}, "cpu", "cuda: not built; triton: none"),
    ],
)
def test_auto_takes_the_first_that_can_be_had(
    machine: Callable[..., None], missing: dict[str, str], name: str, why: str
) -> None:
    machine({"cuda": 1}, missing)
    choice = open_backends("auto")
    assert (choice.name, choice.reason) == (name, why)
    assert choice.on_devices is (name != "cpu")
    assert str(choice) == f"{choice.backends[0].name}: {why}"


def test_all_devices_or_those_asked_for(machine: Callable[..., None]) -> None:
    machine({"cuda": 3, "xpu": 1}, refused="cuda:1")

    def names(name: str, asked: Any = None) -> list[str]:
        return [backend.name for backend in open_backends(name, None, asked).backends]

    assert names("auto") == names("cuda") == ["cuda on cuda:0", "cuda on cuda:2"]
    assert names("cuda", "cuda:2") == names("auto", "cuda:2") == ["cuda on cuda:2"]
    assert names("cuda", "cuda") == ["cuda on cuda:0"]
    assert names("cuda", "cuda:2, cuda:0") == ["cuda on cuda:2", "cuda on cuda:0"]
    assert names("cuda", ["cuda:2"]) == ["cuda on cuda:2"]
    assert len(names("triton")) == 4
    assert names("auto", "xpu:0") == ["triton on xpu:0"], "cuda has none of these"
    assert names("auto", "cuda:1") == ["triton on cuda:1"], "cuda refuses it"


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("cuda", "cuda:1", "backend cuda: cuda:1 is too old; available here: cpu, cuda, triton"),
        ("cuda", "cuda:3", "backend cuda: there is no cuda:3 for it, only cuda:0, cuda:1, cuda:2"),
        ("cuda", "xpu:0", "backend cuda: there is no xpu:0"),
        ("auto", "cuda:7", "device: cuda:7: cuda: there is no cuda:7.*; triton: there is no"),
        ("cuda", "cuda:0,cuda:0", "device: expected devices, each once"),
        ("cuda", "cuda:0,cuda", "device: expected devices, each once"),
        ("cuda", [], "device: expected devices, each once"),
        ("cuda", "GPU 0", "device: expected names like cuda:0, found 'GPU 0'"),
        ("cuda", "", "device: expected names like cuda:0, found ''"),
        ("cpu", "cuda:0", "device: backend cpu computes on the processor, found cuda:0"),
        ("reference", "cuda:0", "device: backend reference computes on the processor"),
        ("gpu", None, "backend: expected one of auto, cpu, cuda, triton, reference, found gpu"),
    ],
)
def test_what_cannot_be_had(
    machine: Callable[..., None], name: str, asked: Any, message: str
) -> None:
    machine({"cuda": 3, "xpu": 1}, refused="cuda:1")
    with pytest.raises(InputError, match=message):
        open_backends(name, None, asked)


def test_devices_that_are_all_refused(machine: Callable[..., None]) -> None:
    machine({"cuda": 1}, {"triton": "not installed"}, refused="cuda:0")
    assert open_backends("auto").reason == "cuda: cuda:0 is too old; triton: not installed"
    with pytest.raises(
        InputError, match="backend cuda: cuda:0 is too old; available here: cpu, re"
    ):
        open_backends("cuda")


# ---- what there is here ------------------------------------------------------------------------


def test_a_machine_without_gpus_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from relex_ext.backends import available, open_backends\n"
        "available.gpu_may_exist = lambda: False\n"
        "choice = open_backends('auto')\n"
        "assert choice.name == 'cpu' and 'torch' not in sys.modules\n"
        "print(choice.reason)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    built = find_spec("relex_ext._cuda") is not None
    assert ("not built into this installation" in found.stdout) is not built
    assert "no GPU was found" in found.stdout


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_asking_for_a_gpu_that_is_not_there(name: str) -> None:
    message = rf"backend {name}: .*; available here: cpu, reference$"
    with pytest.raises(InputError, match=message) as caught:
        open_backends(name)
    assert re.search("no GPU was found|not built|not installed", str(caught.value))


@pytest.fixture
def cuda_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """relex_ext._cuda as on a machine that has it, and a torch that was built for it."""
    module = ModuleType("relex_ext._cuda")
    module.unavailable = lambda index: None
    monkeypatch.setattr(available, "find_spec", lambda name: object())
    monkeypatch.setattr(available, "import_module", lambda name: module)
    monkeypatch.setattr(available, "gpu_may_exist", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(device, "count_devices", lambda kind: 1 if kind == "cuda" else 0)
    return module


def test_why_cuda_is_missing(cuda_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available.cuda_missing() is None
    assert available.cuda_refuses("cuda:0") is None
    monkeypatch.setattr(device, "count_devices", lambda kind: 0)
    assert "for CUDA 13.0 finds no GPU that it can use" in str(available.cuda_missing())
    cuda_module.unavailable = lambda index: "the driver is too old"
    assert available.cuda_missing() == available.cuda_refuses("cuda:0") == "the driver is too old"

    def broken(name: str) -> ModuleType:
        raise ImportError("libstdc++.so.6: version not found")

    monkeypatch.setattr(available, "import_module", broken)
    assert "cannot be loaded (libstdc++" in str(available.cuda_refuses("cuda:0"))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "for ROCm 7.0 has no memory on NVIDIA's GPUs" in str(available.cuda_missing())
    monkeypatch.setattr(available, "gpu_may_exist", lambda: False)
    assert available.cuda_missing() == "no GPU was found"
    monkeypatch.setattr(available, "find_spec", lambda name: None)
    assert "not built into this installation" in str(available.cuda_missing())


def test_why_triton_is_missing(cuda_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available.triton_missing() is None
    monkeypatch.setattr(device, "count_devices", lambda kind: 0)
    assert "finds no GPU that it can use" in str(available.triton_missing())
    monkeypatch.setattr(available, "find_spec", lambda name: None)
    assert "triton is not installed" in str(available.triton_missing())


def test_gpu_may_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()  # of the fixture that hides it
    monkeypatch.setattr(available, "Path", lambda _: tmp_path)
    assert not available.gpu_may_exist()
    for name in ("nvidia0", "kfd", "dri", "dxg"):
        (tmp_path / name).touch()
        assert available.gpu_may_exist()
        (tmp_path / name).unlink()


# ---- falling back ------------------------------------------------------------------------------


def test_a_gpu_that_is_too_small(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where auto chose it, the processor does the work; where it was asked for, nobody does."""
    install(monkeypatch, lambda: ProcessorBackend(LazyAccelerator(memory=1000)))
    monkeypatch.setattr(backends, "AUTO", ("test", "cpu"))
    caplog.set_level(logging.INFO, "relex_ext")
    inputs = (run.base, run.checkpoints, 100)
    done = extrapolate(*inputs, tmp_path / "a", progress=False)
    assert done.record["options"]["backend"] == "cpu" and done.record["devices"] == []
    assert done.plan.staging is None
    reason = r"cpu \(.*\): test: device_memory: expected at least .*, found 1000 B"
    assert re.match(reason, done.backend)
    assert any(re.search(reason, record.getMessage()) for record in caplog.records)
    extrapolate(*inputs, tmp_path / "b", backend="cpu", progress=False)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert scan(run.base, run.checkpoints, progress=False).grams
    for options in ({"backend": "test"}, {"device": "cpu:0"}, {"device_memory": 1000}):
        with pytest.raises(InputError, match="device_memory: expected at least"):
            extrapolate(*inputs, tmp_path / "c", progress=False, **options)


def test_device_memory_is_for_devices(run: RunFolder, tmp_path: Path) -> None:
    inputs = (run.base, run.checkpoints, 100)
    for backend in ("cpu", "reference"):
        with pytest.raises(
            InputError, match=f"device_memory: backend {backend} computes on the pro"
        ):
            extrapolate(*inputs, tmp_path / "a", backend=backend, device_memory="1GiB")
    extrapolate(*inputs, tmp_path / "a", device_memory="1GiB", progress=False)  # where there is one


# ---- shares and solvers ------------------------------------------------------------------------


def test_shares(run: RunFolder, tmp_path: Path) -> None:
    plan = extrapolate(run.base, run.checkpoints, 1, tmp_path / "x", dry_run=True).plan

    def size(items: list[TensorPlan]) -> int:
        return sum(item.tensor.nbytes for item in items)

    for devices in (1, 2, 3, 50):
        shares = share(plan.tensors, devices)
        assert len(shares) <= devices and all(shares)
        together = [item.tensor.name for items in shares for item in items]
        assert sorted(together) == sorted(p.tensor.name for p in plan.tensors)
        for items in shares:
            places = [plan.tensors.index(item) for item in items]
            assert places == sorted(places), "in the order of the disk"
        largest = max(p.tensor.nbytes for p in plan.tensors)
        assert max(map(size, shares)) <= size(list(plan.tensors)) / devices + largest


def test_solvers_on_a_gpu() -> None:
    """Tensor cores make G as cheap as reading, up to thousands of checkpoints."""
    for isa in ("cuda", "triton"):
        chosen = [choose_solver("auto", isa, rows, 1, stored=False) for rows in (2, 75, 500, 4096)]
        assert chosen == ["gram", "gram", "gram", "power"]
        assert choose_solver("auto", isa, 4096, 1, stored=True) == "gram"


@pytest.mark.parametrize(("isa", "switches"), [("avx512", 759), ("avx512bf16", 511), ("avx2", 455)])
def test_solvers_of_shards(isa: str, switches: int) -> None:
    """Where T² operations take longer than reading the shards four times at a GB/s a core."""
    chosen = [choose_solver("auto", isa, switches + i, 1, stored=True) for i in (-1, 0, 1)]
    assert chosen == ["gram", "gram", "power"]


# ---- the command line --------------------------------------------------------------------------


def relex(run: RunFolder, *args: object) -> int:
    inputs = ("--base", run.base, "--checkpoints", run.checkpoints)
    return cli.main([*map(str, ("extrapolate", *inputs, "--target-step", 100, *args))])


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ProcessorBackend, devices=2)


def test_dry_run(
    run: RunFolder, tmp_path: Path, two: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--backend", "test", "--dry-run", "--device-memory", "1GiB", "--out", tmp_path / "o")
    assert relex(run, *options) == 0
    text = capsys.readouterr().out
    assert re.search(r"backend: +processor .* × 2: as asked", text)
    assert re.search(r"to read: .*in 1\.00 passes \(pread: into pinned memory\)", text)
    assert re.search(r"on device: +.* on cpu:0, cpu:1 \(limit 1\.0 GiB each\)", text) or re.search(
        r"on device: +.* on cpu, cpu \(limit 1\.0 GiB each\)", text
    )
    assert relex(run, *options, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["devices"]) == 2
    assert 0 < plan["device_memory"] <= plan["device_memory_limit"] == 1 << 30
    assert plan["backend"].startswith("processor")
    assert relex(run, "--dry-run", "--out", tmp_path / "o", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["devices"], plan["device_memory"]) == ([], None)
    assert not (tmp_path / "o").exists()


def test_summary(
    run: RunFolder, tmp_path: Path, two: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relex(run, "--backend", "test", "--device", "cpu:1", "--out", tmp_path / "a") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "a" / "step_100")
    assert lines[-2].startswith("backend processor") and lines[-2].endswith(": as asked")
    assert lines[-1].startswith("verdict on step 100: ")
    assert relex(run, "--out", tmp_path / "b") == 0
    assert re.match(r"backend cpu \(.*\): cuda.*: no GPU", capsys.readouterr().out.splitlines()[-2])
    inputs = ("--base", run.base, "--checkpoints", run.checkpoints)
    assert cli.main([*map(str, ("scan", *inputs, "--out", tmp_path / "s"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[-1].startswith("backend cpu (")
    assert not logging.getLogger("relex_ext").handlers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "cuda"), "available here: cpu, reference"),
        (("--backend", "cpu", "--device", "cuda:0"), "computes on the processor"),
        (("--device", "cuda:0"), "device: cuda:0: "),
        (("--backend", "test", "--device-memory", "1KiB"), "device_memory: expected at least"),
        (("--backend", "test", "--io", "mmap"), "io: mmap is for the processor"),
        (("--backend", "test", "--io", "gds"), "io: gds: "),
    ],
)
def test_wrong_options_are_one_line(
    run: RunFolder,
    tmp_path: Path,
    two: None,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert relex(run, *options, "--out", tmp_path / "new" / "out") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("relex: error: ") and message in captured.err
    assert not (tmp_path / "new").exists()
