"""The compiled core. Arrays must be C-contiguous and of the stated dtype; nothing is converted."""

import os

import numpy as np
from numpy.typing import NDArray

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

SEGMENT: int
MAX_ROWS: int
MAX_VECTORS: int

class StopToken:
    def __init__(self) -> None: ...
    def set(self) -> None: ...
    def is_set(self) -> bool: ...

class File:
    """A read-only file, mapped or not, for as long as the object lives."""

    def __init__(self, path: StrPath, map: bool) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def descriptor(self) -> int: ...
    @property
    def damaged(self) -> bool:
        """Mapped pages were lost (the file was truncated, its disk failed) and read as zeros."""

def damages() -> int:
    """How many mapped files of this process were damaged so far."""

def isas() -> list[str]: ...
def gram(
    rows: NDArray[np.uint64],
    dtypes: NDArray[np.uint8],
    base: int,
    base_dtype: int,
    columns: int,
    gram: NDArray[np.float64],
    threads: int,
    isa: str,
) -> None: ...
def power_step(
    rows: NDArray[np.uint64],
    dtypes: NDArray[np.uint8],
    base: int,
    base_dtype: int,
    columns: int,
    u: NDArray[np.float32],
    y: NDArray[np.float64],
    energy: NDArray[np.float64] | None,
    threads: int,
    isa: str,
) -> None: ...
def combine(
    rows: NDArray[np.uint64],
    dtypes: NDArray[np.uint8],
    base: int,
    base_dtype: int,
    columns: int,
    weights: NDArray[np.float64],
    out: NDArray[np.uint64],
    out_dtype: int,
    threads: int,
    isa: str,
) -> None: ...
def announce(addresses: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> None: ...
def populate(
    addresses: NDArray[np.uint64], lengths: NDArray[np.uint64], stop: StopToken
) -> tuple[int, int]: ...
def release(addresses: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> None: ...
def read(
    descriptors: NDArray[np.int32],
    offsets: NDArray[np.uint64],
    addresses: NDArray[np.uint64],
    lengths: NDArray[np.uint64],
    stop: StopToken,
) -> tuple[int, int]: ...
def reserve(descriptor: int, size: int) -> None:
    """Allocate a file's blocks [0, size), or only give it that size where nothing can be allocated.

    Raises:
        OSError: the disk is full, for example.
    """

def start_writeback(descriptor: int, offset: int, bytes: int) -> None:
    """Start writing a range of a file to the device, without waiting."""

def finish_writeback(descriptor: int, offset: int, bytes: int) -> None:
    """Wait until a range of a file is written to the device. Only fsync makes it durable.

    Raises:
        OSError: a write failed. The kernel says so once: fsync may not say it again.
    """

def exchange(a: StrPath, b: StrPath) -> None:
    """Exchange two files or folders of one file system in a single step."""
