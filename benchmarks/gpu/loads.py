"""Where the pipeline's checkpoints come from."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import common
from gpu.worker import reason
from load import shapes
from relex_ext.sizes import available_memory

SHM = Path("/dev/shm")


def roomy(size: int, given: Path | None) -> Path:
    """The place given; else where so many bytes fit easily: in memory if there is room, or among
    temporary files.

    Raises:
        OSError: nowhere.
    """
    if given is not None:
        return given
    needed = size * 1.2
    # What lies there is memory that the pipeline cannot have.
    shared = min(shutil.disk_usage(SHM).free, available_memory() // 2) if SHM.is_dir() else 0
    if shared > needed and os.access(SHM, os.W_OK):
        return SHM
    place = Path(tempfile.gettempdir())
    if shutil.disk_usage(place).free < needed:
        raise OSError(f"no room for {size / 1e9:.1f} GB")
    return place


def medium(place: Path) -> str:
    return "tmpfs" if place.resolve().is_relative_to(SHM) else "disk"


class Load:
    """The folder that load.py wrote, or is writing while other things are measured."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        self._making: subprocess.Popen[bytes] | None = None
        self.failed, self.where = "", "as given"
        self.folder = args.load
        if self.folder is not None:
            self.folder = self.folder.resolve()
            return
        model = 2 * sum(math.prod(shape) for shape in shapes(args.scale).values())
        try:
            place = roomy(model * (args.checkpoints + 1), args.scratch)
            self.where = medium(place)
            self.folder = stack.enter_context(common.scratch_folder(place)) / "load"
            size = ["--checkpoints", args.checkpoints, "--scale", args.scale]
            self._making = subprocess.Popen(
                common.python(common.HERE / "load.py", self.folder, *size), start_new_session=True
            )
        except OSError as error:
            self.failed = reason(error)
            return
        stack.callback(self._stop)

    def _stop(self) -> None:
        if self._making is not None and self._making.poll() is None:
            os.killpg(self._making.pid, signal.SIGKILL)
            self._making.wait()

    def wait(self, seconds: float) -> None:
        """Until it is there, or ``failed`` says why not."""
        if self._making is None:
            return
        try:
            code = self._making.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            self._stop()
            self.failed = "skipped: time (load.py was not done)"
        else:
            self.failed = f"load.py: exit status {code}" if code else ""
