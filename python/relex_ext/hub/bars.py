"""The progress bars of huggingface_hub: over what takes long only, and where any are wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    tqdm,
)

# Before 1.0 threads that show a bar at once make and remove this lock under each other's hands.
tqdm.set_lock(threading.RLock())


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Without bars unless they are to be shown; the user's own settings always go before.

    ``HF_HUB_DISABLE_PROGRESS_BARS``, 0 or 1, decides alone: huggingface_hub warns whoever tries.
    """
    settled = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    if shown or settled or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
