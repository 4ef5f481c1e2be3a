"""The ``relex`` command in a process of its own: exit codes, output, what is left behind."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from folders import (
    MODEL,
    SINGLE,
    RunFolder,
    Spec,
    listing,
    make_run,
    published,
    raw,
    without_cards,
    write_index,
    write_model,
)
from relex_ext import __version__, _core
from relex_ext.cli import build_parser
from relex_ext.workspace import workspace_of

PACKAGE = Path(__import__("relex_ext").__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    paths = [str(PACKAGE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def relex(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relex_ext", *map(str, args)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path, steps=(10, 20, 30))


def inputs(run: RunFolder) -> tuple[object, ...]:
    return ("--base", run.base, "--checkpoints", run.checkpoints)


def extrapolate(run: RunFolder, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return relex("extrapolate", *inputs(run), "--target-step", 100, "--out", out, *more)


# ---- it works ----------------------------------------------------------------------------------


def test_extrapolate(run: RunFolder, tmp_path: Path) -> None:
    from relex_ext import extrapolate as call

    found = extrapolate(run, tmp_path / "out", "--target-step", "62.5", "--threads", 2)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[:2] == [str(tmp_path / "out" / n) for n in ("step_100", "step_62.5")]
    assert "rank 1 explains" in lines[2]
    call(run.base, run.checkpoints, [100, 62.5], tmp_path / "called", progress=False)
    assert without_cards(tmp_path / "out") == without_cards(tmp_path / "called")


def test_quiet_says_nothing(run: RunFolder, tmp_path: Path) -> None:
    found = extrapolate(run, tmp_path / "out", "-q")
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert (tmp_path / "out" / "step_100" / SINGLE).is_file()


def test_json(run: RunFolder, tmp_path: Path) -> None:
    found = extrapolate(run, tmp_path / "out", "--json")
    assert found.stderr == ""
    result = json.loads(found.stdout)
    assert result["targets"] == {"100.0": str(tmp_path / "out" / "step_100")}
    assert result["record"] == json.loads((tmp_path / "out" / "relex.json").read_text())


def test_dry_run(run: RunFolder, tmp_path: Path) -> None:
    before = listing(tmp_path)
    text = extrapolate(run, tmp_path / "out", "--dry-run")
    described = extrapolate(run, tmp_path / "out", "--dry-run", "--json", "--memory-limit", "1GiB")
    assert listing(tmp_path) == before
    assert (text.returncode, described.returncode) == (0, 0)
    for word in ("to read:", "solver:", "peak memory:", "to write:", "output:", "step_100"):
        assert word in text.stdout
    plan = json.loads(described.stdout)
    trained = [n for n, s in MODEL.items() if s.kind != "integer"]
    models = (run.base_tensors, *run.step_tensors.values())
    assert plan["bytes_read"] == sum(len(m[n].data) for m in models for n in trained)
    assert plan["bytes_written"] == sum(len(t.data) for t in run.step_tensors[30].values())
    assert plan["memory_limit"] == 1 << 30
    assert plan["tensors"] == plan["resident"] == sum(plan["solvers"].values()) == len(trained)


def test_scan_then_extrapolate(run: RunFolder, tmp_path: Path) -> None:
    made = relex("scan", *inputs(run), "--out", tmp_path / "a.scan", "--json")
    assert made.returncode == 0, made.stderr
    trained = [n for n, s in MODEL.items() if s.kind != "integer"]
    expected = {"scan": str(tmp_path / "a.scan"), "steps": [10, 20, 30], "tensors": len(trained)}
    assert json.loads(made.stdout) == expected
    again = extrapolate(run, tmp_path / "out", "--scan", tmp_path / "a.scan", "-q")
    assert (again.returncode, again.stderr) == (0, "")
    direct = extrapolate(run, tmp_path / "direct", "--solver", "gram", "-q")
    assert direct.returncode == 0
    step = Path("step_100")
    assert without_cards(tmp_path / "out" / step) == without_cards(tmp_path / "direct" / step)


def test_pairs_until_and_steps(run: RunFolder, tmp_path: Path) -> None:
    pairs = [f"--checkpoints={s}={run.folder(s)}" for s in (20, 10)]
    common = ("--base", run.base, "--target-step", 100, "-q")
    assert relex("extrapolate", *common, *pairs, "--out", tmp_path / "a").returncode == 0
    run_folder = ("--checkpoints", run.checkpoints)
    for name, choice in (("b", ("--until", 20)), ("c", ("--steps", "20,10"))):
        found = relex("extrapolate", *common, *run_folder, *choice, "--out", tmp_path / name)
        assert found.returncode == 0, found.stderr
        assert without_cards(tmp_path / name) == without_cards(tmp_path / "a")


def test_version() -> None:
    found = relex("--version")
    assert (found.returncode, found.stderr) == (0, "")
    said, built = found.stdout.split(" (", 1)
    assert said == f"relex_ext {__version__}"
    python, kernels, cuda, packages = built.removesuffix(")\n").split("; ")
    assert python == f"Python {platform.python_version()}, Linux {platform.machine()}"
    assert kernels == f"kernels {', '.join(_core.isas())}"
    assert cuda.startswith("CUDA kernels sm_" if find_spec("relex_ext._cuda") else "no CUDA")
    assert f"numpy {np.__version__}" in packages.split(", ")


@pytest.mark.parametrize("args", [["--help"], ["extrapolate", "--help"], ["scan", "--help"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from relex_ext.cli import main\n"
        f"try:\n    main({args!r})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print('heavy:', sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert found.stdout.startswith("usage: relex")
    assert found.stdout.endswith("heavy: []\n")


def test_a_run_never_imports_torch(run: RunFolder, tmp_path: Path) -> None:
    code = (
        "import sys, relex_ext\n"
        "assert 'numpy' not in sys.modules and 'torch' not in sys.modules\n"
        f"relex_ext.extrapolate({str(run.base)!r}, {str(run.checkpoints)!r}, 100, "
        f"{str(tmp_path / 'out')!r}, progress=False)\n"
        "relex_ext.rank1\n"
        "print('torch' in sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert found.stdout == "False\n"


# ---- wrong inputs ------------------------------------------------------------------------------

Break = Callable[[RunFolder], object]


def shard(run: RunFolder, step: int = 20) -> Path:
    return run.folder(step) / SINGLE


def change(run: RunFolder, step: int, **tensors: object) -> None:
    write_model(run.folder(step), {**run.step_tensors[step], **tensors})


def drop(run: RunFolder, step: int, name: str) -> None:
    left = {n: t for n, t in run.step_tensors[step].items() if n != name}
    write_model(run.folder(step), left)


def set_nan(run: RunFolder) -> None:
    words = np.full(97, 0x7E00, np.uint16)
    change(run, 20, **{"model.layers.0.norm.bias": raw(words, "F16")})


def only(run: RunFolder, name: str) -> None:
    shard(run).unlink()
    (run.folder(20) / name).write_bytes(b"x")


def empty_run(run: RunFolder) -> None:
    run.checkpoints.rename(run.checkpoints.with_name("away"))
    run.checkpoints.mkdir()


BROKEN: dict[str, tuple[Break, str]] = {
    "no base": (lambda r: r.base.rename(r.base.with_name("gone")), "base"),
    "no run": (lambda r: r.checkpoints.rename(r.base.with_name("gone")), "run"),
    "empty run": (empty_run, "expected step folders"),
    "one step twice": (lambda r: (r.checkpoints / "step_20").mkdir(), "step 20 twice"),
    "truncated": (lambda r: shard(r).write_bytes(shard(r).read_bytes()[:-9]), "checkpoint-20"),
    "empty file": (lambda r: shard(r).write_bytes(b""), "checkpoint-20"),
    "huge header": (lambda r: shard(r).write_bytes(b"\xff" * 64), "checkpoint-20"),
    "lora": (lambda r: only(r, "adapter_model.safetensors"), "LoRA"),
    "pickle": (lambda r: only(r, "pytorch_model.bin"), "pickled"),
    "no weights": (lambda r: only(r, "README.md"), "found neither"),
    "missing shard": (lambda r: write_index(r.folder(20), {"w": "gone.safetensors"}), "gone"),
    "traversal": (lambda r: write_index(r.folder(20), {"w": "../x"}), "plain file name"),
    "bad index": (lambda r: write_index(r.folder(20), [1]), "weight_map"),
    "missing tensor": (lambda r: drop(r, 20, "model.layers.0.mixed"), "mixed: missing"),
    "extra tensor": (lambda r: drop(r, 30, "model.layers.0.mixed"), "mixed: extra"),
    "shape": (
        lambda r: change(r, 20, **{"model.layers.0.norm.bias": raw(np.ones(96, "<u2"), "F16")}),
        "shape: expected [97], found [96]",
    ),
    "dtype": (
        lambda r: change(r, 20, **{"model.layers.0.norm.bias": raw(np.ones(97, "<u8"), "F64")}),
        "found F64",
    ),
    "nan": (set_nan, "NaN or Inf in step 20"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_input_is_one_line(run: RunFolder, tmp_path: Path, case: str) -> None:
    spoil, message = BROKEN[case]
    spoil(run)
    before = listing(tmp_path)
    found = extrapolate(run, tmp_path / "new" / "out", "--json")
    assert found.returncode == 2
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert found.stderr.startswith("relex: error: ")
    assert message in found.stderr
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--until", 10), "at least 2"),
        (("--steps", "10,11"), "no checkpoint of step 11"),
        (("--rank", 0), "rank"),
        (("--target-step", "nan"), "finite"),
        (("--target-step", "100"), "twice"),
        (("--dtype", "int8"), "dtype"),
        (("--memory-limit", "1KiB"), "memory_limit"),
        (("--memory-limit", "some"), "memory_limit"),
        (("--threads", 0), "threads"),
        (("--backend", "gpu"), "backend"),
        (("--step-scale", "inf"), "step_scale"),
        (("--checkpoints", "elsewhere"), "elsewhere: expected a folder of checkpoints"),
        (("--checkpoints", "40=elsewhere"), "a mixture"),
        (("--scan", __file__), "test_cli.py"),
    ],
)
def test_wrong_option_is_one_line(
    run: RunFolder, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    before = listing(tmp_path)
    found = extrapolate(run, tmp_path / "out", "-q", *options)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert message in found.stderr
    assert listing(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "file", "parent is a file", "the run", "unwritable"])
def test_wrong_output_is_one_line(run: RunFolder, tmp_path: Path, kind: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("")
    (tmp_path / "file").write_text("")
    out = {
        "folder": tmp_path / "folder",
        "file": tmp_path / "file",
        "parent is a file": tmp_path / "file" / "out",
        "the run": run.checkpoints,
        "unwritable": Path("/proc/relex/out"),
    }[kind]
    before = listing(tmp_path)
    found = extrapolate(run, out, "-q")
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert str(out) in found.stderr or str(out.parent) in found.stderr
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["train"],
        ["extrapolate"],
        ["extrapolate", "--base", "b", "--checkpoints", "c", "--out", "o"],
        ["scan", "--base", "b", "--checkpoints", "c", "--out", "o", "--steps", "1,x"],
        ["scan", "--base", "b", "--checkpoints", "c", "--out", "o", "--solver", "svd"],
    ],
)
def test_usage_errors(args: list[str]) -> None:
    found = relex(*args)
    assert found.returncode == 2
    command = f"relex {args[0]}" if len(args) > 1 or args == ["extrapolate"] else "relex"
    assert found.stderr.startswith(f"{command}: error: ")
    assert found.stderr.endswith(f"; see {command} --help\n")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--strength", "half"], "argument --strength: expected a number or auto, found 'half'"),
        (["--target-step", "abc"], "argument --target-step: expected a number, found 'abc'"),
        (["--target-step", "a\nb"], r"argument --target-step: expected a number, found 'a\nb'"),
        (["--rank", "1.5"], "argument --rank: expected a whole number, found '1.5'"),
        (["--steps", "1,x"], "argument --steps: expected step numbers like 10,20,30, found '1,x'"),
    ],
)
def test_an_arguments_type_is_said_in_words(
    args: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["extrapolate", *args])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"relex extrapolate: error: {problem}; see relex extrapolate --help\n"
    )


def test_types_still_read_numbers() -> None:
    common = ["search", "--base", "b", "--checkpoints", "c", "--eval", "e", "--out", "o"]
    args = build_parser().parse_args([*common, "--strength", "0.5", "--rank", "2"])
    assert args.strength == [0.5] and args.rank == 2


# ---- Ctrl-C ------------------------------------------------------------------------------------


def start_endless(
    tmp_path: Path, command: str, *options: str, alone: bool = False
) -> tuple[subprocess.Popen[str], Path]:
    """A run over a small tensor, unless it is ``alone``, and one that takes minutes: zeros in a
    sparse file cost no disk, and the scalar kernels are slow."""
    small = {"a": Spec((8,))}
    specs = {**({} if alone else small), "w": Spec((1 << 26,))}
    run = make_run(tmp_path, steps=range(1, 25), model=small)
    for folder in (run.base, *(run.folder(s) for s in run.steps)):
        write_sparse(folder, specs)
    out = tmp_path / "new" / "out"
    target = ("--target-step", "100") if command == "extrapolate" else ()
    process = subprocess.Popen(
        [sys.executable, "-m", "relex_ext", command, *map(str, inputs(run)), *target,
         "--out", str(out), "--memory-limit", "256MiB", "-q", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**environment(), "RELEX_ISA": "scalar"},
    )  # fmt: skip
    return process, workspace_of(out)


def wait_until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened() and time.monotonic() < deadline:
        assert process.poll() is None, "it was to be interrupted at work"
        time.sleep(0.01)
    assert happened()


def end(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """What it says on stderr."""
    begun = time.monotonic()
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert stdout == ""
    assert time.monotonic() - begun < 5
    return stderr


@pytest.mark.parametrize("command", ["extrapolate", "scan"])
def test_interrupt_before_anything_is_done_leaves_nothing(tmp_path: Path, command: str) -> None:
    process, hidden = start_endless(tmp_path, command, alone=True)
    wait_until(process, (hidden / "journal").exists)
    time.sleep(0.3)
    assert end(process, signal.SIGINT) == "relex: interrupted, nothing was written\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "run"]


@pytest.mark.parametrize("command", ["extrapolate", "scan"])
@pytest.mark.parametrize("solver", ["gram", "power"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_is_done(
    tmp_path: Path, command: str, solver: str, number: signal.Signals
) -> None:
    process, hidden = start_endless(tmp_path, command, "--solver", solver)
    journal = hidden / "journal"
    done = "written" if command == "extrapolate" else "scanned"
    wait_until(process, lambda: journal.exists() and done in journal.read_text())
    said = end(process, number)
    out = tmp_path / "new" / "out"
    if number == signal.SIGINT:
        kept = f"{out}: what is done is kept in {hidden}; the same command goes on"
        assert said == f"relex: interrupted; {kept}\n"
    else:
        assert said == ""
    assert published(tmp_path / "new") == []
    assert journal.exists()


def write_sparse(folder: Path, specs: Mapping[str, Spec]) -> None:
    described, at = {}, 0
    for name, spec in specs.items():
        end = at + 2 * int(np.prod(spec.shape))
        described[name] = {
            "dtype": spec.base, "shape": list(spec.shape), "data_offsets": [at, end]
        }  # fmt: skip
        at = end
    header = json.dumps(described).encode()
    with (folder / SINGLE).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
