"""A run for the tests of the pipeline on devices, and the limits that just suffice for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devices import LazyAccelerator, ProcessorBackend
from folders import MODEL, SHARDS, RunFolder, Spec, digest, make_run
from relex_ext import Extrapolation, InputError, extrapolate
from relex_ext.backends import device
from relex_ext.backends.device import DeviceBackend
from relex_ext.sizes import parse_bytes

BIG = {**MODEL, "model.big": Spec((12, 70_001)), "model.wide": Spec((70_001,), "F32", ("F32",))}
"""Tensors of several segments, so that there is something to cut."""

TRAINED = [n for n, s in BIG.items() if s.kind != "integer"]

TARGETS = (100, 62.5)

Make = Callable[[], DeviceBackend]


def processor() -> DeviceBackend:
    return ProcessorBackend()


def lazy() -> DeviceBackend:
    return ProcessorBackend(LazyAccelerator())


MAKERS: dict[str, Make] = {"processor": processor, "lazy": lazy}


def make_big_run(root: Path) -> RunFolder:
    return make_run(root, model=BIG, shards=(*SHARDS, ("model.big", "model.wide")))


def go(run: RunFolder, out: Path, targets: Any = TARGETS, **options: Any) -> Extrapolation:
    return extrapolate(run.base, run.checkpoints, targets, out, progress=False, **options)


def weights_of(out: Path) -> dict[str, str]:
    """Digests of everything but relex.json and the scan, which name folders and options."""
    return {n: d for n, d in digest(out).items() if n.startswith("step_")}


SMALLEST: dict[str, int] = {}


def least(run: RunFolder, option: str, **options: Any) -> int:
    """The smallest limit that a plan accepts, found by bisection from the one an error names."""
    key = f"{run.base} {option} {options} {device.count_devices('cpu')}"
    if key not in SMALLEST:
        with pytest.raises(InputError, match=f"{option}: expected at least") as caught:
            plan_with(run, option, 1, options)
        found = re.search(r"at least (\S+ \S+) ", str(caught.value))
        assert found is not None
        top = parse_bytes(found[1])
        plan_with(run, option, top, options)
        bottom = int(top * 0.8)
        while top - bottom > 1:
            middle = (top + bottom) // 2
            try:
                plan_with(run, option, middle, options)
                top = middle
            except InputError:
                bottom = middle
        SMALLEST[key] = top
    return SMALLEST[key]


def plan_with(run: RunFolder, option: str, limit: int, options: dict[str, Any]) -> None:
    go(run, Path("never"), dry_run=True, backend="test", **{**options, option: limit})
