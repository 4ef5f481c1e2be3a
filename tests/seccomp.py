"""System calls that fail on demand, as on another kernel or file system: a seccomp filter.

It cannot be taken back and holds for whatever the process does from then on, so it is for processes
that tests start.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

NUMBERS = {
    "x86_64": {"fallocate": 285, "madvise": 28, "renameat2": 316, "sync_file_range": 277},
    "aarch64": {"fallocate": 47, "madvise": 233, "renameat2": 276, "sync_file_range": 84},
}[platform.machine()]

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_SET_SECCOMP, _SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2


def fail(call: str, code: int, third: int | None = None) -> None:
    """From now on ``call`` fails with an errno; only with this ``third`` argument, if given."""
    checks = [(0, NUMBERS[call])]  # offset in the kernel's struct seccomp_data, value
    if third is not None:
        checks.append((16 + 2 * 8, third))
    steps = []
    for i, (offset, value) in enumerate(checks):
        to_allow = 2 * (len(checks) - i) - 1
        steps += [(_LOAD, 0, 0, offset), (_JUMP_IF_EQUAL, 0, to_allow, value)]
    steps += [(_RETURN, 0, 0, _ERRNO | code), (_RETURN, 0, 0, _ALLOW)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    described = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    control = ctypes.CDLL(None, use_errno=True).prctl
    if control(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or control(_SET_SECCOMP, _FILTER, described):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
