"""gather(): every number against the deltas themselves, pooling, and inputs with little in them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import walks
from oracle import Float64
from relex_ext import InputError
from relex_ext.evidence import Evidence, gather

STEPS = (3, 10, 12, 40, 41, 60, 90, 91, 120)
NAMES = (
    "model.embed_tokens.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.norm.weight",
)


@pytest.fixture(scope="module")
def deltas() -> dict[str, Float64]:
    rng = np.random.default_rng(0)
    found = {}
    for i, name in enumerate(NAMES):
        d = walks.updates(rng, len(STEPS), 30 + 7 * i, drift=0.5) * (i + 1)
        found[name] = np.cumsum(d, axis=0)
    found["model.norm.weight"] = np.zeros((len(STEPS), 30))
    return found


@pytest.fixture(scope="module")
def evidence(deltas: Mapping[str, Float64]) -> Evidence:
    return gather(walks.scan_of(deltas, STEPS), draws=99)


def test_tensors_against_the_svd(evidence: Evidence, deltas: Mapping[str, Float64]) -> None:
    assert [p.name for p in evidence.tensors] == list(NAMES[:-1])
    assert evidence.frozen == ("model.norm.weight",)
    assert evidence.steps == STEPS
    for portrait in evidence.tensors:
        m = deltas[portrait.name]
        sizes = (np.diff(m, axis=0, prepend=0.0) ** 2).sum(axis=1)
        null = np.tril(np.ones((9, 9))) * np.sqrt(sizes)  # deltas of a walk with these sizes
        assert (portrait.tensors, portrait.elements) == (1, m.shape[1])
        assert portrait.energy == pytest.approx((m**2).sum(), rel=1e-12)
        values = [one.value for one in portrait.explained_variance]
        nulls = [one.null for one in portrait.explained_variance]
        assert np.allclose(values, walks.shares(m), rtol=0, atol=1e-10)
        assert np.allclose(nulls, walks.shares(null), rtol=0, atol=1e-10)
        assert portrait.r2.value == pytest.approx(walks.r2(STEPS, walks.leading(m)), abs=1e-9)
        assert portrait.r2.null == pytest.approx(walks.r2(STEPS, walks.leading(null)), abs=1e-9)
        sse, sst = walks.outside(m, STEPS)
        assert portrait.r2_outside == pytest.approx(1 - sse / sst, rel=1e-7)
        assert portrait.straightness.value == pytest.approx(walks.straightness(m), rel=1e-9)
        assert portrait.straightness.null == 1.0
        assert portrait.straightness.p is not None and 0.01 <= portrait.straightness.p <= 1
        assert portrait.r2.p is None and portrait.explained_variance[0].p is None


def test_pooled_by_energy(evidence: Evidence, deltas: Mapping[str, Float64]) -> None:
    by_name = {p.name: p for p in evidence.tensors}
    groups = {
        "model": NAMES[:-1],
        "q_proj": NAMES[1:3],
        "down_proj": NAMES[3:4],
        "embed_tokens": NAMES[:1],
        "layer 0": NAMES[2:4],
        "layer 1": NAMES[1:2],
    }
    assert [m.name for m in evidence.modules] == ["embed_tokens", "q_proj", "down_proj"]
    assert [p.name for p in evidence.layers] == ["layer 0", "layer 1"]
    for pooled in (evidence.whole, *evidence.modules, *evidence.layers):
        members = [by_name[name] for name in groups[pooled.name]]
        weights = [p.energy for p in members]
        assert pooled.tensors == len(members)
        assert pooled.energy == pytest.approx(sum(weights), rel=1e-12)
        assert pooled.elements == sum(p.elements or 0 for p in members)
        for k in range(5):
            for what in ("value", "null"):
                values = [getattr(p.explained_variance[k], what) for p in members]
                expected = np.average(values, weights=weights)
                assert getattr(pooled.explained_variance[k], what) == pytest.approx(expected)
        for what in ("r2", "straightness"):
            values = [getattr(p, what).value for p in members]
            assert getattr(pooled, what).value == pytest.approx(np.average(values, weights=weights))
        sums = np.sum([walks.outside(deltas[n], STEPS) for n in groups[pooled.name]], axis=0)
        assert pooled.r2_outside == pytest.approx(1 - sums[0] / sums[1], rel=1e-7)


def test_p_of_the_whole_is_that_of_one_vector(deltas: Mapping[str, Float64]) -> None:
    """Tensors side by side or in one: the same p of what is computed from the summed Gram."""
    apart = gather(walks.scan_of(deltas, STEPS), draws=199)
    joined = gather(walks.scan_of({"w": np.hstack(list(deltas.values()))}, STEPS), draws=199)
    assert apart.whole.r2.p == joined.whole.r2.p
    for a, b in zip(apart.whole.explained_variance, joined.whole.explained_variance, strict=True):
        assert a.p == b.p is not None
    assert apart.persistence.keys() == {1, 2, 4, 8}
    for gap, one in apart.persistence.items():
        assert one.value == pytest.approx(joined.persistence[gap].value, rel=1e-9)
        assert (one.null, one.p) == (0.0, joined.persistence[gap].p)


def test_persistence_by_hand(evidence: Evidence, deltas: Mapping[str, Float64]) -> None:
    d = np.diff(np.hstack(list(deltas.values())), axis=0, prepend=0.0)
    for gap, one in evidence.persistence.items():
        scale = math.sqrt((d[:-gap] ** 2).sum() * (d[gap:] ** 2).sum())
        assert one.value == pytest.approx((d[:-gap] * d[gap:]).sum() / scale, rel=1e-9)


def test_steps_choose_rows(deltas: Mapping[str, Float64]) -> None:
    chosen = (90, 3, 12, 41)
    rows = [STEPS.index(step) for step in sorted(chosen)]
    part = walks.scan_of({n: m[rows] for n, m in deltas.items()}, sorted(chosen))
    assert gather(walks.scan_of(deltas, STEPS), steps=chosen, draws=9) == gather(part, draws=9)


def test_stacks_of_any_size(deltas: Mapping[str, Float64], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory bounds how much is worked on at once, not the answer."""
    whole = gather(walks.scan_of(deltas, STEPS), draws=49)
    for place in ("gathering", "nulls"):
        monkeypatch.setattr(f"relex_ext.evidence.{place}.BYTES", 1)
    single = gather(walks.scan_of(deltas, STEPS), draws=49)
    assert single.whole.straightness.value == pytest.approx(whole.whole.straightness.value)
    assert [t.straightness.p for t in single.tensors] == [t.straightness.p for t in whole.tensors]
    assert [e.p for e in single.whole.explained_variance] == [
        e.p for e in whole.whole.explained_variance
    ]


