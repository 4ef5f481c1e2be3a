"""Who computes, and with how much memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from relex_ext.adapters import planning
from relex_ext.adapters.trajectory import AdapterTrajectory
from relex_ext.backends import Choice, fall_back, gds, open_backends
from relex_ext.errors import InputError
from relex_ext.plan import Plan, make_plan
from relex_ext.room import Devices, DeviceTooSmall
from relex_ext.sizes import parse_bytes
from relex_ext.trajectory import Trajectory
from relex_ext.world import World


@dataclass(frozen=True)
class Machine:
    """What a run may use of the machine: :func:`relex_ext.extrapolate`'s options of these names."""

    backend: str
    device: str | Sequence[str] | None
    threads: int | None
    memory_limit: str | int | None
    device_memory: str | int | None
    io: str
    delta_dtype: str = "F32"
    world: World = field(default_factory=World)
    """The processes among which the work is shared; memory and threads are each one's."""

    def lay_out(self, trajectory: Trajectory, **options: Any) -> tuple[Choice, Plan]:
        """Choose who computes, and plan for it. ``options``: make_plan's.

        Raises:
            InputError: what was asked for cannot be had, or a limit is too small.
        """
        threads = self.world.threads(self.threads)
        if isinstance(trajectory, AdapterTrajectory):
            choice = planning.choose(self.backend, threads, self.device, self.delta_dtype)
            threads = getattr(choice.backends[0], "threads", 1)
            memory = self.world.memory_limit(self.memory_limit)
            return choice, planning.make_plan(
                trajectory, threads, io=self.io, memory_limit=memory, **options
            )
        choice = open_backends(self.backend, threads, self.device, self.delta_dtype)
        choice = self.world.own(choice, self.device)
        try:
            return choice, self._plan(choice, trajectory, options)
        except DeviceTooSmall as error:
            if not choice.fallback or self.device_memory is not None:
                raise
            choice = fall_back(threads, f"{choice.name}: {error}")
        return choice, self._plan(choice, trajectory, options)

    def _plan(self, choice: Choice, trajectory: Trajectory, options: dict[str, Any]) -> Plan:
        return make_plan(
            trajectory, isa=getattr(choice.backends[0], "isa", "scalar"), io=self.io,
            memory_limit=self.world.memory_limit(self.memory_limit),
            devices=self._devices(choice), span=self.world.span, **options,
        )  # fmt: skip

    def _devices(self, choice: Choice) -> Devices | None:
        asked = self.device_memory
        memory = None if asked is None else parse_bytes(asked, "device_memory")
        if not choice.on_devices:
            if memory is not None and choice.name == self.backend:
                raise InputError(f"device_memory: backend {choice.name} computes on the processor")
            return None
        backends = choice.devices()
        if memory is None:
            memory = min(backend.accelerator.usable_memory() for backend in backends)
        kind = backends[0].device.type
        no_gds = "not asked for" if self.io == "pread" else gds.unavailable(kind)
        names = tuple(str(backend.device) for backend in backends)
        return Devices(names, memory, backends[0].workspace_bytes, no_gds)
