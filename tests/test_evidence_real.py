"""The evidence in the training run shipped with the example."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from relex_ext import Scan, scan
from relex_ext.evidence import Evidence, gather
from relex_ext.evidence.nulls import Memory, memory_of, updates_of

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "tiny_grpo"

pytestmark = pytest.mark.skipif(
    not (EXAMPLE / "trajectory.relexrun").is_file(), reason="the example's run is not here"
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    spec = importlib.util.spec_from_file_location("tiny_grpo_pack", EXAMPLE / "pack.py")
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    folder = Path(pack.unpack(tmp_path_factory.mktemp("evidence") / "run"))
    return scan(folder / "base", folder, until=50, progress=False)


@pytest.fixture(scope="module")
def evidence(real: Scan) -> Evidence:
    return gather(real)


def test_pinned_numbers(evidence: Evidence) -> None:
    """Rounded to bfloat16 every step: as docs/evidence.md says of such runs, near a walk's."""
    whole = evidence.whole
    assert (whole.tensors, whole.elements) == (31, 333_984)
    first = whole.explained_variance[0]
    assert (first.value, first.null) == pytest.approx((0.7618, 0.7048), abs=5e-4)
    assert (whole.r2.value, whole.r2.null) == pytest.approx((0.9501, 0.9180), abs=5e-4)
    assert whole.r2_outside == pytest.approx(0.052, abs=5e-3)
    assert whole.straightness.value == pytest.approx(1.149, abs=5e-3)
    assert whole.straightness.p == first.p == whole.r2.p == 0.001
    assert abs(evidence.persistence[1].value) < 5e-4
    assert evidence.persistence[32].value == pytest.approx(0.0102, abs=5e-4)


def test_findings(evidence: Evidence) -> None:
    assert len(evidence.frozen) == 7
    assert evidence.duplicates == evidence.jumps == evidence.gaps == ()
    assert [p.name for p in evidence.layers] == ["layer 0", "layer 1", "layer 2"]
    assert {"embed_tokens", "q_proj", "q_proj.bias", "down_proj"} <= {
        p.name for p in evidence.modules
    }


def test_memory(real: Scan) -> None:
    total = sum(np.asarray(gram) for gram in real.grams.values())
    assert memory_of(updates_of(total)) == Memory(0.0, 1), "rounding hides what Adam remembers"
