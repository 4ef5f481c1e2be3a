"""gather() on little: few checkpoints, nothing that moves, odd paths, older files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import walks
from folders import MODEL, make_run
from relex_ext import InputError, Scan, scan
from relex_ext.evidence import gather
from relex_ext.forecasts import Spectrum
from relex_ext.layout import lay_out
from relex_ext.scans import FORMAT
from walks import finite


def test_two_checkpoints() -> None:
    m = np.array([[1.0, 0.0], [3.0, 1.0]])
    found = gather(walks.scan_of({"w": m}, (10, 20)), draws=99)
    assert finite(found)
    assert len(found.whole.explained_variance) == 2
    assert found.whole.r2.value == pytest.approx(1.0)
    assert found.whole.r2_outside is None
    assert found.whole.straightness.value == pytest.approx(10 / 6)
    assert found.whole.straightness.p is not None and found.whole.straightness.p > 0.3
    assert found.persistence.keys() == {1}
    assert found.layers == () and [p.name for p in found.modules] == ["w"]


@pytest.mark.parametrize("count", [2, 3, 9])
def test_nothing_moves(count: int) -> None:
    found = gather(walks.scan_of({"a": np.zeros((count, 3)), "b": np.zeros((count, 1))}), draws=9)
    assert finite(found)
    assert found.frozen == ("a", "b") and found.tensors == found.modules == found.layers == ()
    assert (found.whole.energy, found.whole.tensors, found.whole.straightness.p) == (0.0, 0, 1.0)
    assert all(one.value == 0.0 and one.p == 1.0 for one in found.persistence.values())
    assert len(found.duplicates) == count and found.jumps == ()


ODD = {
    "a line": np.outer(np.arange(1, 11), np.ones(5)),
    "one number": np.arange(1.0, 11.0)[:, None],
    "moves once": np.outer(np.arange(10) >= 6, np.ones(5)).astype(float),
    "moves at first": np.ones((10, 5)),
    "comes back": np.outer(np.sin(np.pi * np.arange(1, 11) / 10), np.ones(5)),
    "moves at the end": np.outer(np.arange(10) == 9, np.ones(5)).astype(float),
    "to and fro": np.outer((-1.0) ** np.arange(10), np.ones(5)),
    "pairs": np.repeat(np.random.default_rng(0).normal(size=(5, 9)), 2, axis=0),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_trajectories_give_finite_numbers(kind: str) -> None:
    found = gather(walks.scan_of({"w": ODD[kind]}), draws=29)
    assert finite(found)
    for one in (*found.whole.explained_variance, found.whole.r2):
        assert 0.0 <= one.value <= 1.0 and 0.0 <= one.null <= 1.0
        assert one.p is not None and 1 / 30 <= one.p <= 1.0
    joint = gather(walks.scan_of({"v": ODD["a line"], "w": ODD[kind]}), draws=29)
    assert finite(joint)
    pairs = {(2 * k + 1, 2 * k + 2) for k in range(5)}
    if kind == "pairs":
        assert set(found.duplicates) == pairs
    assert joint.duplicates == ()


def test_a_straight_line() -> None:
    found = gather(walks.scan_of({"w": ODD["a line"]}), draws=99).whole
    assert found.straightness.value == pytest.approx(10.0)
    assert found.explained_variance[0].value == found.r2.value == pytest.approx(1.0)
    assert found.r2_outside == pytest.approx(1.0)


# ---- scans -------------------------------------------------------------------------------------


def test_power_iteration_is_refused() -> None:
    spectrum = Spectrum(np.ones((2, 1)), np.ones(1), 1.0)
    with pytest.raises(InputError, match=r"tensor v: .*needs a scan with solver gram"):
        gather(Scan((1, 2), {"w": np.eye(2)}, {"v": spectrum}, {}))


def test_several_stacks_keep_their_names() -> None:
    m = np.random.default_rng(1).normal(size=(4, 8))
    names = ["visual.blocks.0.a", "model.layers.0.a", "model.layers.10.a", "model.layers.2.a"]
    found = gather(walks.scan_of(dict.fromkeys(names, m)), draws=9)
    assert [p.name for p in found.layers] == [
        "visual.blocks.0", "model.layers.0", "model.layers.2", "model.layers.10"
    ]  # fmt: skip


def test_elements_are_in_scans_and_their_files(tmp_path: Path) -> None:
    run = make_run(tmp_path, [10, 20, 30])
    expected = {n: math.prod(s.shape) for n, s in MODEL.items() if s.kind != "integer"}
    here = scan(run.base, run.checkpoints, progress=False)
    kept = scan(run.base, run.checkpoints, out=tmp_path / "a.safetensors", progress=False)
    here.save(tmp_path / "b.safetensors")
    again = Scan.load(tmp_path / "b.safetensors")
    assert here.elements == kept.elements == again.elements == expected
    assert gather(here, draws=9) == gather(again, draws=9)


def test_older_files_do_not_say_how_many_elements(tmp_path: Path) -> None:
    described = {"steps": [1, 2], "identities": {}, "version": "0.1.0"}
    metadata = {"format": FORMAT, "scan": json.dumps(described)}
    header = lay_out([("gram/w", "F64", (2, 2), 32)], metadata).header
    (tmp_path / "old.safetensors").write_bytes(header + np.array([[1.0, 1], [1, 2]]).tobytes())
    old = Scan.load(tmp_path / "old.safetensors")
    assert old.elements == {}
    found = gather(old, draws=9)
    assert found.whole.elements is None and found.tensors[0].elements is None
