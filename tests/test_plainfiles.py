"""Files of folders that may have been made to deceive: links, odd kinds, and too much of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from folders import INDEX, SINGLE, raw, write_model
from relex_ext.checkpoints import companions_in, open_checkpoint
from relex_ext.errors import InputError
from relex_ext.plainfiles import opened, read_at, read_small

W = {"w": raw(np.arange(4, dtype=np.uint16), "BF16")}


def linked(path: Path, target: Path) -> Path:
    """The file moved to ``target``, a relative link in its place as the Hub's cache has them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    path.symlink_to(os.path.relpath(target, path.parent))
    return path


def refuse_link(folder: Path, link: Path, target: Path) -> None:
    message = f"{link}: expected a part of its folder, found a link to {target}; copy it, or"
    with pytest.raises(InputError, match="^" + re.escape(message)):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_a_link_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model", W, companions={"config.json": b"{}"})
    link = linked(folder / name, tmp_path / "elsewhere" / name)
    refuse_link(folder, link, tmp_path / "elsewhere" / name)


@pytest.mark.parametrize("name", [INDEX, "model-00001-of-00001.safetensors"])
def test_a_link_out_of_the_folder_among_shards(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model", W, [["w"]])
    link = linked(folder / name, tmp_path / "model-2" / name)
    refuse_link(folder, link, tmp_path / "model-2" / name)


def test_links_within_the_folder_and_of_the_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", W)
    linked(folder / SINGLE, folder / "parts" / "x")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step_1").symlink_to(tmp_path / "link")
    for place in (folder, tmp_path / "link", tmp_path / "run" / "step_1"):
        assert open_checkpoint(place).tensors["w"].nbytes == 8


@pytest.mark.parametrize("sub", ["huggingface", "actor/huggingface", "actor"])
def test_a_subfolder_that_is_a_link_out(tmp_path: Path, sub: str) -> None:
    step = tmp_path / "global_step_1"
    write_model(step / "actor/huggingface" if "actor" in sub else step / "huggingface", W)
    assert open_checkpoint(step).tensors["w"].nbytes == 8
    linked(step / sub, tmp_path / "elsewhere" / "x")
    with pytest.raises(InputError, match="expected a part of its folder, found a link to"):
        open_checkpoint(step)


def hub_model(cache: Path, name: str, target: str) -> Path:
    """A snapshot as the Hub's cache holds it, its weights a link to ``target``."""
    folder = cache / f"models--{name}" / "snapshots" / "8fa2"
    write_model(folder, W, companions={"config.json": b"{}"})
    linked(folder / SINGLE, cache / target)
    return folder


def test_links_of_a_hub_cache(tmp_path: Path) -> None:
    good = hub_model(tmp_path, "a--b", "models--a--b/blobs/5a3c")
    linked(good / "config.json", tmp_path / "models--a--b" / "blobs" / "77")
    assert open_checkpoint(good).tensors["w"].nbytes == 8
    assert companions_in(good, ["config.json"]) == {"config.json": b"{}"}
    target = "models--a--b/blobs/deep/er"
    bad = hub_model(tmp_path, "c--d", target)
    refuse_link(bad, bad / SINGLE, tmp_path / target)
    target = "models--a--b/blobs/5a3d"
    bad = hub_model(tmp_path, "e--f", target)
    refuse_link(bad, bad / SINGLE, tmp_path / target)
    (tmp_path / "models--a--b" / "blobs" / "5a3c").unlink()
    with pytest.raises(InputError, match="cannot be read: No such file or directory"):
        open_checkpoint(good)


def test_links_of_a_hub_cache_whose_repositories_share_blobs(tmp_path: Path) -> None:
    good = hub_model(tmp_path, "a--b", "models--a--b/blobs/5a3c")
    linked(tmp_path / "models--a--b" / "blobs" / "5a3c", tmp_path / "blobs" / "9f" / "9f11")
    assert open_checkpoint(good).shards[0].blob == "5a3c"
    bad = hub_model(tmp_path, "c--d", "blobs/9f11")
    refuse_link(bad, bad / SINGLE, tmp_path / "blobs" / "9f11")


def test_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / SINGLE).symlink_to(SINGLE)
    with pytest.raises(InputError, match="cannot be read: Too many levels of symbolic links"):
        open_checkpoint(tmp_path)


def test_reading_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert read_small(path, 10) == b"0123456789"
    with pytest.raises(InputError, match="expected at most 9 bytes, found 10"):
        read_small(path, 9)
    with opened(path, tmp_path) as (descriptor, info):
        assert info.st_size == 10
        assert read_at(path, descriptor, 3, 4) == b"3456"
        os.truncate(path, 5)
        with pytest.raises(InputError, match="truncated while it was read: 2 bytes are missing"):
            read_at(path, descriptor, 3, 4)
    with pytest.raises(InputError, match="expected a file, found embedded null byte"):
        read_small(tmp_path / "a\0b", 10)


# ---- companions ----------------------------------------------------------------------------------


def test_companions_are_found_by_name(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "b.py", "a.py", "weights.bin", "TOKENIZER"):
        (tmp_path / name).write_text(name)
    (tmp_path / "tokenizer_old").mkdir()
    (tmp_path / "a.link.py").symlink_to("a.py")
    assert list(companions_in(tmp_path, ["tokenizer*", "*.py"]).items()) == [
        ("a.link.py", b"a.py"),
        ("a.py", b"a.py"),
        ("b.py", b"b.py"),
        ("tokenizer.json", b"tokenizer.json"),
    ]
    assert companions_in(tmp_path, []) == {}


@pytest.mark.parametrize("target", ["/etc/hostname", "../secret", "/dev/zero", "gone"])
def test_a_companion_that_is_a_link_out(tmp_path: Path, target: str) -> None:
    """It would be copied into an output, which may be published."""
    (tmp_path / "secret").write_text("secret")
    folder = write_model(tmp_path / "model", W)
    (folder / "tokenizer.json").symlink_to(target)
    with pytest.raises(InputError, match=f"^{folder}/tokenizer.json: (expected|cannot be read)"):
        companions_in(folder, ["tokenizer*"])


def test_companions_that_are_too_much(tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 130 << 20)
    left = (256 - 130) << 20
    with pytest.raises(InputError, match=f"b.py: expected at most {left} bytes, found {130 << 20}"):
        companions_in(tmp_path, ["*.py"])
    (tmp_path / "a.py").unlink()
    os.mkfifo(tmp_path / "a.py")
    with pytest.raises(InputError, match=r"a.py: expected a regular file, found a FIFO"):
        companions_in(tmp_path, ["*.py"])
