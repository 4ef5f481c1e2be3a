"""Inputs on a Hub of which only so much is on disk as is being read."""

from __future__ import annotations

import gc
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import children
from folders import RunFolder, Spec, make_run, model_digest
from hub_repos import TOKEN, Hub
from relex_ext import combine, extrapolate, forecast, scan, verify
from relex_ext.cli import main
from relex_ext.errors import InputError
from relex_ext.hub.mirror import Mirror
from relex_ext.identities import identities_of
from relex_ext.inputs import open_inputs

STEPS = tuple(range(1, 9))
LIMIT = 3_100_000
MODEL = {
    "model.embed_tokens.weight": Spec((131, 513), "F32", ("F32",)),
    **{f"model.layers.{i}.weight": Spec((71, 113), "F32", ("BF16", "F32")) for i in range(12)},
    "model.layers.0.norm": Spec((97,)),
    "model.layers.0.empty": Spec((0, 7)),
    "model.position_ids": Spec((1, 19), "I64", ("I64",), "integer"),
}
SHARDS = (tuple(MODEL)[:5], tuple(MODEL)[5:])


@pytest.fixture
def run(tmp_path: Path, hub: Hub) -> RunFolder:
    made = make_run(tmp_path / "local", STEPS, MODEL, shards=SHARDS)
    hub.upload("org/base", made.base)
    for step in STEPS:
        hub.upload("org/run", made.folder(step), f"step_{step}")
    return made


INPUTS: dict[str, Any] = {"revisions": "step_{1..8}", "progress": False}


def bounded(out: Path, limit: int | str = LIMIT, **options: Any) -> dict[str, str]:
    extrapolate("org/base", "org/run", 30, out, max_local=limit, **INPUTS, **options)
    gc.collect()
    assert not mirrors(), "gone with the run"
    return model_digest(out / "step_30")


def here(run: RunFolder, out: Path, **options: Any) -> dict[str, str]:
    extrapolate(run.base, run.checkpoints, 30, out, progress=False, **options)
    return model_digest(out / "step_30")


def mirrors() -> list[Path]:
    return list((Path(constants.HF_HUB_CACHE).parent / "relex").glob("mirror-*"))


def on_disk() -> int:
    paths = [path for mirror in mirrors() for path in mirror.rglob("*") if not path.is_symlink()]
    return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())


@contextmanager
def measured() -> Iterator[list[int]]:
    """Bytes on disk, as often as they can be counted."""
    found: list[int] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.02):
            try:
                found.append(on_disk())
            except FileNotFoundError:
                pass  # the mirror is being removed

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


