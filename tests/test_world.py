"""Processes that talk to each other: the bytes of one, failures told once, deaths survived."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import children
from folders import digest, listing, published, read_model
from relex_ext import scan
from relex_ext.inputs import open_inputs
from relex_ext.plan import TensorPlan, make_plan
from relex_ext.workspace import workspace_of
from relex_ext.world import World
from relex_ext.world.partition import cut_large, shares_of
from worlds import JOBS, REFUSED, SPAN, STEPS, Ended, Inputs, inputs_in, launch, make_inputs

KILLED = {"first": 0, "other": 1}
"""Whose death → its rank, of two."""

ENTRIES = 3
"""In a journal, before it dies: matrices and tensors."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("world")
    make_inputs(found)
    return found


@pytest.fixture(scope="module")
def inputs(root: Path) -> Inputs:
    return inputs_in(root)


@pytest.fixture(scope="module")
def alone(root: Path, inputs: Inputs) -> Path:
    """What one process makes."""
    out = root / "alone"
    for name in JOBS:
        (out / name).mkdir(parents=True)
        JOBS[name](inputs, out / name, World(SPAN))
    return out


@pytest.fixture(scope="module")
def killed(root: Path) -> dict[str, list[Ended]]:
    """How two processes end of which one is killed."""
    return {
        name: launch(2, root / f"killed {name}", "work_until", rank, ENTRIES, root,
                     root / f"killed {name}", "one pass")
        for name, rank in KILLED.items()
    }  # fmt: skip


def leave(root: Path, name: str, out: Path) -> None:
    """Put what is left of such a run where that of ``out`` would be."""
    shutil.copytree(workspace_of(root / f"killed {name}" / "one pass"), workspace_of(out))


@pytest.fixture(scope="module")
def together(root: Path, killed: Mapping[str, object]) -> dict[int, Path]:
    """What several make, among it what two others have begun; by two that torchrun starts, and by
    four of which the first keeps the store."""
    names = [*JOBS, *REFUSED, *(f"one pass@{name}" for name in KILLED)]
    found = {size: root / f"{size} together" for size in (2, 4)}
    for size, out in found.items():
        for name in ("scan", "scan in memory"):
            (out / name).mkdir(parents=True)
        for name in KILLED:
            leave(root, name, out / name)
        if size == 4:
            for one in launch(size, out / "said", "work", root, out, *names):
                assert one.status == 0, one.err
            continue
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        worker = Path(__file__).with_name("worlds.py")
        subprocess.run(
            [*torchrun, "--nproc-per-node", str(size), str(worker), str(root), str(out), *names],
            check=True, timeout=100, capture_output=True,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", JOBS)
def test_the_bytes_of_one_process(
    alone: Path, together: Mapping[int, Path], name: str, size: int
) -> None:
    assert digest(together[size] / name) == digest(alone / name)


@pytest.mark.parametrize("name", KILLED)
def test_a_death(root: Path, killed: Mapping[str, list[Ended]], name: str) -> None:
    place = root / f"killed {name}"
    for rank, one in enumerate(killed[name]):
        if rank == KILLED[name]:
            assert one.status == -9
        else:
            assert one.status == 1
            assert one.err.splitlines()[-1].startswith("Lost: another process is gone: ")
    assert [p for p in published(place) if "." not in p] == []
    journals = sorted(workspace_of(place / "one pass").glob("journal*"))
    assert len(journals) == 2
    assert journals[KILLED[name]].read_text().count('"what"') == ENTRIES


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", KILLED)
def test_any_number_goes_on(
    root: Path, inputs: Inputs, alone: Path, together: Mapping[int, Path], name: str, size: int
) -> None:
    if size == 1:
        out = root / "goes on" / name
        out.parent.mkdir(exist_ok=True)
        leave(root, name, out)
        before = workspace_of(out).joinpath("journal.1").read_text().count('"written"')
        assert before > 0
        JOBS["one pass"](inputs, out, World(SPAN))
    else:
        out = together[size] / name
    assert digest(out) == digest(alone / "one pass")
    assert not workspace_of(out).exists()


@pytest.mark.parametrize("size", [2, 4])
def test_bad_input(inputs: Inputs, together: Mapping[int, Path], size: int) -> None:
    lines = {
        "not finite": f"{inputs.spoilt.folder(40)}/model-00004-of-00004.safetensors: tensor "
        "model.big: 3 NaN or Inf in step 40; nonfinite carry",
        "missing step": "steps: no checkpoint of step 35; found 10, 20",
    }
    for name, line in lines.items():
        said = [json.loads((together[size] / f"{name}.{r}").read_text()) for r in range(size)]
        assert all(line in one["line"] for one in said)
        assert [one["kind"] == "Told" for one in said] == [False] + [True] * (size - 1)
        assert not (together[size] / name).exists()
        assert not workspace_of(together[size] / name).exists()


def test_the_command_says_it_once(inputs: Inputs, tmp_path: Path) -> None:
    arguments = ["extrapolate", "--base", inputs.spoilt.base, "--checkpoints"]
    arguments += [inputs.spoilt.checkpoints, "--target-step", 300, "--out", tmp_path / "out"]
    ended = launch(2, tmp_path / "said", "relex", *arguments, "--quiet")
    assert [one.status for one in ended] == [2, 2]
    said = "".join(one.out + one.err for one in ended)
    assert said.count("\n") == 1
    assert said.startswith("relex: error: ") and "3 NaN or Inf in step 40" in said
    assert [name for name in listing(tmp_path) if "out" in Path(name).parts[0]] == []


# ---- shares ------------------------------------------------------------------------------------


def plan_of(inputs: Inputs, solver: str = "gram") -> tuple[TensorPlan, ...]:
    trajectory = open_inputs(inputs.run.base, inputs.run.checkpoints)
    options = {"targets": 1, "scanned": False, "solver": solver, "span": SPAN}
    return make_plan(trajectory, **options).tensors


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9, 50])
def test_every_column_has_one_process(inputs: Inputs, size: int) -> None:
    tensors = plan_of(inputs)
    shares = shares_of(cut_large(tensors, size), size)
    assert len(shares) == size
    for item in tensors:
        parts = sorted(
            (one.columns, rank)
            for rank, items in enumerate(shares)
            for one in items
            if one.tensor is item.tensor
        )
        bounds = [0, *(end for (_, end), _ in parts)]
        assert [columns for columns, _ in parts] == list(pairwise(bounds))
        assert bounds[-1] == item.tensor.columns
        assert all(bound % SPAN == 0 for bound in bounds[:-1])
        assert len({rank for _, rank in parts}) == len(parts), "at most one part each"
    loads = [sum(one.nbytes for one in items) for items in shares]
    widest = SPAN * max(item.tensor.nbytes / max(1, item.tensor.columns) for item in tensors)
    assert max(loads) <= 1.5 * sum(loads) / size + widest
    for items in shares:
        whole = [one.part is None for one in items]
        assert whole == sorted(whole), "parts first: others wait for them"


