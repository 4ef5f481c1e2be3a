"""relex list: one line for each step, whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from folders import INDEX, SINGLE, Raw, Spec, make_run, raw, write_model
from oracle import round_to
from relex_ext import InputError, ListedStep, list_checkpoints
from relex_ext.cli import main

SPECS = {"model.embed_tokens.weight": Spec((64, 32)), "model.norm.weight": Spec((32,), "F32")}
STEPS = (10, 20, 30, 40, 50)
MISSING = f"expected {SINGLE} or {INDEX}, found neither"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, STEPS, SPECS).checkpoints


def listing(capsys: pytest.CaptureFixture[str], *args: object) -> list[str]:
    assert main(["list", *map(str, args)]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out.splitlines()


def test_the_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-30" / SINGLE).unlink()
    (run / "checkpoint-20" / "config.json").write_text('{"tie_word_embeddings": true}')
    (run / "checkpoint-40" / "config.json").write_text('{"tie_word_embeddings": false}')
    assert listing(capsys, run) == [
        "step  folder         dtype     size  tensors  tied  complete",
        "  10  checkpoint-10  BF16   4.1 KiB        2  ?     yes",
        "  20  checkpoint-20  BF16   4.1 KiB        2  yes   yes",
        f"  30  checkpoint-30  -            -        -  -     no: {MISSING}",
        "  40  checkpoint-40  BF16   4.1 KiB        2  no    yes",
        "  50  checkpoint-50  BF16   4.1 KiB        2  ?     yes",
        "trainer: TRL, Hugging Face Trainer, Unsloth",
        "where weights are missing: relex gather RUN for FSDP, zero_to_fp32.py for DeepSpeed",
        "extrapolate: steps 10 to 50, 4 checkpoints, with --steps 10,20,40,50",
    ]


def test_what_extrapolate_would_use(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listing(capsys, run)[-1] == "extrapolate: steps 10 to 50, 5 checkpoints"
    for step in (50, 40):
        (run / f"checkpoint-{step}" / SINGLE).unlink()
    expected = "extrapolate: steps 10 to 30, 3 checkpoints, with --until 30"
    assert listing(capsys, run)[-1] == expected
    for step in (30, 20):
        (run / f"checkpoint-{step}" / SINGLE).unlink()
    expected = "extrapolate: expected at least 2 complete checkpoints, found 1"
    assert listing(capsys, run)[-1] == expected


def test_every_step_is_looked_at(run: Path) -> None:
    """Each with another defect, and none hides the next."""
    step = {n: run / f"checkpoint-{n}" for n in STEPS}
    data = (step[10] / SINGLE).read_bytes()
    (step[10] / SINGLE).write_bytes(data[:-1])
    (step[20] / "adapter_config.json").touch()
    write_model(step[30], {"other.weight": Raw("BF16", (2,), bytes(4))})
    (step[40] / SINGLE).rename(step[40] / f"{SINGLE}.incomplete")
    problems = [one.problem or "" for one in list_checkpoints(run)]
    assert len(problems) == 5
    assert f"{SINGLE}: header: " in problems[0]
    assert "a PEFT (LoRA) adapter" in problems[1]
    assert problems[2] == "tensor model.embed_tokens.weight: missing"
    assert "files still being written" in problems[3]
    assert problems[4] == ""


def test_a_folder_that_the_system_cannot_read(run: Path) -> None:
    found = list_checkpoints({5: run / ("x" * 300), 10: run / "checkpoint-10"})
    assert [one.problem for one in found] == ["cannot be read: File name too long", None]


def test_what_is_found_of_a_step(tmp_path: Path) -> None:
    """Bytes and dtypes are those of its tensors, the dtype with the most bytes first."""
    tensors = {
        "a.weight": raw(round_to(Raw("F32", (300,), bytes(1200)).values, "BF16"), "BF16"),
        "b.weight": Raw("F32", (200,), bytes(800)),
        "lm_head.weight": Raw("BF16", (5, 3), bytes(30)),
    }
    config = {"config.json": b'{"tie_word_embeddings": false}'}
    place = tmp_path / "global_step_7" / "actor" / "huggingface"
    write_model(place, tensors, [["a.weight"], ["b.weight", "lm_head.weight"]], companions=config)
    assert list_checkpoints(tmp_path) == (
        ListedStep(7, place, "by hand", ("F32", "BF16"), 1430, 3, False),
    )


def test_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-50" / SINGLE).unlink()
    found = json.loads("\n".join(listing(capsys, run, "--json")))
    assert found["usable"] == [10, 20, 30, 40]
    assert found["trainer"] == "TRL, Hugging Face Trainer, Unsloth"
    assert found["checkpoints"][0] == {
        "step": 10,
        "folder": str(run / "checkpoint-10"),
        "dtypes": ["BF16"],
        "bytes": 64 * 32 * 2 + 32 * 2,
        "tensors": 2,
        "tied": None,
        "adapter": False,
        "problem": None,
        "hint": None,
    }
    assert found["checkpoints"][4]["problem"] == MISSING


def test_phases_and_pairs_are_listed_as_other_commands_take_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = make_run(tmp_path / "again", (10, 20), SPECS).checkpoints
    lines = listing(capsys, run, again)
    assert [line.split()[:2] for line in lines[1:8]] == [
        *([str(step), f"run/checkpoint-{step}"] for step in STEPS),
        ["60", "again/run/checkpoint-10"],
        ["70", "again/run/checkpoint-20"],
    ]
    assert "steps 10 to 20 count as 60 to 70" in "\n".join(lines)
    pairs = [f"1={run / 'checkpoint-20'}", f"5={run / 'checkpoint-30'}"]
    assert listing(capsys, *pairs)[-1] == "extrapolate: steps 1 to 5, 2 checkpoints"


def test_one_folder_is_no_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (run / "checkpoint-20", tmp_path / "base", tmp_path / "nothing"):
        assert main(["list", str(place)]) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err.startswith(f"relex: error: {place}: expected ")
        with pytest.raises(InputError):
            list_checkpoints(place)


def test_a_name_that_steers_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-20" / "adapter_\x1b[2J").touch()
    (run / "checkpoint-20" / "adapter_model.\x1b[2J").touch()
    run.rename(run.parent / "r\x1bn")
    lines = listing(capsys, run.parent / "r\x1bn")
    assert "adapter_model.\\x1b[2J: a PEFT" in lines[2]
    assert all(line.isprintable() for line in lines)
