"""What a Hub on this machine holds: repositories in memory, and how it describes their files.

Commits are whole trees.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tree = dict[str, bytes]
TOKEN = "hf_writer"


@dataclass
class Repo:
    """``refs``: branch or tag → commit; ``gated``: nobody but the writer may read it."""

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Tree] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, branch: str, files: Mapping[str, bytes | None]) -> str:
        """What a branch has, with these files; None: without it."""
        before = self.commits.get(self.refs.get(branch, ""), {".gitattributes": b""})
        tree = {path: data for path, data in {**before, **files}.items() if data is not None}
        described = {path: hashlib.sha256(data).hexdigest() for path, data in tree.items()}
        sha = hashlib.sha1(json.dumps([len(self.commits), described]).encode()).hexdigest()
        self.commits[sha] = tree
        self.refs[branch] = sha
        return sha


@dataclass
class Hub:
    """``sent``: bytes of files by path; ``ranges``: how many requests for a part; ``drops``: path →
    how often its connection breaks after half of what was asked for; ``lies``: path → what is
    sent in place of its contents; ``requests``: how many of each method and path."""

    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    ranges: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    lies: dict[str, bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    url: str = ""
    cdn: str = ""
    """The same server under the name of another host, which gets no token."""

    def upload(self, repo: str, folder: Path, branch: str = "main", inside: str = "") -> str:
        """A commit of a folder's files."""
        files = {
            f"{inside}{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return self.repos.setdefault(repo, Repo()).commit(branch, files)


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def sibling(path: str, data: bytes) -> dict[str, Any]:
    """As a model's info describes a file."""
    found = described(path, data)
    sibling = {"rfilename": path, "size": len(data), "blobId": found["oid"]}
    if "lfs" in found:
        lfs = found["lfs"]
        sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}
    return sibling


def described(path: str, data: bytes) -> dict[str, Any]:
    """As the tree's endpoint describes a file."""
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    found["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if is_large(path):
        sha256 = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
    return found
