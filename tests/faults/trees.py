"""A folder's names and bytes, read, written and told apart."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

Tree = dict[str, bytes | None]
"""Path → a file's bytes, None for a folder. Parents come before what is in them."""


def read_tree(root: Path, name: str = "work") -> Tree:
    """``root/name`` and everything below it."""
    paths = [root / name, *sorted((root / name).rglob("*"))]
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in paths}


def write_tree(root: Path, tree: Tree) -> None:
    """In the place of what is there."""
    shutil.rmtree(root / next(iter(tree)))
    for path, data in tree.items():
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)


def tree_digest(tree: Tree) -> bytes:
    found = hashlib.sha256()
    for path, data in tree.items():
        found.update(f"{path}\0{-1 if data is None else len(data)}\0".encode())
        found.update(data or b"")
    return found.digest()
