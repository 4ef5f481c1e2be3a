"""The bar over bytes."""

from __future__ import annotations

import threading

from relex_ext.engine import Tick


class ProgressBar:
    """A bar over bytes; entering it gives the function that advances it."""

    def __init__(self, total: int, label: str, shown: bool) -> None:
        self._total, self._label, self._shown = total, label, shown

    def __enter__(self) -> Tick:
        if not self._shown:
            return lambda nbytes: None
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=self._total, desc=self._label, unit="B", unit_scale=True, unit_divisor=1024
        )

        lock = threading.Lock()

        def tick(nbytes: int) -> None:
            with lock:  # devices tick from threads of their own
                self._bar.update(nbytes)

        return tick

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.close()
