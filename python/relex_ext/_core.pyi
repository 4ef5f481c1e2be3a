"""The compiled core. Arrays must be C-contiguous and of the stated dtype; nothing is converted."""

import numpy as np
from numpy.typing import NDArray

SEGMENT: int
MAX_ROWS: int
MAX_VECTORS: int

class StopToken:
    def __init__(self) -> None: ...
    def set(self) -> None: ...
    def is_set(self) -> bool: ...

class File:
    """A read-only file, mapped or not, for as long as the object lives."""

    def __init__(self, path: str, map: bool) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def descriptor(self) -> int: ...

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
def start_writeback(descriptor: int, offset: int, bytes: int) -> None: ...
def read(
    descriptors: NDArray[np.int32],
    offsets: NDArray[np.uint64],
    addresses: NDArray[np.uint64],
    lengths: NDArray[np.uint64],
    stop: StopToken,
) -> tuple[int, int]: ...
