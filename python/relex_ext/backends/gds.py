"""GPUDirect Storage through KvikIO (``pip install relex_ext[gds]``): from the disk into the GPU's
memory, past this process's."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


class GdsError(Exception):
    """A read that did not happen, in one line."""


def unavailable(device: str) -> str | None:
    """Why GPUDirect Storage cannot be had for a device of that kind, or None.

    KvikIO's compatibility mode does not count: it reads through a buffer of its own, which pinned
    slots do better.
    """
    if device != "cuda":
        return "GPUDirect Storage is for NVIDIA's GPUs"
    if find_spec("kvikio") is None:
        return "kvikio is not installed (pip install relex_ext[gds])"
    try:
        driver, defaults = (import_module(f"kvikio.{n}") for n in ("cufile_driver", "defaults"))
        if not driver.get("is_gds_available"):
            return "cuFile's driver finds no GPUDirect Storage"
        if defaults.is_compat_mode_preferred():
            return "kvikio prefers its compatibility mode"
    except Exception as error:  # whatever its libraries raise where their driver is missing
        return f"kvikio cannot be used ({_line(error)})"
    return None


class Gds:
    """Reads into device memory. Shared by loading threads."""

    def __init__(self, required: bool) -> None:
        """``required``: the user asked for it, so that nothing may stand in."""
        self.required = required
        self._kvikio: Any = import_module("kvikio")
        self._files: dict[Path, Any] = {}

    def read(
        self,
        paths: Sequence[Path],
        extents: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        memory: Tensor,
        places: NDArray[np.uint64],
    ) -> None:
        """(offsets, lengths) of each file to its place in ``memory``, all of them at once.

        Raises:
            GdsError: the first file that failed.
        """
        offsets, lengths = (part.tolist() for part in extents)
        reads = []
        try:
            for path, offset, length, place in zip(
                paths, offsets, lengths, places.tolist(), strict=True
            ):
                to = memory[place : place + length]
                reads.append(self._file(path).pread(to, length, offset))
        except Exception as error:
            raise GdsError(f"{path}: gds: {_line(error)}") from error
        finally:  # none may still write when this returns
            outcomes = [_outcome(read) for read in reads]
        for path, length, outcome in zip(paths, lengths, outcomes, strict=True):
            if outcome != length:
                raise GdsError(f"{path}: gds: read {outcome} of {length} bytes")

    def _file(self, path: Path) -> Any:
        file = self._files.get(path)
        if file is None:  # two threads may open one twice: the second stays
            file = self._files[path] = self._kvikio.CuFile(path, "r")
        return file


def _outcome(read: Any) -> object:
    """Bytes read, or what went wrong."""
    try:
        return read.get()
    except Exception as error:
        return error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
