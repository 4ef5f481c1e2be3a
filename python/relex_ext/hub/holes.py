"""Files with holes, in a folder that goes when nobody needs it, or its process is gone."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import constants

from relex_ext.errors import InputError

BLOCK = 4096
"""What a file system gives and takes back, at the least."""

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_MIRROR = "mirror-"


def punch(path: Path, begin: int, end: int) -> None:
    """Give back the blocks of [begin, end); they are zeros then. Python has no call for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b", buffering=0) as file:
        offset, length = ctypes.c_int64(begin), ctypes.c_int64(end - begin)
        mode = _KEEP_SIZE | _PUNCH_HOLE
        if end > begin and libc.fallocate(file.fileno(), mode, offset, length) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))


def allocated(path: Path) -> int:
    """Bytes that a file takes on disk."""
    return path.lstat().st_blocks * 512


class Scratch:
    """``folder``: beside the Hub's cache, locked while this process has it. Those of processes that
    were killed are removed when the next one is made.

    Raises:
        InputError: the file system there cannot punch holes.
    """

    def __init__(self) -> None:
        place = Path(constants.HF_HUB_CACHE).absolute().parent / "relex"
        place.mkdir(parents=True, exist_ok=True)
        with (place / "lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            for left in place.glob(f"{_MIRROR}*"):
                _remove_unlocked(left)
            self.folder = Path(tempfile.mkdtemp(prefix=_MIRROR, dir=place))
            self._lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._check()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _check(self) -> None:
        probe = self.folder / "probe"
        probe.write_bytes(bytes([1]) * 2 * BLOCK)
        try:
            punch(probe, 0, BLOCK)
        except OSError as error:
            raise InputError(
                f"max_local: {self.folder.parent}: its file system cannot punch holes: "
                f"{error.strerror}; set HF_HUB_CACHE to one that can"
            ) from error
        probe.unlink()


def _remove_unlocked(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # another process reads there
    finally:
        os.close(descriptor)