def test_power_iteration_stays_whole(inputs: Inputs) -> None:
    parts = cut_large(plan_of(inputs, "power"), 4)
    assert [one.part for one in parts] == [None] * len(parts)


def test_windows_keep_to_spans(inputs: Inputs) -> None:
    for item in cut_large(plan_of(inputs), 3):
        begin, end = item.columns
        bounds = [begin, *(stop for _, stop in item.windows)]
        assert [start for start, _ in item.windows] == bounds[:-1] and bounds[-1] == end
        assert all(start // SPAN == (stop - 1) // SPAN for start, stop in item.windows)


def test_sums_over_spans(inputs: Inputs) -> None:
    """Against float64; and other windows, other threads, same bits."""
    run = inputs.run
    options = {"world": World(SPAN), "progress": False}
    found = scan(run.base, run.checkpoints, memory_limit="3MiB", threads=1, **options)
    again = scan(run.base, run.checkpoints, memory_limit="1GiB", threads=2, **options)
    base = read_model(run.base)
    steps = [read_model(run.folder(step)) for step in STEPS]
    for name in ("model.big", "model.other"):
        assert base[name].values.size > 4 * SPAN
        deltas = np.stack([step[name].values - base[name].values for step in steps])
        np.testing.assert_allclose(found.grams[name], deltas @ deltas.T, rtol=1e-6)
        assert found.grams[name].tobytes() == again.grams[name].tobytes()


def test_torch_is_not_imported_for_one_process(inputs: Inputs, tmp_path: Path) -> None:
    code = (
        "import sys; from relex_ext.cli import main; assert main(sys.argv[1:]) == 0; "
        "print('torch' in sys.modules)"
    )
    arguments = ["scan", "--base", inputs.run.base, "--checkpoints", inputs.run.checkpoints]
    said = children.printed(code, *arguments, "--out", tmp_path / "scan", "--quiet")
    assert said.splitlines()[-1] == "False"