def test_seed_and_draws(deltas: Mapping[str, Float64], evidence: Evidence) -> None:
    source = walks.scan_of(deltas, STEPS)
    assert gather(source, draws=99) == evidence
    assert gather(source, draws=99, seed=1).whole.straightness.value == pytest.approx(
        evidence.whole.straightness.value
    )
    none = gather(source, draws=0)
    assert none.whole.straightness.p is None and none.whole.r2.p is None
    assert none.persistence[1].p is None and none.tensors[0].straightness.p is None
    assert none.whole.r2.value == evidence.whole.r2.value


def test_any_number_of_threads(deltas: Mapping[str, Float64], tmp_path: Path) -> None:
    """Values to rounding, every p exactly."""
    walks.scan_of(deltas, STEPS).save(tmp_path / "scan.safetensors")
    code = (
        "import json, sys; from dataclasses import asdict\n"
        "from relex_ext import Scan; from relex_ext.evidence import gather\n"
        "print(json.dumps(asdict(gather(Scan.load(sys.argv[1]), draws=299))))"
    )
    found = []
    for threads in ("1", "2"):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", code, str(tmp_path / "scan.safetensors")]
        result = subprocess.run(command, env=environment, capture_output=True, check=True)
        found.append(json.loads(result.stdout))

    def same(a: object, b: object) -> bool:
        if isinstance(a, dict) and isinstance(b, dict):
            return a.get("p") == b.get("p") and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list) and isinstance(b, list):
            return all(same(x, y) for x, y in zip(a, b, strict=True))
        return a == pytest.approx(b, rel=1e-9) if isinstance(a, float) else a == b

    assert same(*found)


@pytest.mark.parametrize("scale", [1e-60, 1e-25, 1e60])
def test_scale_changes_nothing(deltas: Mapping[str, Float64], scale: float) -> None:
    small = gather(walks.scan_of({n: m * scale for n, m in deltas.items()}, STEPS), draws=29)
    usual = gather(walks.scan_of(deltas, STEPS), draws=29)
    assert walks.finite(small)
    assert small.whole.r2.value == pytest.approx(usual.whole.r2.value, rel=1e-9)
    assert small.whole.r2_outside == pytest.approx(usual.whole.r2_outside, rel=1e-9)
    assert small.whole.straightness == dataclasses.replace(
        usual.whole.straightness, value=small.whole.straightness.value
    )
    assert small.duplicates == usual.duplicates == ()


@pytest.mark.parametrize(
    ("steps", "message"),
    [([3], "at least 2 steps"), ([3, 3], "each step once"), ([3, 4], "scan lacks step 4; it has ")],
)
def test_bad_steps(deltas: Mapping[str, Float64], steps: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gather(walks.scan_of(deltas, STEPS), steps=steps)