OPTIONS: dict[str, dict[str, Any]] = {
    "one pass": {},
    "read": {"io": "pread"},
    "read twice": {"memory_limit": "2200KiB", "io": "pread"},
    "power": {"solver": "power"},
    "scanned first": {"solver": "power", "strength": 0.5},
    "some checkpoints": {"method": "two-point", "window": 3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_bytes_and_the_bound(
    tmp_path: Path, run: RunFolder, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of a run on folders here, and at no time more on disk than allowed: sampled, and
    counted after every fetch."""
    fetch = Mirror.fetch

    def counted(self: Mirror, *arguments: Any) -> bool:
        done = fetch(self, *arguments)
        sizes.append(on_disk())
        return done

    monkeypatch.setattr(Mirror, "fetch", counted)
    with measured() as sizes:
        found = bounded(tmp_path / "out", **options)
    plan = extrapolate(run.base, run.checkpoints, 30, tmp_path / "no", dry_run=True, **options).plan
    assert (plan.passes > 1) == ("memory_limit" in options)
    assert found == here(run, tmp_path / "expected", **options)
    assert LIMIT // 3 < max(sizes) <= LIMIT


def test_only_what_is_read_is_fetched_once(tmp_path: Path, hub: Hub, run: RunFolder) -> None:
    bounded(tmp_path / "out")
    weights = {path: sent for path, sent in hub.sent.items() if path.endswith(".safetensors")}
    folders = [run.base, *map(run.folder, STEPS)]
    held = sum(path.stat().st_size for f in folders for path in f.glob("*.safetensors"))
    buffers = len(STEPS) * 19 * 8  # of the checkpoints; the base's are written
    assert sum(weights.values()) == held - buffers
    assert hub.ranges.total() == sum(
        n for path, n in hub.requests.items() if "/cdn/" in path and path.startswith("GET")
    )


def test_checkpoints_without_weight_are_not_fetched(
    tmp_path: Path, hub: Hub, run: RunFolder
) -> None:
    bounded(tmp_path / "out", method="secant")
    sent = sum(sent for path, sent in hub.sent.items() if path.endswith(".safetensors"))
    held = sum(p.stat().st_size for p in run.folder(8).glob("*.safetensors"))
    assert sent < 4 * held, "base, newest, headers: of nine"


def test_two_passes_fetch_once_where_there_is_room(
    tmp_path: Path, hub: Hub, run: RunFolder
) -> None:
    found = bounded(tmp_path / "out", "1GiB", strength="auto")
    once = hub.sent.total()
    assert found == here(run, tmp_path / "expected", strength="auto")
    hub.sent.clear()
    assert bounded(tmp_path / "again", LIMIT, strength="auto") == found
    assert 1.7 * once < hub.sent.total() < 2 * once


def test_scan_combine_verify(tmp_path: Path, run: RunFolder) -> None:
    made = scan("org/base", "org/run", max_local=LIMIT, **INPUTS)
    there = scan(run.base, run.checkpoints, progress=False)
    weights = forecast(made, [30])
    for name in made.names:
        assert (made.grams[name] == there.grams[name]).all()
    out = tmp_path / "out"
    combine("org/base", "org/run", weights, out, max_local=LIMIT, **INPUTS)
    assert model_digest(out / "step_30") == here(run, tmp_path / "expected")
    assert verify(out, samples=50, progress=False).ok


def test_files_are_known_by_the_same_names_as_in_the_cache(run: RunFolder) -> None:
    """So that a run that was begun with --max-local goes on without."""
    options = {"revisions": INPUTS["revisions"]}
    streamed = identities_of(open_inputs("org/base", "org/run", max_local=LIMIT, **options))
    assert streamed == identities_of(open_inputs("org/base", "org/run", **options))


def test_nonfinite_tensors_are_carried(tmp_path: Path, hub: Hub, run: RunFolder) -> None:
    name = "model.layers.3.weight"
    shard = run.folder(7) / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    begin = json.loads(data[8:start])[name]["data_offsets"][0]
    data[start + begin : start + begin + 4] = b"\xff\xff\xff\xff"
    shard.write_bytes(data)
    hub.upload("org/run", run.folder(7), "step_7")
    carried = {"nonfinite": "carry"}
    assert bounded(tmp_path / "out", **carried) == here(run, tmp_path / "expected", **carried)


def refused(message: str, out: Path, limit: int | str = LIMIT, **options: Any) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)) as caught:
        bounded(out, limit, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def least_for(out: Path) -> int:
    with pytest.raises(InputError) as caught:
        bounded(out, "100KiB")
    return int(re.findall(r"at least (\d+) bytes", str(caught.value))[0])


def test_what_cannot_be_bounded(tmp_path: Path, run: RunFolder) -> None:
    out = tmp_path / "out"
    refused("max_local: expected at least ", out, "100KiB")
    with pytest.raises(InputError, match=r"^max_local: expected inputs on the Hub, found folders"):
        extrapolate(run.base, run.checkpoints, 30, out, max_local=LIMIT)
    assert bounded(out, least_for(out)) == here(run, tmp_path / "expected")


@pytest.mark.parametrize("place", ["header", "data"])
def test_a_server_that_lies(tmp_path: Path, hub: Hub, run: RunFolder, place: str) -> None:
    """The header is judged as any other; of the data, only what is not there can be seen."""
    name = "step_5/model-00002-of-00002.safetensors"
    commit = hub.upload("org/one", run.folder(5), inside="step_5/")
    true = hub.repos["org/one"].commits[commit][name]
    hub.lies[name] = {"header": b"\xff" * len(true), "data": true[: len(true) // 2]}[place]
    steps = {step: f"org/run@step_{step}" for step in STEPS} | {5: "hf://org/one/step_5"}
    found = {
        "header": f"/models--org--one/snapshots/{commit}/{name}: not a safetensors file: expected",
        "data": f"org/one@{commit}: {name}: expected ",
    }
    with pytest.raises(InputError, match=re.escape(found[place])):
        extrapolate("org/base", steps, 30, tmp_path / "out", max_local=LIMIT, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_connection_that_breaks(
    tmp_path: Path, hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = here(run, tmp_path / "expected")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.drops["model-00001-of-00002.safetensors"] = 5
    assert bounded(tmp_path / "out") == expected


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path, run: RunFolder) -> None:
    code = """
import os
from relex_ext.hub.mirror import Mirror
kept = Mirror(1 << 20)
os._exit(0)
"""
    assert children.run(code)[0] == 0
    (left,) = mirrors()
    other = Mirror(1 << 20)
    assert mirrors() == [other.folder] != [left]
    third = Mirror(1 << 20)
    assert sorted(mirrors()) == sorted([other.folder, third.folder]), "of those that live, none"


def test_the_plan_says_what_is_possible(
    hub: Hub, tmp_path: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extrapolate", "--base", "org/base", "--checkpoints", "org/run", "--revisions"]
    command += ["step_{1..8}", "--target-step", "30", "--out", str(tmp_path / "out")]
    assert main([*command, "--max-local", "4MiB", "--dry-run"]) == 0
    row = re.search(r"to fetch: +(.*)", capsys.readouterr().out)
    assert row is not None
    assert re.fullmatch(
        r"[\d.]+ MiB, at most 4(\.0*)? MiB on disk at a time \(at least [\d.]+ [KM]iB\)", row[1]
    )
    sent = sum(n for path, n in hub.sent.items() if path.endswith(".safetensors"))
    assert sent < 100_000, "headers, and the base's buffers"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_the_recipe(
    tmp_path: Path, hub: Hub, run: RunFolder, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """docs/hub.md's, with this run's names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    inputs = "--base org/base --checkpoints org/run --revisions step_{1..8} --max-local 3100KB -q"
    assert main(f"scan {inputs} --out scan.safetensors".split()) == 0
    assert main(["verdict", "scan.safetensors", "--target-step", "30"]) == 0
    assert capsys.readouterr().out.startswith("step 30: ")
    forecasting = f"extrapolate {inputs} --scan scan.safetensors --target-step 30 --out forecast"
    assert main([*forecasting.split(), "--push-to", "me/forecast"]) == 0
    pushed = hub.repos["me/forecast"]
    files = pushed.commits[pushed.refs["main"]]
    expected = here(run, tmp_path / "expected")
    assert {n: hashlib.sha256(files[n]).hexdigest() for n in expected} == expected
