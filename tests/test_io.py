"""The compiled core's files: what is asked of the kernel, and what its refusals become."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import children
from relex_ext import _core

MIB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    found = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield found
    os.close(found)


def allocated(descriptor: int) -> int:
    return os.fstat(descriptor).st_blocks * 512


# ---- reserving ---------------------------------------------------------------------------------


def test_reserve(descriptor: int) -> None:
    os.write(descriptor, b"kept")
    _core.reserve(descriptor, 10 * MIB + 1)
    assert os.fstat(descriptor).st_size == 10 * MIB + 1
    assert allocated(descriptor) >= 10 * MIB + 1
    assert os.pread(descriptor, 8, 0) == b"kept" + bytes(4)


@pytest.mark.parametrize("size", [0, 3])
def test_reserve_never_shortens(descriptor: int, size: int) -> None:
    os.write(descriptor, b"kept")
    _core.reserve(descriptor, size)
    assert os.pread(descriptor, 8, 0) == b"kept"


def test_a_full_disk_is_found_before_anything_is_written() -> None:
    found = os.open(SHARED_MEMORY, os.O_TMPFILE | os.O_RDWR)
    whole = os.statvfs(found)
    with pytest.raises(OSError) as caught:
        _core.reserve(found, (whole.f_blocks + 1) * whole.f_frsize)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.strerror == "No space left on device"
    assert allocated(found) == 0
    os.close(found)


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1])
def test_reserve_more_than_a_file_can_hold(descriptor: int, size: int) -> None:
    with pytest.raises(OSError) as caught:
        _core.reserve(descriptor, size)
    assert caught.value.errno == errno.EFBIG
    assert os.fstat(descriptor).st_size == 0


RESERVE = """
import os, sys
import seccomp
from relex_ext import _core

path, code, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = os.open(path, os.O_RDWR | os.O_CREAT)
os.write(file, bytes(100))
seccomp.fail("fallocate", code)
try:
    _core.reserve(file, size)
except OSError as error:
    print(error.errno)
print(os.fstat(file).st_size, os.fstat(file).st_blocks * 512 < 8192)
"""


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("size", [50, 10 * MIB])
def test_file_systems_that_cannot_reserve(tmp_path: Path, code: int, size: int) -> None:
    """The file has its size, no block is written for it, and none of it is cut off."""
    found = children.printed(RESERVE, tmp_path / "file", code, size)
    assert found == f"{max(size, 100)} True"


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EIO, errno.EPERM])
def test_refused_reservations_leave_the_file_alone(tmp_path: Path, code: int) -> None:
    assert children.printed(RESERVE, tmp_path / "file", code, MIB) == f"{code}\n100 True"


def test_a_reservation_that_is_always_interrupted_answers_ctrl_c(tmp_path: Path) -> None:
    begin = RESERVE.replace("try:", "print('begun', flush=True)\ntry:")
    with children.start(begin, tmp_path / "file", errno.EINTR, MIB) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10)[1].endswith("KeyboardInterrupt\n")


# ---- writing back ------------------------------------------------------------------------------


def test_writeback(descriptor: int) -> None:
    data = os.urandom(3 * MIB)
    os.write(descriptor, data)
    _core.start_writeback(descriptor, 0, MIB)
    _core.finish_writeback(descriptor, 0, 2 * MIB)
    _core.finish_writeback(descriptor, 2 * MIB, MIB)
    _core.finish_writeback(descriptor, 10 * MIB, MIB)  # beyond the end
    assert os.pread(descriptor, 4 * MIB, 0) == data


def test_what_cannot_be_written_back_is_left_to_fsync() -> None:
    ends = os.pipe()
    for end in ends:
        _core.finish_writeback(end, 0, 1)
        os.close(end)


WRITE_BACK = """
import os, sys, tempfile
import seccomp
from relex_ext import _core

file = tempfile.TemporaryFile()
file.write(bytes(8192))
file.flush()
seccomp.fail("sync_file_range", int(sys.argv[1]))
_core.start_writeback(file.fileno(), 0, 8192)
try:
    _core.finish_writeback(file.fileno(), 0, int(sys.argv[2]))
    print("done")
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_failed_is_reported(code: int) -> None:
    assert children.printed(WRITE_BACK, code, 4096) == str(code)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ESPIPE])
def test_kernels_without_writeback(code: int) -> None:
    assert children.printed(WRITE_BACK, code, 4096) == "done"


def test_no_bytes_are_no_call() -> None:
    """To the kernel, none would be all that follow."""
    assert children.printed(WRITE_BACK, errno.EIO, 0) == "done"


@pytest.mark.parametrize("call", [_core.reserve, lambda d, n: _core.finish_writeback(d, 0, n)])
def test_closed_files(call: Callable[[int, int], None]) -> None:
    with pytest.raises(OSError) as caught:
        call(-1, 4096)
    assert caught.value.errno == errno.EBADF


# ---- exchanging --------------------------------------------------------------------------------


def test_exchange_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"in {name}").touch()
    _core.exchange(tmp_path / "a", str(tmp_path / "b"))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["in b"]
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["in a"]


def test_exchange_a_file_and_a_folder_of_any_name(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n"))
    odd.mkdir()
    (tmp_path / "file").write_text("text")
    _core.exchange(odd, os.fsencode(tmp_path / "file"))
    assert odd.read_text() == "text"
    assert (tmp_path / "file").is_dir()


def test_exchange_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        _core.exchange(tmp_path / "a", tmp_path / "b")
    assert caught.value.filename == tmp_path / "a"
    assert caught.value.filename2 == tmp_path / "b"
    assert (tmp_path / "a").is_dir()


def test_no_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embedded null byte"):
        _core.exchange(tmp_path, "a\0b")
    with pytest.raises(TypeError, match=r"expected str, bytes .* not int"):
        _core.exchange(tmp_path, 3)


# ---- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [True, False])
def test_files_of_any_name(tmp_path: Path, mapped: bool) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff"
    Path(os.fsdecode(odd)).write_bytes(b"12345")
    assert _core.File(odd, mapped).size == _core.File(os.fsdecode(odd), mapped).size == 5
    with pytest.raises(FileNotFoundError) as caught:
        _core.File(os.fsdecode(odd + b"gone"), mapped)
    assert caught.value.filename == os.fsdecode(odd + b"gone")


def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert _core.File(tmp_path / "pipe", True).size == 0


def test_populate_past_the_end_names_the_strip(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(bytes(16 * 4096))
    file = _core.File(place, True)
    os.truncate(place, 8 * 4096)
    starts = np.array([file.address + 4096 * page for page in (0, 4, 7)], np.uint64)
    lengths = np.array([4096, 4096, 4097], np.uint64)
    assert _core.populate(starts, lengths, _core.StopToken()) == (2, 0)
    assert not file.damaged
