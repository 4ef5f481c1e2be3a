"""How much memory a piece of work takes, measured from outside every allocator.

For processes of their own: what ran in one before leaves free memory that would not be counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path


def anonymous() -> int:
    """Bytes of memory that this process has, and not some file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon")


def growth(work: Callable[[], object]) -> int:
    """Bytes that this process has more than before while it works, at the most."""
    start, top, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal top
        while not done.is_set():
            top = max(top, anonymous() - start)
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return top
