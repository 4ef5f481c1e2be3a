"""This machine's rates: the product's own kernels, reading, hashing and headers, a core at a time.

Times are of the processor, not of the clock: on a machine that others use too they say what a core
of one's own would do.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import common
import load as standard
from relex_ext import _core, extrapolate, scan
from relex_ext.backends.contract import Strips
from relex_ext.backends.cpu import CpuBackend
from relex_ext.dtypes import CODES
from relex_ext.evidence import judge
from relex_ext.inputs import open_inputs
from relex_ext.plan import TensorPlan
from relex_ext.power import block_size
from relex_ext.trajectory import Trajectory
from relex_ext.windows import HostMemory, Pass
from simulate.machines import Rates

ROUNDS = 3
COLUMNS = 1 << 18
SMALL = 50
"""Tensors of a single column, for what a tensor costs by itself."""


def calibrate(rows: list[int], work: Path) -> Rates:
    """``rows``: the T to measure at; ``work``: a folder for about 200 MB."""
    with threadpool_limits(1):  # BLAS waits for its threads busily
        return _calibrate(rows, work)


def _calibrate(rows: list[int], work: Path) -> Rates:
    backend = CpuBackend(1)
    made: dict[str, Any] = {name: {} for name in ("gram", "power", "weigh", "verdict")}
    for count in rows:
        made["gram"][count], made["power"][count], made["combine"] = _kernels(backend, count)
        weigh, verdict, made["entry"] = _tensors(count, work)
        made["weigh"][count], made["verdict"][count] = weigh, verdict
    for io, name in (("mmap", "map"), ("pread", "read")):
        made[name], made["strip"] = _loading(io, work)
    code = "import time, relex_ext.pipeline; print(time.process_time())"
    starts = (common.child(common.python("-c", code)).output for _ in range(ROUNDS))
    start = statistics.median(map(float, starts))
    return Rates(backend.isa, hash=_hashing(work), start=start, **made)


def _seconds(task: Callable[[], object]) -> float:
    """Of the processor, the median of some rounds."""
    found = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        task()
        found.append(time.process_time() - begin)
    return statistics.median(found)


def _kernels(backend: CpuBackend, rows: int) -> tuple[float, float, float]:
    stacked, base = common.bf16_run(rows, COLUMNS)
    addresses = stacked.ctypes.data + np.arange(rows, dtype=np.uint64) * stacked.strides[0]
    codes = np.full(rows, CODES["BF16"], np.uint8)
    strips = Strips(addresses, codes, base.ctypes.data, CODES["BF16"], COLUMNS)
    k = block_size(rows, 1)
    u = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
    out = np.empty(COLUMNS, np.uint16)
    places = np.array([out.ctypes.data], np.uint64)
    weights = np.full((1, rows), 1.0 / rows)
    gram = _seconds(lambda: backend.gram(strips, backend.zeros(rows, rows)))
    power = _seconds(lambda: backend.power_step(strips, u, backend.zeros(rows, k), None))
    combine = _seconds(lambda: backend.combine(strips, weights, places, CODES["BF16"]))
    moved = 2 * COLUMNS * (rows + 2)
    operations = rows * (rows + 1) * COLUMNS
    return operations / gram, 4 * rows * k * COLUMNS / power, moved / combine


def _tensors(rows: int, work: Path) -> tuple[float, float, float]:
    """(weigh, verdict, entry): what a tensor costs whose data are nothing."""
    with tempfile.TemporaryDirectory(dir=work) as place:
        root = Path(place)
        rng = np.random.default_rng(0)
        for t in range(rows + 1):
            words = standard.to_bf16(rng.standard_normal((SMALL, 16), np.float32))
            named = {f"w{i:03}": (row, (16,)) for i, row in enumerate(words)}
            standard.write(root / ("base" if t == 0 else f"run/checkpoint-{t}"), named)
        base, run = root / "base", root / "run"
        entry = _seconds(lambda: open_inputs(base, run))
        found = scan(base, run, progress=False)
        verdict = _seconds(lambda: judge(found, 2 * rows))
        begin = time.process_time()
        done = extrapolate(base, run, 2 * rows, root / "out", progress=False)
        whole = time.process_time() - begin - entry - (verdict if done.verdicts else 0.0)
    return whole / SMALL, verdict / SMALL, entry / SMALL / (rows + 1)


def _loading(io: str, work: Path) -> tuple[float, float]:
    """(bytes a second of long strips, seconds for each strip by itself)."""
    with tempfile.TemporaryDirectory(dir=work) as place:
        root = Path(place)
        words = np.zeros(16 << 20, np.uint16)
        for name in ("base", "run/checkpoint-1", "run/checkpoint-2"):
            standard.write(root / name, {"w": (words, words.shape)})
        trajectory = open_inputs(root / "base", root / "run")
        long = _load_seconds(trajectory, io, words.size, 1)
        short = _load_seconds(trajectory, io, 64, 1000)
    strips = 3
    return strips * words.nbytes / long, short / strips


def _load_seconds(trajectory: Trajectory, io: str, columns: int, times: int) -> float:
    """For one window, brought and given back."""
    memory = HostMemory(1 << 30, io)
    item = Pass(TensorPlan(trajectory.tensors[0], columns, False, "gram"))

    def bring() -> None:
        for _ in range(times):
            room = memory.admit(item, columns)
            assert room is not None
            memory.load(item, 0, columns, room).release()

    bring()
    return _seconds(bring) / times


def _hashing(work: Path) -> float:
    data = os.urandom(64 << 20)
    with tempfile.TemporaryFile(dir=work) as file:
        _core.reserve(file.fileno(), len(data))

        def write() -> None:
            hashlib.sha256(data)
            os.pwrite(file.fileno(), data, 0)

        return len(data) / _seconds(write)
