"""One forked child for each case, so that whatever a fault does to a process ends with it."""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from relex_ext import RelexError


@dataclass(slots=True)
class Ending:
    """How a child ended.

    ``how``: ``returned``, ``refused`` (an error as the package promises them), ``interrupted``
    (Ctrl-C), ``killed``, or what must not be: ``broken`` (another error, one that nobody caught),
    ``hung``, ``died``; ``said``: the error's words; ``value``: what the work returned; ``last``:
    what was then asked for.
    """

    how: str
    said: str = ""
    value: Any = None
    last: Any = None
    seconds: float = 0.0
    stray: list[str] = field(default_factory=list)
    """What nobody caught: errors of threads and of destructors."""


def in_child(
    work: Callable[[], Any],
    at_last: Callable[[], Any] | None = None,
    patience: float = 20.0,
) -> Ending:
    """Do the work in a fork of this process, which must have no other threads."""
    assert threading.active_count() == 1
    reader, writer = os.pipe()
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.close(reader)
        faulthandler.dump_traceback_later(patience, exit=True, file=writer)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(_attempt(work, at_last)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.perf_counter() - began
    if status == -signal.SIGKILL:
        return Ending("killed", seconds=seconds)
    if status < 0:
        return Ending("died", signal.Signals(-status).name, seconds=seconds)
    if status > 0:
        return Ending("hung", said.decode(errors="replace"), seconds=seconds)
    ending: Ending = pickle.loads(said)
    ending.seconds = seconds
    return ending


def _attempt(work: Callable[[], Any], at_last: Callable[[], Any] | None) -> Ending:
    stray: list[str] = []
    sys.unraisablehook = lambda found: stray.append(f"{found.exc_value!r} in {found.object}")
    threading.excepthook = lambda found: stray.append(f"{found.thread}: {found.exc_value!r}")
    ending = _outcome(work)
    gc.collect()  # files that only a traceback's frames held
    stray += [f"{thread.name} is left" for thread in threading.enumerate()[1:]]
    if at_last is not None:
        ending.last = at_last()
    ending.stray = stray
    return ending


def _outcome(work: Callable[[], Any]) -> Ending:
    try:
        return Ending("returned", value=work())
    except (RelexError, OSError) as error:
        return Ending("refused", f"{type(error).__name__}: {error}")
    except KeyboardInterrupt as error:
        return Ending("interrupted", str(error))
    except BaseException:
        return Ending("broken", traceback.format_exc())


def returned(ending: Ending) -> Ending:
    """For a child that nothing disturbs."""
    if ending.how != "returned":
        raise RuntimeError(f"undisturbed, and {ending.how}: {ending.said}")
    return ending
