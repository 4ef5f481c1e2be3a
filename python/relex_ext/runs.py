"""A plan's tensors shared out over runs: one for the processor, or one for each device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from relex_ext.backends import Backend, Choice
from relex_ext.engine import Rows, Run, Stopped, Tick
from relex_ext.files import AS_ASKED, allow_many_files
from relex_ext.output import Output
from relex_ext.plan import Plan, TensorPlan, share
from relex_ext.windows import HostMemory, Memory


def run_plan(
    plan: Plan,
    choice: Choice,
    steps: tuple[int, ...],
    rank: int,
    output: Output | None,
    tick: Tick,
    work: Callable[[Run, TensorPlan], None],
    rows: Rows | None = None,
) -> None:
    """Do ``work`` on every tensor of the plan, with the run of the device that has it.

    Each device has whole tensors and a thread, so that no byte depends on how many there are. The
    first error stops the others at their next window.
    """
    if not plan.tensors:
        return
    allow_many_files()
    stop = threading.Event()
    shares = share(plan.tensors, len(choice.backends))

    def one(items: Sequence[TensorPlan], backend: Backend) -> None:
        memory = _memory(plan, backend)
        with Run(items, steps, backend, memory, rank, output, tick, rows, stop, plan.supply) as run:
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
