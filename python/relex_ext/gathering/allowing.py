"""What torch.load(weights_only=True) may make of a file, for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def only(classes: Mapping[str, type]) -> Iterator[None]:
    """Plain tensors, and what pickles name by these paths, as these classes.

    Nothing of what this process has allowed elsewhere: importing torch.distributed.tensor is
    enough to allow classes whose code then runs on what the file says.
    """
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([(made, path) for path, made in classes.items()])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)
