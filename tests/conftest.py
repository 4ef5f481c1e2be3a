"""Fixtures shared by the suite."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import children
from hub_repos import Hub
from hub_server import serving


@cache
def has_gpu() -> bool:
    from relex_ext.backends.available import no_gpu

    return no_gpu(("cuda", "xpu")) is None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not has_gpu():
        pytest.skip("marked gpu: no GPU that torch can use was found")


@pytest.fixture(autouse=True)
def no_forced_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    """A RELEX_ISA of the caller's shell would silently narrow what is tested."""
    monkeypatch.delenv("RELEX_ISA", raising=False)


@pytest.fixture(autouse=True)
def no_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not about GPUs is the same with and without one. Processes that tests start, too."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr("relex_ext.backends.available.gpu_may_exist", lambda: False)
        for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("ZE_AFFINITY_MASK", "none")


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in pieces (tests/write_pieces.py), not to be changed."""
    root = tmp_path_factory.mktemp("pieces")
    children.printed("import sys, write_pieces; write_pieces.main(sys.argv[1])", root)
    return root


@pytest.fixture
def dcp(pieces: Path, tmp_path: Path) -> Path:
    """A checkpoint of two processes, to be changed."""
    place = tmp_path / "run" / "checkpoint-10" / "pytorch_model_fsdp_0"
    shutil.copytree(pieces / "dcp-2" / "checkpoint-10" / "pytorch_model_fsdp_0", place)
    return place


@pytest.fixture
def ranks(pieces: Path, tmp_path: Path) -> Path:
    """The files of four ranks, to be changed."""
    place = tmp_path / "run" / "global_step_10" / "actor"
    shutil.copytree(pieces / "fsdp2-4" / "global_step_10" / "actor", place)
    return place


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub of its own, with an empty cache in ``tmp_path / "cache"`` and nobody logged in. The
    variables are for processes that a test starts; huggingface_hub reads them when it is imported.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # otherwise it is for the user to say
        disable_progress_bars()
    with serving() as server:
        places = {
            "HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        for name, value in places.items():
            monkeypatch.setenv(name, value)
            constant = name.removeprefix("HF_") if name == "HF_ENDPOINT" else name
            known = name != "HF_HUB_DISABLE_XET"  # 0.30 has no such constant
            monkeypatch.setattr(constants, constant, value, raising=known)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        hushing = ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "TQDM_POSITION")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", *hushing):
            monkeypatch.delenv(name, raising=False)
        yield server


@pytest.fixture
def bytes_read() -> Iterator[Callable[[], int]]:
    """A function: bytes this process has asked read() and pread() for since the test began."""
    place = Path("/proc/self/io")
    if not os.access(place, os.R_OK):
        pytest.skip("needs /proc/self/io")

    def counter() -> int:
        return int(place.read_text().split("rchar:")[1].split()[0])

    start = counter()
    yield lambda: counter() - start
