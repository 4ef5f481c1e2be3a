"""The hidden folder beside an output, and the journal in it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from folders import digest, listing
from relex_ext import _core
from relex_ext.errors import Interrupted, OutputError, ReadError
from relex_ext.journal import Journal
from relex_ext.workspace import JOURNAL, REPLACED, Workspace, space_held, workspace_of

JOB = {"inputs": {"base": "b", "10": "x"}, "options": {"rank": 1, "fit": "linear"}}


def nothing() -> None:
    pass


def make(out: Path, job: Any = JOB, check: Callable[[], None] = nothing) -> Workspace:
    return Workspace(out, job, check)


def stop_with(error: BaseException, out: Path, done: int = 1) -> None:
    """A run that has made a file and noted ``done`` tensors, and ends so."""
    with make(out) as place:
        (place.path / "made").write_text("half")
        for i in range(done):
            place.journal.add("written", f"t{i}", ["d"])
        raise error


# ---- the journal -------------------------------------------------------------------------------


def journal_of(path: Path, job: Any = JOB) -> Journal:
    journal = Journal(path, job)
    journal.open()
    return journal


def test_a_journal_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first = journal_of(path)
    assert (first.done, first.differs) == ({}, None)
    first.add("scanned", "a\nb \u2028", ["1" * 64])
    first.add("written", "a\nb \u2028", ["2" * 64, "3" * 64])
    first.close()
    again = journal_of(path)
    assert again.done == {
        ("scanned", "a\nb \u2028"): ["1" * 64], ("written", "a\nb \u2028"): ["2" * 64, "3" * 64]
    }  # fmt: skip
    again.add("written", "c", [])
    again.close()
    assert len(path.read_bytes().splitlines()) == 4
    assert set(journal_of(path).done) == {*again.done}


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_torn_line_is_none(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    journal = journal_of(path)
    for name in "ab":
        journal.add("written", name, ["0123"])
    journal.close()
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    path.write_bytes(whole[:-cut])
    expected = {("written", "a"): ["0123"]}
    again = journal_of(path)
    assert again.done == (expected if cut <= last else {})
    again.add("written", "b", ["0123"])
    again.close()
    assert path.read_bytes() == whole or cut > last


def test_nothing_behind_a_damaged_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = journal_of(path)
    for name in "abc":
        journal.add("written", name, ["0"])
    journal.close()
    for i in range(path.stat().st_size):
        data = bytearray(path.read_bytes())
        data[i] ^= 4
        (tmp_path / "damaged").write_bytes(data)
        again = Journal(tmp_path / "damaged", JOB)
        lines = bytes(data[:i]).count(b"\n")
        assert [name for _, name in again.done] == list("abc")[: max(0, lines - 1)]


@pytest.mark.parametrize(
    ("job", "why"),
    [
        ({**JOB, "inputs": {"base": "b", "10": "y"}}, 'inputs: 10 was "x", is "y"'),
        ({**JOB, "inputs": {"base": "b"}}, 'inputs: 10 was "x", is null'),
        ({**JOB, "options": {"rank": 2, "fit": "linear"}}, "options: rank was 1, is 2"),
        ({**JOB, "version": "2"}, 'version was null, is "2"'),
    ],
)
def test_another_job_begins_afresh_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, job: object, why: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        stop_with(KeyboardInterrupt(), out)
    with caplog.at_level("INFO", "relex_ext"), make(out, job) as place:
        assert listing(place.path) == [JOURNAL]
        assert place.journal.done == {}
    assert f"begins afresh; the unfinished run there was another: {why}" in caplog.text


# ---- what is left behind -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ReadError("EIO")])
def test_what_is_worth_going_on_with_stays(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"
    kind = Interrupted if isinstance(error, KeyboardInterrupt) else type(error)
    with pytest.raises(kind) as caught:
        stop_with(error, out)
    if kind is Interrupted:
        hidden = workspace_of(out)
        said = f"{out}: what is done is kept in {hidden}; the same command goes on"
        assert str(caught.value) == said
    with make(out) as place:
        assert listing(place.path) == [JOURNAL, "made"]
        assert place.journal.done == {("written", "t0"): ["d"]}
    assert listing(tmp_path) == [], "ended without an output: nothing to go on with"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ReadError("EIO")])
def test_nothing_done_is_nothing_kept(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        stop_with(error, tmp_path / "new" / "out", done=0)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError(), OSError(28, "full"), OutputError("fsync")])
def test_other_errors_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        stop_with(error, tmp_path / "new" / "out")
    assert listing(tmp_path) == []


def test_the_space_it_holds(tmp_path: Path) -> None:
    assert space_held(tmp_path / "out") == 0
    with make(tmp_path / "out") as place:
        (place.path / "made").write_bytes(bytes(1 << 20))
        assert 1 << 20 <= space_held(tmp_path / "out") < (1 << 20) + (1 << 16)


# ---- one at a time -----------------------------------------------------------------------------


def test_the_second_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with make(out) as place:
        place.journal.add("written", "t", ["d"])
        with pytest.raises(OutputError, match="another relex is writing it"), make(out):
            pass
        assert place.journal.done and (place.path / JOURNAL).is_file()
    assert listing(tmp_path) == []


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with make(tmp_path / "out") as place:
        (place.path / "made").mkdir()
        place.publish("made")
    assert listing(tmp_path) == ["out"]


def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    hidden = workspace_of(tmp_path / "out")
    hidden.mkdir()
    (hidden / "thesis.tex").write_text("the only copy")
    with pytest.raises(OutputError, match=r"expected relex's unfinished work, found thesis\.tex"):
        make(tmp_path / "out").__enter__()
    assert (hidden / "thesis.tex").read_text() == "the only copy"


def test_a_link_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / JOURNAL).write_text("")
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    workspace_of(tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="cannot be made"):
        make(tmp_path / "out").__enter__()
    assert (tmp_path / "elsewhere" / "kept").read_text() == "kept"


def test_the_output_is_checked_again_when_nobody_else_can_be_at_work(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"

    def there() -> None:
        raise OutputError("exists already")

    with pytest.raises(OutputError, match="exists already"):
        make(out, check=there).__enter__()
    assert listing(tmp_path) == []


# ---- publishing --------------------------------------------------------------------------------


def old_output(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    return out


def publish(out: Path, name: str = "new") -> None:
    with make(out) as place:
        (place.path / "made").mkdir()
        (place.path / "made" / name).write_text(name)
        place.publish("made")


def test_an_earlier_output_is_exchanged_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = old_output(tmp_path)
    seen = []
    real = _core.exchange

    def watched(a: Path, b: Path) -> None:
        seen.append(listing(tmp_path))
        real(a, b)
        seen.append(listing(tmp_path))

    monkeypatch.setattr(_core, "exchange", watched)
    publish(out)
    assert ["out/old" in seen[0], "out/new" in seen[1]] == [True, True]
    assert listing(tmp_path) == ["out", "out/new"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_core, "exchange", cannot)
    publish(old_output(tmp_path))
    assert listing(tmp_path) == ["out", "out/new"]


@pytest.mark.parametrize("between", [False, True])
def test_a_failing_rename_keeps_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: bool
) -> None:
    """At once, or where two renames do the work of one, at the second."""
    out = old_output(tmp_path)
    before = digest(out)
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if self.name == "made":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, to)

    def fail(*_: object) -> None:
        code = errno.EINVAL if between else errno.EIO
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_core, "exchange", fail)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputError, match="cannot be published: Input/output error"):
        publish(out)
    assert digest(out) == before
    assert listing(tmp_path) == ["out", "out/old"]


def test_an_output_caught_between_two_renames_is_put_back(tmp_path: Path) -> None:
    out = old_output(tmp_path)
    with pytest.raises(Interrupted):
        stop_with(KeyboardInterrupt(), out)
    out.rename(workspace_of(out) / REPLACED)  # as a power cut leaves it

    def check() -> None:
        assert (out / "old").read_text() == "old"

    with make(out, check=check) as place:
        assert place.journal.done and not (place.path / REPLACED).exists()


def test_what_was_replaced_goes_when_the_new_one_is_there(tmp_path: Path) -> None:
    out = old_output(tmp_path)
    shutil.rmtree(out)
    out.write_text("a scan file, say")
    with pytest.raises(Interrupted):
        stop_with(KeyboardInterrupt(), out)
    (workspace_of(out) / REPLACED).mkdir()
    (workspace_of(out) / REPLACED / "older").write_text("older")
    with make(out) as place:
        assert not (place.path / REPLACED).exists()
        place.publish("made")
    assert listing(tmp_path) == ["out"] and out.read_text() == "half"
