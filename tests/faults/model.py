"""What a disk may hold after a power cut, from a record of calls.

Bytes are durable once their file is fsynced, names once their folder is; sync_file_range promises
nothing. A rename is one step whatever folders it concerns, and durable once the new name's is.
Until then anything may be there or not: bytes block by block, and names as far as the order of the
steps on each name goes.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from faults.shim import Entry
from faults.trees import Tree

BLOCK = 512


@dataclass(eq=False)
class File:
    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    written: set[int] = field(default_factory=set)
    """Blocks since then."""

    def write(self, offset: int, data: bytes) -> None:
        self.resize(max(len(self.data), offset + len(data)))
        self.data[offset : offset + len(data)] = data
        self.written.update(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))

    def resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def sync(self) -> None:
        self.durable = bytes(self.data)
        self.written.clear()

    def torn(self, size: int, blocks: Iterable[int]) -> bytes:
        """Cut or filled up with zeros, with some blocks as they were last written."""
        found = bytearray(self.durable[:size].ljust(size, b"\0"))
        for block in blocks:
            part = slice(block * BLOCK, min((block + 1) * BLOCK, size))
            found[part] = self.data[part].ljust(max(part.stop - part.start, 0), b"\0")
        return bytes(found[:size])


@dataclass(eq=False)
class Folder:
    names: dict[str, Node] = field(default_factory=dict)
    durable: dict[str, Node] = field(default_factory=dict)


Node = File | Folder

Place = tuple[Folder, str]


@dataclass(frozen=True, eq=False)
class Step:
    """One change of names. ``names``: what they stand for from then on; ``home``: the folder whose
    fsync makes it durable."""

    home: Folder
    names: Mapping[Place, Node | None]


IGNORED = frozenset({
    "open", "close", "read", "pread", "mmap", "announce", "populate", "release", "flock",
    "sync_file_range",
})  # fmt: skip


class Disk:
    """A folder's files as a record changes them. ``steps``: changes of names not durable yet."""

    def __init__(self, tree: Tree) -> None:
        """``tree``: durable already, parents before their children."""
        self.root = Folder()
        self.steps: list[Step] = []
        for path, data in tree.items():
            folder, name = self._place(path)
            folder.names[name] = Folder() if data is None else File(bytearray(data), data)
        for folder in self._all_folders():
            folder.durable = dict(folder.names)

    # ---- a call --------------------------------------------------------------------------------

    def apply(self, entry: Entry) -> None:
        """Do what a recorded call did."""
        if entry.result < 0 or entry.op in IGNORED or entry.path.endswith(" (deleted)"):
            return
        {
            "create": self._create,
            "mkdir": self._mkdir,
            "unlink": self._remove,
            "rmdir": self._remove,
            "rename": self._rename,
            "exchange": self._exchange,
            "link": self._link,
            "write": self._write,
            "pwrite": self._write,
            "fallocate": self._fallocate,
            "ftruncate": self._truncate,
            "fsync": self._sync,
            "fdatasync": self._sync,
        }[entry.op](entry)

    def _create(self, entry: Entry) -> None:
        place = self._place(entry.path)
        if place[1] not in place[0].names:
            self._step(place[0], {place: File()})
        elif entry.offset & os.O_TRUNC:
            self._file(entry).resize(0)

    def _mkdir(self, entry: Entry) -> None:
        place = self._place(entry.path)
        self._step(place[0], {place: Folder()})

    def _remove(self, entry: Entry) -> None:
        place = self._place(entry.path)
        self._step(place[0], {place: None})

    def _rename(self, entry: Entry) -> None:
        old, new = self._place(entry.path), self._place(entry.other)
        self._step(new[0], {old: None, new: old[0].names[old[1]]})

    def _exchange(self, entry: Entry) -> None:
        one, two = self._place(entry.path), self._place(entry.other)
        self._step(two[0], {one: two[0].names[two[1]], two: one[0].names[one[1]]})

    def _link(self, entry: Entry) -> None:
        place = self._place(entry.other)
        self._step(place[0], {place: self._node(entry.path)})

    def _write(self, entry: Entry) -> None:
        self._file(entry).write(entry.offset, entry.data)

    def _fallocate(self, entry: Entry) -> None:
        file = self._file(entry)
        file.resize(max(len(file.data), entry.offset + entry.length))

    def _truncate(self, entry: Entry) -> None:
        self._file(entry).resize(entry.length)

    def _sync(self, entry: Entry) -> None:
        node = self._node(entry.path)
        if isinstance(node, File):
            node.sync()
            return
        kept = self._needed([step for step in self.steps if step.home is node])
        for step in kept:
            for (folder, name), found in step.names.items():
                _put(folder.durable, name, found)
        self.steps = [step for step in self.steps if step not in kept]

    def _step(self, home: Folder, names: Mapping[Place, Node | None]) -> None:
        for (folder, name), node in names.items():
            _put(folder.names, name, node)
        self.steps.append(Step(home, names))

    def _needed(self, chosen: Sequence[Step]) -> list[Step]:
        """Steps, and those that came before them on the same names."""
        places: set[Place] = set()
        kept = []
        for step in reversed(self.steps):
            if step in chosen or not places.isdisjoint(step.names):
                kept.append(step)
                places.update(step.names)
        return kept[::-1]

    # ---- after the cut -------------------------------------------------------------------------

    def durable(self) -> Tree:
        """Nothing but what was promised."""
        return self._tree([], lambda file: file.durable)

    def everything(self) -> Tree:
        return self._tree(self.steps, lambda file: bytes(file.data))

    def names_only(self, zeros: bool) -> Tree:
        """All names, none of the bytes not promised: ``zeros`` in their place, or files cut."""

        def lost(file: File) -> bytes:
            return file.torn(len(file.data if zeros else file.durable), ())

        return self._tree(self.steps, lost)

    def by_chance(self, chance: random.Random, ordered: bool) -> Tree:
        """Some blocks, and the first of the steps or, not ``ordered``, some of them."""
        chosen = self.steps[: chance.randint(0, len(self.steps))]
        if not ordered:
            chosen = [step for step in self.steps if chance.random() < 0.5]

        def torn(file: File) -> bytes:
            size = chance.choice((len(file.data), len(file.durable)))
            share = chance.random()
            blocks = [block for block in sorted(file.written) if chance.random() < share]
            return file.torn(size, blocks)

        return self._tree(chosen, torn)

    def _tree(self, chosen: Sequence[Step], bytes_of: Callable[[File], bytes]) -> Tree:
        """Whatever can be reached by the durable names and the chosen steps."""
        names = {folder: dict(folder.durable) for folder in self._all_folders()}
        for step in self._needed(chosen):
            for (folder, name), node in step.names.items():
                _put(names[folder], name, node)
        tree: Tree = {}

        def walk(folder: Folder, path: PurePosixPath) -> None:
            for name, node in sorted(names[folder].items()):
                if isinstance(node, File):
                    tree[str(path / name)] = bytes_of(node)
                else:
                    tree[str(path / name)] = None
                    walk(node, path / name)

        walk(self.root, PurePosixPath())
        return tree

    # ---- paths ---------------------------------------------------------------------------------

    def _all_folders(self) -> set[Folder]:
        """Those that any name has ever stood for and may again."""
        changed = [item for step in self.steps for item in step.names.items()]
        found = {self.root, *(folder for (folder, _), _ in changed)}
        found.update(node for _, node in changed if isinstance(node, Folder))
        left = list(found)
        while left:
            folder = left.pop()
            for node in (*folder.names.values(), *folder.durable.values()):
                if isinstance(node, Folder) and node not in found:
                    found.add(node)
                    left.append(node)
        return found

    def _node(self, path: PurePosixPath | str) -> Node:
        node: Node = self.root
        for part in PurePosixPath(path).parts:
            assert isinstance(node, Folder)
            node = node.names[part]
        return node

    def _place(self, path: str) -> Place:
        whole = PurePosixPath(path)
        folder = self._node(whole.parent)
        assert isinstance(folder, Folder)
        return folder, whole.name

    def _file(self, entry: Entry) -> File:
        node = self._node(entry.path)
        assert isinstance(node, File)
        return node


def _put(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node
