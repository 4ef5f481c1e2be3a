"""The processes that do one job together. ``World`` is the one process that needs no others;
torchrun.py has those that talk to each other, tasks.py those that only share a file system.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from relex_ext.backends import Choice
from relex_ext.plan import Plan, TensorPlan
from relex_ext.room import SPAN
from relex_ext.sizes import available_memory
from relex_ext.workspace import Workspace

T = TypeVar("T")


class World:
    """One process, alone. A context manager around everything that it does."""

    rank = 0
    size = 1
    together_here = 1
    """Of them on this machine, among which its processors and memory are divided."""

    speaks = True
    """This process tells the user how it went."""

    def __init__(self, span: int = SPAN) -> None:
        """``span``: columns by which tensors are summed and shared out: the same in every world
        that is to make the same bytes."""
        self.span = span

    def __enter__(self) -> World:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    # ---- what it may use -----------------------------------------------------------------------

    def threads(self, asked: int | None) -> int | None:
        """Of the arithmetic of each process."""
        if asked is not None or self.together_here == 1:
            return asked
        from relex_ext.backends.cpu import available_threads

        return max(1, available_threads() // self.together_here)

    def memory_limit(self, asked: str | int | None) -> str | int | None:
        """Of each process."""
        if asked is not None or self.together_here == 1:
            return asked
        return available_memory() // 2 // self.together_here

    def own(self, choice: Choice, device: object) -> Choice:
        """The part of what may compute that this process has; ``device``: what was asked for."""
        return choice

    # ---- what they tell each other -------------------------------------------------------------

    def check(self) -> None:
        """Raise if another process has failed, as far as that is known."""

    def agree(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all."""
        return make()

    def gather(self, mine: T) -> list[T]:
        """What each process has, for all."""
        return [mine]

    # ---- who does what -------------------------------------------------------------------------

    def workspace(self, out: Path, job: Mapping[str, Any], check: Callable[[], None]) -> Workspace:
        """This process's way into the folder where they make the output."""
        return Workspace(out, job, check)

    def to_verify(self, plan: Plan) -> Sequence[TensorPlan]:
        """Those of which this process looks whether they are done."""
        return plan.tensors

    def share(self, plan: Plan, left: Sequence[TensorPlan], keep: bool = False) -> list[TensorPlan]:
        """What of the ``left`` tensors this process does; ``keep``: parts that fit into memory may
        stay there between scan and combine."""
        return list(left)

    def together(self, item: TensorPlan, sums: list[Any]) -> list[Any]:
        """The sums of all spans of a tensor of which each process has some."""
        return sums

    def from_owner(self, item: TensorPlan, make: Callable[[], T]) -> T:
        """What the process makes that answers for a tensor, for all that have a part of it."""
        return make()

    def owns(self, item: TensorPlan) -> bool:
        """This process answers for it: it has its first columns."""
        return item.columns[0] == 0
