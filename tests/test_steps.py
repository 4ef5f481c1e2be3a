"""The steps of a run: names, selection, and those that their trainer has not finished."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from folders import write_model
from relex_ext.checkpoints import open_checkpoint
from relex_ext.errors import InputError
from relex_ext.steps import check_finished, discover, resolve, select, step_of


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("global_step_12", 12),
        ("global_step12", 12),
        ("checkpoint-7", 7),
        ("checkpoint-0", 0),
        ("step_500", 500),
        ("step-500", 500),
        ("step500", 500),
        ("iter_0000012", 12),
        ("iter_12", 12),
        ("checkpoint-007", 7),
        ("checkpoint_7", None),
        ("checkpoint-7-backup", None),
        ("old-checkpoint-7", None),
        ("step_1.5", None),
        ("step_-3", None),
        ("step_", None),
        ("checkpoint", None),
        ("Step_5", None),
        ("step_5\n", None),
        ("epoch_3", None),
        ("12", None),
    ],
)
def test_step_names(name: str, step: int | None) -> None:
    assert step_of(name) == step


@pytest.mark.parametrize(
    "pattern", ["global_step_{}", "checkpoint-{}", "step_{}", "step{}", "iter_{:07}"]
)
def test_discover_sorts_by_number(tmp_path: Path, pattern: str) -> None:
    steps = [100, 9, 10, 2, 1000]
    for step in steps:
        (tmp_path / pattern.format(step)).mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "checkpoint-77").write_text("a file, not a folder")
    found = discover(tmp_path)
    assert list(found.items()) == [(s, tmp_path / pattern.format(s)) for s in sorted(steps)]


def test_discover_follows_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "step_4").symlink_to(tmp_path / "elsewhere")
    assert discover(run) == {4: run / "step_4"}


def test_one_step_twice(tmp_path: Path) -> None:
    for name in ("checkpoint-5", "step_5"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"step 5 twice: .*checkpoint-5 and .*step_5"):
        discover(tmp_path)


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: None, lambda p: p.write_text("")])
def test_no_run(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "run")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "run"))):
        discover(tmp_path / "run")


def test_resolve_takes_mappings_pairs_lists_and_folders(tmp_path: Path) -> None:
    folders = {step: tmp_path / f"step_{step}" for step in (30, 4, 20)}
    for folder in folders.values():
        folder.mkdir()
    expected = [(4, folders[4]), (20, folders[20]), (30, folders[30])]
    assert list(resolve(tmp_path).items()) == expected
    assert list(resolve(str(tmp_path)).items()) == expected
    assert list(resolve(folders).items()) == expected
    assert list(resolve({s: str(f) for s, f in folders.items()}).items()) == expected
    assert list(resolve(list(folders.items())).items()) == expected
    assert list(resolve([str(f) for f in folders.values()]).items()) == expected


def test_resolve_refuses_duplicates(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="step 3 twice"):
        resolve([(3, tmp_path / "x"), (3, tmp_path / "y")])


FOUND = {step: Path(str(step)) for step in (5, 10, 20, 40)}


@pytest.mark.parametrize(
    ("until", "steps", "expected"),
    [
        (None, None, [5, 10, 20, 40]),
        (20, None, [5, 10, 20]),
        (39, None, [5, 10, 20]),
        (1000, None, [5, 10, 20, 40]),
        (None, [40, 5], [5, 40]),
        (20, [40, 20, 5], [5, 20]),
    ],
)
def test_select(until: int | None, steps: list[int] | None, expected: list[int]) -> None:
    assert list(select(FOUND, until, steps).items()) == [(s, FOUND[s]) for s in expected]


@pytest.mark.parametrize(
    ("until", "steps", "message"),
    [
        (5, None, "at least 2, found 1"),
        (4, None, "at least 2, found 0"),
        (None, [10], "at least 2"),
        (None, [], "at least 2"),
        (None, [10, 11, 12], "no checkpoint of step 11, 12; found 5, 10, 20, 40"),
        (None, [10, 10, 20], "each step once"),
    ],
)
def test_select_refuses(until: int | None, steps: list[int] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(FOUND, until, steps)


def test_select_turns_numpy_steps_into_integers() -> None:
    """They end up in JSON."""
    chosen = select(FOUND, steps=np.array([20, 5]))
    assert list(chosen) == [5, 20]
    assert {type(step) for step in chosen} == {int}


# ---- steps that are not finished -----------------------------------------------------------------


def run_of(root: Path, *names: str) -> dict[int, Path]:
    for name in names:
        (root / name).mkdir(parents=True)
    return discover(root)


def test_a_marker_that_only_finished_steps_have(tmp_path: Path) -> None:
    found = run_of(tmp_path, "step_1", "step_2", "step_3")
    assert select(found) == found
    for step in (1, 2):
        (found[step] / "STABLE").touch()
    with pytest.raises(InputError) as caught:
        select(found)
    assert str(caught.value) == (
        f"{tmp_path}/step_3: expected a finished step, but prime-rl puts STABLE into the finished "
        f"ones of {tmp_path}; leave it out (until, steps)"
    )
    assert list(select(found, until=2)) == [1, 2]
    assert list(select(found, steps=[1, 2])) == [1, 2]
    (found[3] / "STABLE").touch()
    assert list(select(found)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("tracker", "pattern", "trainer"),
    [
        ("latest_checkpointed_iteration.txt", "global_step_{}", "verl and Megatron"),
        ("latest_checkpointed_iteration.txt", "iter_{:07}", "verl and Megatron"),
        ("latest_ckpt_global_step.txt", "global_step_{}", "SkyRL"),
    ],
)
def test_a_tracker_of_the_newest_finished(
    tmp_path: Path, tracker: str, pattern: str, trainer: str
) -> None:
    found = run_of(tmp_path, *(pattern.format(step) for step in (10, 20, 30)))
    (tmp_path / tracker).write_text("20\n")
    with pytest.raises(InputError) as caught:
        select(found)
    assert str(caught.value) == (
        f"{found[30]}: expected a finished step, but {trainer} noted 20 as the newest in "
        f"{tmp_path / tracker}; leave it out (until, steps)"
    )
    assert list(select(found, until=20)) == [10, 20]
    (tmp_path / tracker).write_text("30")
    assert list(select(found)) == [10, 20, 30]


def test_the_step_counts_and_not_what_it_is_called_here(tmp_path: Path) -> None:
    """The second phase of a run counts on from the first, its tracker does not; and a folder in a
    step's may be given for it."""
    for phase in ("first", "second"):
        run_of(tmp_path / phase, "global_step_5", "global_step_10")
        (tmp_path / phase / "latest_checkpointed_iteration.txt").write_text("10")
    assert list(select(resolve([tmp_path / "first", tmp_path / "second"]))) == [5, 10, 15, 20]
    deep = tmp_path / "second" / "global_step_10" / "actor" / "huggingface"
    deep.mkdir(parents=True)
    check_finished([deep])
    (tmp_path / "second" / "latest_checkpointed_iteration.txt").write_text("5")
    with pytest.raises(InputError, match="global_step_10: expected a finished step"):
        check_finished([deep])


