"""Processes that talk to each other: torch.distributed, as torchrun starts it.

What goes through it is small: plans, sums of T × T over spans, weights, the news of a failure.
Bytes of checkpoints never do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from relex_ext.backends import Choice
from relex_ext.errors import InputError, RelexError, Told
from relex_ext.journal import difference
from relex_ext.plan import Plan, TensorPlan
from relex_ext.room import SPAN
from relex_ext.workspace import Workspace
from relex_ext.world import World
from relex_ext.world.news import Failed, Lost, News
from relex_ext.world.partition import cut_large, shares_of, stay
from relex_ext.world.workspaces import Joined, Led

T = TypeVar("T")

TIMEOUT = timedelta(hours=6)
"""The longest that one process waits for another; a process that dies is noticed at once."""

LOOK = 0.5
"""Seconds between looks at the store."""

_WORLDS = count()
"""A process may be in several, one after the other."""


@cache
def _meeting_place(timeout: timedelta) -> Store:
    """The store that torchrun, or the first process, keeps for all."""
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    return cast(Store, store)


class TorchWorld(World):
    """The processes of one ``torchrun``. On GPUs each has one of its own."""

    def __init__(self, span: int = SPAN, timeout: timedelta = TIMEOUT) -> None:
        super().__init__(span)
        self._timeout = timeout
        self.rank = int(os.environ["RANK"])
        self.size = int(os.environ["WORLD_SIZE"])
        self.together_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.speaks = self.rank == 0
        self._local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self._parts: dict[str, list[tuple[int, TensorPlan]]] = {}
        """Tensor → who has which part of it, in the order of columns."""
        self._groups: dict[tuple[int, ...], Any] = {}
        self._failure: BaseException | None = None
        self._looked = 0.0

    def __enter__(self) -> TorchWorld:
        nccl = (
            distributed.is_nccl_available()
            and torch.cuda.device_count() >= self.together_here  # it refuses two on one GPU
        )
        if nccl:
            torch.cuda.set_device(self._local_rank)
        self._sums_on_gpu = nccl
        store = _meeting_place(self._timeout)
        number = next(_WORLDS)
        self._news = News(PrefixStore(f"news-{number}", store), self.rank, self.size)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo", store=PrefixStore(f"group-{number}", store),
            rank=self.rank, world_size=self.size, timeout=self._timeout,
        )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.gather(None)
            self._disconnect()
            return
        first = self.failed(error)
        if self.rank == 0:
            self._news.tell(first)
            if isinstance(first, (Failed, Lost)) and first is not error:
                raise first from error
            return
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from error
        if not isinstance(error, (RelexError, OSError)):
            return
        if not self._news.is_told():
            raise first from error
        raise Told(str(first)) from error

    # ---- failures ------------------------------------------------------------------------------

    def check(self) -> None:
        now = time.monotonic()
        if now - self._looked > LOOK:
            self._looked = now
            failed = self._call(self._news.look)
            if failed is not None:
                raise failed

    def failed(self, error: BaseException) -> BaseException:
        if self._failure is None:
            self._failure = error if isinstance(error, Failed) else self._news.spread(error)
            self._disconnect()
        return self._failure

    def left(self) -> None:
        self._news.left()

    def wait_until_left(self) -> None:
        self._news.wait_until_left()

    def _call(self, do: Callable[[], T]) -> T:
        """Something that others take part in."""
        try:
            return do()
        except RuntimeError as error:
            raise self._news.instead_of(error) from error

    def _disconnect(self) -> None:
        """Wakes whoever waits for this process."""
        self._groups.clear()
        if distributed.is_initialized():
            distributed.destroy_process_group()

    # ---- what they tell each other -------------------------------------------------------------

    def agree(self, make: Callable[[], T]) -> T:
        word = [make() if self.rank == 0 else None]
        self._call(lambda: distributed.broadcast_object_list(word, src=0))
        return cast(T, word[0])

    def gather(self, mine: T) -> list[T]:
        found: list[Any] = [None] * self.size
        self._call(lambda: distributed.all_gather_object(found, mine))
        return found

    def from_owner(self, item: TensorPlan, make: Callable[[], T]) -> T:
        if item.part is None:
            return make()
        members = self._parts[item.tensor.name]
        word = [make() if self.owns(item) else None]
        owner, group = members[0][0], self._group(members)
        self._call(lambda: distributed.broadcast_object_list(word, src=owner, group=group))
        return cast(T, word[0])

    def together(self, item: TensorPlan, sums: list[Any]) -> list[Any]:
        members = self._parts[item.tensor.name]
        counts = [-(-(end - begin) // item.span) for _, p in members for begin, end in [p.columns]]
        on_host = isinstance(sums[0], np.ndarray)
        mine = torch.stack([torch.as_tensor(one) for one in sums])
        if not self._sums_on_gpu:
            mine = mine.cpu()
        padded = mine.new_zeros(max(counts), *mine.shape[1:])
        padded[: len(mine)] = mine
        ranks = sorted(rank for rank, _ in members)
        found = {rank: torch.empty_like(padded) for rank in ranks}
        group = self._group(members)
        self._call(lambda: distributed.all_gather(list(found.values()), padded, group=group))
        spans = [
            span
            for (rank, _), count in zip(members, counts, strict=True)
            for span in found[rank][:count]
        ]
        return [span.numpy() if on_host else span.to(sums[0].device) for span in spans]

    def _group(self, members: Sequence[tuple[int, TensorPlan]]) -> Any:
        return self._groups[tuple(sorted(rank for rank, _ in members))]

    # ---- who does what -------------------------------------------------------------------------

    def own(self, choice: Choice, device: object) -> Choice:
        if not choice.on_devices:
            return choice
        if device is None:
            count = len(choice.backends)
            return replace(choice, backends=(choice.backends[self._local_rank % count],))
        if len(choice.backends) > 1:
            raise InputError(f"device: expected one for each of {self.size} processes, found more")
        return choice

    def workspace(self, out: Path, job: Mapping[str, Any], check: Callable[[], None]) -> Workspace:
        for rank, other in enumerate(self.gather(job)):
            differs = difference(other, job)
            if differs is not None:
                raise InputError(
                    f"process {rank} sees other files or computes otherwise: {differs}"
                )
        if self.rank == 0:
            return Led(out, job, check, self)
        return Joined(out, job, check, self)

    def to_verify(self, plan: Plan) -> Sequence[TensorPlan]:
        return plan.tensors[self.rank :: self.size]

    def share(self, plan: Plan, left: Sequence[TensorPlan], keep: bool = False) -> list[TensorPlan]:
        shares = shares_of(cut_large(left, self.size), self.size)
        self._parts = {}
        for rank, items in enumerate(shares):
            for item in items:
                if item.part is not None:
                    self._parts.setdefault(item.tensor.name, []).append((rank, item))
        for members in self._parts.values():
            members.sort(key=lambda member: member[1].columns)
            ranks = tuple(sorted(rank for rank, _ in members))
            if ranks not in self._groups:
                make = partial(distributed.new_group, list(ranks))
                self._groups[ranks] = self._call(make)
        mine = shares[self.rank]
        return [stay(plan, item) for item in mine] if keep else mine
