"""What bench_gpu.py measures runs in a process of its own, so that a kernel that hangs or kills its
CUDA context loses no more than its own figures. This is that process's both ends: Worker starts it
and asks, serve answers; and the clock of the device."""

from __future__ import annotations

import gc
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import common

Job = dict[str, Any]
Entry = dict[str, Any]


class Wrong(Exception):
    """A result that is not what it has to be."""


def reason(error: BaseException) -> str:
    """The error in one line, without the machine's paths."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"(?:/[\w.+-]+)+/([\w.+-]+)", r"\1", lines[0] if lines else "")
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


# ---- the device's clock ------------------------------------------------------------------------


class Device:
    """A GPU, or the processor in its place to try the scripts out."""

    def __init__(self, kind: str) -> None:
        import torch

        self.torch = torch
        self.kind = kind
        self.device = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
        if kind == "cuda":
            torch.cuda.set_device(self.device)

    def wait(self) -> None:
        if self.kind == "cuda":
            self.torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if self.kind == "cuda":
            self.torch.cuda.empty_cache()

    def pinned(self, size: int) -> Any:
        return self.torch.empty(size, dtype=self.torch.uint8, pin_memory=self.kind == "cuda")

    def once(self, work: Callable[[], object]) -> float:
        """Seconds by this process's clock, the device's work included."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def case(
        self, work: Callable[[], object], least: int = 5, seconds: float = 0.03
    ) -> Callable[[], float]:
        """For common.interleaved: the device's seconds per call, over at least so many calls that
        take at least so long together. Warms up now."""
        if self.kind == "cpu":  # interpreted and emulated kernels take long
            return lambda: self.once(work)
        work()
        repeats = max(least, min(100, math.ceil(seconds / max(self.once(work), 1e-6))))

        def measure() -> float:
            before, after = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))

            def between() -> None:
                before.record()
                for _ in range(repeats):
                    work()
                after.record()

            wall = self.once(between)
            found = float(before.elapsed_time(after)) / 1e3
            # Work queued on another stream than the events' passes them by.
            return (found if found > wall / 2 else wall) / repeats

        return measure


# ---- the worker's end --------------------------------------------------------------------------


def serve(do: Mapping[str, Callable[[Device, Job], Iterator[Entry]]], kind: str, out: int) -> None:
    """Answer jobs, a line each on stdin, with lines on ``out``: entries, then how it ended."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is progress

    def answer(**message: Any) -> None:
        os.write(out, (json.dumps(message) + "\n").encode())

    device: Device | None = None
    for line in sys.stdin:
        job = json.loads(line)
        failed, wrong = "", False
        try:
            device = device or Device(kind)
            for entry in do[job["do"]](device, job):
                answer(entry=entry)
        except Exception as error:  # which must not be kept: its frames hold the device's memory
            failed, wrong = reason(error), isinstance(error, Wrong)
        try:
            if device is not None:
                device.free()
                device.wait()
        except Exception:  # the context is lost, and all that is in it
            answer(failed=failed or "the device failed", wrong=wrong, alive=False)
            return
        answer(failed=failed, wrong=wrong, alive=True)


# ---- the other end -----------------------------------------------------------------------------


@dataclass
class Outcome:
    """``failed``: why it ended early, or "". ``hung``: it had to be killed."""

    entries: list[Entry] = field(default_factory=list)
    failed: str = ""
    wrong: bool = False
    hung: bool = False


class Worker:
    """Runs jobs one after the other; a process that dies or hangs is replaced for the next. A
    context manager."""

    def __init__(self, script: str, kind: str, env: Mapping[str, str]) -> None:
        self._argv = common.python(script, "--device", kind, "--serve")
        self._env = {**os.environ, **env}
        self._process: subprocess.Popen[str] | None = None
        self._pipe = -1
        self._rest = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> subprocess.Popen[str]:
        self._pipe, theirs = os.pipe()
        self._rest = b""
        self._process = subprocess.Popen(
            [*self._argv, str(theirs)], stdin=subprocess.PIPE, text=True, env=self._env,
            pass_fds=[theirs], start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        return self._process

    def stop(self) -> str:
        """End the process. How it ended, if it had already."""
        if self._process is None:
            return ""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()  # the end of its jobs
        except OSError:
            pass  # it ended with a job unread
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            code = 0
        os.close(self._pipe)
        self._process = None
        return f"killed by signal {-code}" if code < 0 else f"exit status {code}"

    def run(self, job: Job, limit: float) -> Outcome:
        """Whatever the job found within ``limit`` seconds."""
        end = time.monotonic() + limit
        done = Outcome()
        try:
            process = self._process or self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except OSError:
            done.failed = self.stop()
            return done
        while True:
            line = self._line(end)
            if line is None:
                self._kill()
                done.failed, done.hung = f"over {limit:.0f} s", True
                return done
            if not line:
                done.failed = f"its process ended: {self.stop()}"
                return done
            message = json.loads(line)
            if "entry" in message:
                done.entries.append(message["entry"])
                continue
            done.failed, done.wrong = message["failed"], message["wrong"]
            if not message["alive"]:
                self.stop()
            return done

    def _kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self.stop()

    def _line(self, end: float) -> bytes | None:
        """The next line; empty at the end of the process, None when time is up."""
        while b"\n" not in self._rest:
            ready = select.select([self._pipe], [], [], max(0.0, end - time.monotonic()))[0]
            if not ready:
                return None
            read = os.read(self._pipe, 1 << 16)
            if not read:
                return b""
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line
