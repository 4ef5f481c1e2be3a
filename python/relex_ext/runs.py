"""A plan's tensors shared out over runs: one for the processor, or one for each device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from relex_ext.adapters.planning import AdapterPlan
from relex_ext.adapters.run import AdapterRun
from relex_ext.backends import Backend, Choice
from relex_ext.engine import Rows, Run, Stopped, Tick
from relex_ext.files import AS_ASKED, allow_many_files
from relex_ext.forecasts import Spectrum
from relex_ext.output import Output
from relex_ext.plan import Plan, TensorPlan, share
from relex_ext.windows import HostMemory, Memory
from relex_ext.world import World


class TensorRun(Protocol):
    """What there is to do with a tensor: see :class:`relex_ext.engine.Run`."""

    def scan(self, item: TensorPlan) -> NDArray[np.float64] | Spectrum: ...

    def combine(self, item: TensorPlan, weights: NDArray[np.float64]) -> None: ...

    def skip(self, item: TensorPlan) -> None: ...


def run_plan(
    plan: Plan,
    choice: Choice,
    steps: tuple[int, ...],
    rank: int,
    output: Output | None,
    tick: Tick,
    work: Callable[[TensorRun, TensorPlan], None],
    rows: Rows | None = None,
    world: World | None = None,
) -> None:
    """Do ``work`` on every tensor of the plan, with the run of the device that has it.

    Each device has whole tensors and a thread, so that no byte depends on how many there are. The
    first error stops the others at their next window.
    """
    if not plan.tensors:
        return
    allow_many_files()
    if isinstance(plan, AdapterPlan):
        with AdapterRun(plan, steps, choice.backends[0], output, tick) as adapters:
            for item in plan.tensors:
                work(adapters, item)
            adapters.finish()
        return
    stop = threading.Event()
    shares = share(plan.tensors, len(choice.backends))

    def one(items: Sequence[TensorPlan], backend: Backend) -> None:
        memory = _memory(plan, backend)
        made = Run(
            items, steps, backend, memory, rank, output, tick, rows, stop, world, plan.supply
        )
        with made as run:
            for item in items:
                work(run, item)
                run.let_go(item)
            run.finish()

    if len(shares) == 1:
        one(shares[0], choice.backends[0])
        return
    with ThreadPoolExecutor(len(shares), thread_name_prefix="relex-device") as threads:
        try:
            backends = choice.backends[: len(shares)]
            futures = [threads.submit(one, *pair) for pair in zip(shares, backends, strict=True)]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # an error there, or Ctrl-C here
            stop.set()
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error


def _memory(plan: Plan, backend: Backend) -> Memory:
    """Where windows go: to the processor or, which needs torch, to the backend's device."""
    if plan.staging is None:
        return HostMemory(plan.strip_budget, plan.io)
    from relex_ext.backends.device import DeviceBackend
    from relex_ext.backends.gds import Gds
    from relex_ext.staging import DeviceMemory

    assert isinstance(backend, DeviceBackend)
    gds = Gds(required=plan.io_reason == AS_ASKED) if plan.io == "gds" else None
    return DeviceMemory(plan.staging, backend, gds)