def test_trackers_that_say_no_number(tmp_path: Path) -> None:
    found = run_of(tmp_path, "iter_0000010", "iter_0000020")
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("release")  # Megatron, of converted weights
    assert select(found) == found
    for text in ("", "ten", "\x1b[2J", "9" * 5000):
        tracker.write_text(text)
        with pytest.raises(InputError, match=f"^{re.escape(str(tracker))}: expected") as caught:
            select(found)
        assert str(caught.value).isprintable()
    tracker.unlink()
    os.mkfifo(tracker)
    with pytest.raises(InputError, match="expected a regular file, found a FIFO"):
        select(found)


NAMES = ("tmp_step_3", "tmp-checkpoint-3", "tmp_checkpoint-3", "checkpoint-3.tmp",
         "global_step_3.incomplete", "step_3.partial")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_steps_being_written(tmp_path: Path, name: str) -> None:
    """Passed over in a run's folder, refused where one is asked for by name."""
    found = run_of(tmp_path, "step_1", "step_2", name)
    assert list(found) == [1, 2]
    message = f"^{tmp_path}/{name}: expected a finished step, found one begun and not finished"
    with pytest.raises(InputError, match=message):
        select({**found, 3: tmp_path / name})
    write_model(tmp_path / name, {})
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["tmp_abc", "tmp", "model.tmp", "tmp-model", "step_3.old"])
def test_names_that_only_sound_like_it(tmp_path: Path, name: str) -> None:
    check_finished([tmp_path / name])


def test_a_run_that_cannot_be_listed() -> None:
    """Its steps may still be given one by one."""
    found = {1: Path("nowhere/step_1"), 2: Path("nowhere/step_2")}
    assert select(found) == found
