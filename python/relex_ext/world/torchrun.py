"""Processes that talk to each other: torch.distributed, as torchrun starts it.

What goes through it is small: solvers, sums of T × T over spans, weights, the news of a failure.
Bytes of checkpoints never do.

A process that fails puts its line into the store, which outlives its connections, and closes these:
whoever waits for it wakes up and finds the line there; who computes looks for it now and then. The
first process prints it, the others end in silence.
"""

from __future__ import annotations

import json
import os
import re
import socket
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
from relex_ext.errors import InputError, RelexError, Resumable, Told
from relex_ext.journal import difference
from relex_ext.plan import Plan, TensorPlan
from relex_ext.room import SPAN
from relex_ext.workspace import Workspace
from relex_ext.world import World
from relex_ext.world.partition import cut_large, shares_of, stay
from relex_ext.world.workspaces import Joined, Led

T = TypeVar("T")

TIMEOUT = timedelta(hours=6)
"""The longest that one process waits for another; a process that dies is noticed at once."""

GRACE = timedelta(seconds=5)
"""How long a failing process waits for the others to have noticed."""

LOOK = 0.5
"""Seconds between looks at the store."""

FAILURE, TOLD, HEARD, LEFT = "failure", "told", "heard", "left"


_WORLDS = count()
"""A process may be in several, one after the other."""


@cache
def _meeting_place(timeout: timedelta) -> Store:
    """The store that torchrun, or the first process, keeps for all."""
    store, _, _ = next(rendezvous("env://", timeout=timeout))
    return cast(Store, store)


class Lost(RelexError, Resumable):
    """Another process is gone without a word."""


class Failed(RelexError):
    """Another process failed: its line."""


class FailedResumable(Failed, Resumable):
    """The same, where what is done until then is good."""


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
        self._store = PrefixStore(f"relex-{number}", store)
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
            self._tell(first)
            if isinstance(first, (Failed, Lost)) and first is not error:
                raise first from error
            return
        if isinstance(error, KeyboardInterrupt):
            raise SystemExit(130) from error
        if not isinstance(error, (RelexError, OSError)):
            return
        try:
            self._store.wait([TOLD], GRACE)
            self._store.add(HEARD, 1)
        except RuntimeError:  # the first process is gone, and cannot tell
            raise first from error
        raise Told(str(first)) from error

    # ---- failures ------------------------------------------------------------------------------

    def check(self) -> None:
        now = time.monotonic()
        if now - self._looked > LOOK:
            self._looked = now
            if self._call(lambda: self._store.check([FAILURE])):
                raise self._news()

    def failed(self, error: BaseException) -> BaseException:
        """Tell the others, unless they know of another one. The error that all of them end with."""
        if self._failure is None:
            self._failure = error
            if not isinstance(error, Failed):
                said = {
                    "rank": self.rank, "host": socket.gethostname(),
                    "line": str(error) or type(error).__name__,
                    "resumable": isinstance(
                        error, (KeyboardInterrupt, SystemExit, Resumable)
                    ),
                }  # fmt: skip
                try:
                    first = self._store.compare_set(FAILURE, "", json.dumps(said))
                    if self.rank != 0 and json.loads(first)["rank"] != self.rank:
                        self._failure = _failure(first)
                except RuntimeError:
                    pass  # nobody is there any more
            self._disconnect()
        return self._failure

    def left(self) -> None:
        """This process has let go of the output's files."""
        try:
            self._store.add(LEFT, 1)
        except RuntimeError:
            pass

    def wait_until_left(self) -> None:
        self._wait_for_all(LEFT)

    def _tell(self, first: BaseException) -> None:
        """The first process is about to tell the user. It may be what keeps the store."""
        try:
            self._store.set(TOLD, "")
        except RuntimeError:
            return  # nobody is there any more
        if not isinstance(first, Lost):
            self._wait_for_all(HEARD)

    def _wait_for_all(self, word: str) -> None:
        """Until all others have said so, or might be dead."""
        until = time.monotonic() + GRACE.total_seconds()
        try:
            while self._store.add(word, 0) < self.size - 1 and time.monotonic() < until:
                time.sleep(0.02)
        except RuntimeError:
            pass  # nobody is there any more

    def _news(self) -> RelexError:
        return _failure(self._store.get(FAILURE))

    def _call(self, do: Callable[[], T]) -> T:
        """Something that others take part in."""
        try:
            return do()
        except RuntimeError as error:
            news: RelexError = Lost(f"another process is gone: {_first_words(error)}")
            try:
                if self._store.check([FAILURE]):  # it was told before connections were closed
                    news = self._news()
            except RuntimeError:
                pass  # the first process is gone
            raise news from error

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


def _failure(said: bytes | str) -> Failed:
    first = json.loads(said)
    kind = FailedResumable if first["resumable"] else Failed
    where = f"process {first['rank']} on {first['host']}: " if first["rank"] else ""
    return kind(where + first["line"])


def _first_words(error: RuntimeError) -> str:
    """Without the place in torch's source before, and the advice behind."""
    return re.sub(r"^\[[^]]*\] ", "", str(error)).partition("\n")[0].partition(". ")[0]
