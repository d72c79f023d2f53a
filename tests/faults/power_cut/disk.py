"""A disk with its cache: what is on it for certain, and what a power cut may or may not leave of the rest.

A file's bytes are safe once the file was synced, its name once its directory was. Of what was not synced a cut keeps
nothing, or a random part: any of the writes, of a directory's changes the first few, since file systems journal them in
order. A rename within a directory is one change, one between two directories is two.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeAlias

#: ("write", offset, bytes) or ("truncate", size, b"").
Change: TypeAlias = tuple[str, int, bytes]


@dataclass(slots=True, eq=False)
class File:
    """Bytes: those on the disk, and what was done since."""

    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[Change] = field(default_factory=list)
    size: int = 0  # with what was not synced

    def change(self, change: Change) -> None:
        """A write or a truncate."""
        kind, at, data = change
        self.size = at if kind == "truncate" else max(self.size, at + len(data))
        self.unsynced.append(change)

    def sync(self) -> None:
        """All of it is on the disk."""
        for change in self.unsynced:
            _carry_out(self.durable, change)
        self.unsynced.clear()

    def after_cut(self, chance: Random | None) -> bytes:
        """What a cut leaves."""
        content = bytearray(self.durable)
        if chance is not None:
            for change in self.unsynced:
                if chance.random() < 0.5:
                    _carry_out(content, change)
        return bytes(content)


@dataclass(slots=True, eq=False)
class Directory:
    """Names: those there now, those on the disk, and what leads from these to those."""

    entries: dict[str, File | Directory] = field(default_factory=dict)
    durable: dict[str, File | Directory] = field(default_factory=dict)
    unsynced: list[dict[str, File | Directory | None]] = field(default_factory=list)

    def change(self, change: dict[str, File | Directory | None]) -> None:
        """Names that come (or come to mean another file) and names that go, all at once."""
        _rename(self.entries, change)
        self.unsynced.append(change)

    def sync(self) -> None:
        """All of it is on the disk."""
        self.durable = dict(self.entries)
        self.unsynced.clear()

    def after_cut(self, chance: Random | None) -> dict[str, File | Directory]:
        """What a cut leaves."""
        left = dict(self.durable)
        if chance is not None:
            for change in self.unsynced[: chance.randint(0, len(self.unsynced))]:
                _rename(left, change)
        return left


class Disk:
    """The tree at `place`, which is not there yet; the directory above it is, and on the disk."""

    def __init__(self, place: str) -> None:
        self._place_of_all = place
        self._top = str(Path(place).parent)
        self._root = Directory()

    def follows(self, path: str | None) -> bool:
        """Whether the path is ours. A -shm file is only a cache: SQLite makes it anew."""
        return path is not None and f"{path}/".startswith(f"{self._place_of_all}/") and not path.endswith("-shm")

    def is_top(self, path: str) -> bool:
        """Whether the path is the directory above, which holds the name of it all."""
        return path == self._top

    def make_directory(self, path: str) -> None:
        """mkdir."""
        parent, name = self._place(path)
        parent.change({name: Directory()})

    def open(self, path: str, *, create: bool, truncate: bool) -> None:
        """open, with what of it changes the disk."""
        parent, name = self._place(path)
        if name not in parent.entries and create:
            parent.change({name: File()})
        elif truncate:
            self._file(path).change(("truncate", 0, b""))

    def write(self, path: str, data: bytes, offset: int | None = None) -> None:
        """A write at an offset, or at the end."""
        file = self._file(path)
        file.change(("write", file.size if offset is None else offset, data))

    def truncate(self, path: str, size: int) -> None:
        """ftruncate."""
        self._file(path).change(("truncate", size, b""))

    def rename(self, old: str, new: str) -> None:
        """rename, also of a directory with all that is in it."""
        (source, old_name), (target, new_name) = self._place(old), self._place(new)
        node = source.entries[old_name]
        if source is target:
            source.change({new_name: node, old_name: None})
        else:
            target.change({new_name: node})
            source.change({old_name: None})

    def remove(self, path: str) -> None:
        """unlink or rmdir."""
        parent, name = self._place(path)
        parent.change({name: None})

    def sync(self, path: str) -> None:
        """fsync or fdatasync of a file or a directory."""
        node = self._node(path)
        if node is not None:
            node.sync()

    def after_cut(self, chance: Random | None) -> dict[str, bytes]:
        """Path and content of each file that a cut leaves: of what was not synced nothing, or a random part."""
        left: dict[str, bytes] = {}
        self._leave(self._root, self._top, left, chance)
        return left

    def _leave(self, directory: Directory, place: str, left: dict[str, bytes], chance: Random | None) -> None:
        for name, node in directory.after_cut(chance).items():
            path = f"{place}/{name}"
            if isinstance(node, Directory):
                self._leave(node, path, left, chance)
            else:
                left[path] = node.after_cut(chance)

    def _node(self, path: str) -> File | Directory | None:
        if path == self._top:
            return self._root
        parent, name = self._place(path)
        return parent.entries.get(name)

    def _file(self, path: str) -> File:
        node = self._node(path)
        assert isinstance(node, File), f"{path} was not made within the trace"
        return node

    def _place(self, path: str) -> tuple[Directory, str]:
        directory = self._root
        *parents, name = os.path.relpath(path, self._top).split("/")
        for parent in parents:
            node = directory.entries[parent]
            assert isinstance(node, Directory), path
            directory = node
        return directory, name


def _carry_out(content: bytearray, change: Change) -> None:
    kind, at, data = change
    if kind == "truncate":
        del content[at:]
    content.extend(bytes(max(0, at - len(content))))
    if kind == "write":
        content[at : at + len(data)] = data


def _rename(entries: dict[str, File | Directory], change: dict[str, File | Directory | None]) -> None:
    for name, node in change.items():
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node
