"""Products side by side, each on one thread: how numpy's BLAS shares one out changes its bits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Beside:
    """So many workers. A context manager, in which BLAS has one thread for each caller."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._stack = ExitStack()

    def __enter__(self) -> Beside:
        from threadpoolctl import threadpool_limits

        self._stack.enter_context(threadpool_limits(1, "blas"))
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="relex-adapters")
        self._stack.callback(self._pool.shutdown, cancel_futures=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def each(self, task: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """What ``task`` makes of the items, in their order, no more of it at once than there are
        workers."""
        under_way: deque[Future[U]] = deque()
        for item in items:
            if len(under_way) == self._workers:
                yield under_way.popleft().result()
            under_way.append(self._pool.submit(task, item))
        while under_way:
            yield under_way.popleft().result()
