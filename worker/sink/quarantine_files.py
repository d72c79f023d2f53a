"""Files of quarantine entries that the store has no more room for: gzip, one JSON object a line, bounded in all.

A name says what is in a file: number of the first entry, of the last, and how many. The numbers go on growing, so the
names sort by age, until an older backup of the store is restored: then numbers come again, for other entries.
`zcat FILE | jq -r .body | base64 -d` gives the bodies back, to be published again.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from worker.durable import make_private_directory, synced_at_the_end
from worker.store.port import QuarantineEntry

log = structlog.get_logger(__name__)

_NAME = re.compile(r"(\d{12})-(\d{12})-(\d+)(?:\.\d+)?\.jsonl\.gz")


def quarantine_dir(data_dir: Path) -> Path:
    """Where they lie in the worker's data directory."""
    return data_dir / "quarantine"


@dataclass(frozen=True, slots=True)
class FilesUsage:
    """What lies in the directory."""

    files: int
    bytes: int
    entries: int


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    first: int
    entries: int
    bytes: int
    written_ns: int


class _Named(Struct):
    entry_id: int
    sha256: str


class QuarantineFiles:
    """The directory; `most_bytes` in all, beyond them the oldest file is deleted, and loudly so."""

    def __init__(self, directory: Path, most_bytes: int) -> None:
        self.directory = directory
        self._most_bytes = most_bytes

    def usage(self) -> FilesUsage:
        """Files, their bytes and the entries in them."""
        found = self._files()
        return FilesUsage(len(found), sum(one.bytes for one in found), sum(one.entries for one in found))

    def beginning_with(self, entry_id: int) -> dict[Path, set[tuple[int, str]]]:
        """Files whose first entry has this number, with number and hash of all that are in them.

        Those that cannot be read are not among them.
        """
        found = {}
        for one in self._files():
            if one.first == entry_id:
                with suppress(OSError, EOFError, zlib.error, msgspec.DecodeError):
                    found[one.path] = _entries_in(one.path)
        return found

    def write(self, entries: Sequence[QuarantineEntry], *, instead_of: Collection[Path] = ()) -> Path:
        """Put these, oldest first, into a file of their own, on disk when this returns; raises `OSError`.

        It takes the place of `instead_of`, earlier attempts that were killed before the store had forgotten the
        entries, and of no other file.
        """
        make_private_directory(self.directory)
        path = self._free_name(entries, instead_of)
        partial = path.with_name(f".{path.name}")
        try:
            with synced_at_the_end(self.directory):
                _write_lines(partial, map(_line, entries))
                partial.replace(path)
                for one in instead_of:
                    if one != path:
                        one.unlink()
                self._keep_within_bounds(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return path

    def _free_name(self, entries: Sequence[QuarantineEntry], ours: Collection[Path]) -> Path:
        name = f"{entries[0].entry_id:012}-{entries[-1].entry_id:012}-{len(entries)}"
        for ending in chain([""], (f".{number}" for number in count(2))):
            path = self.directory / f"{name}{ending}.jsonl.gz"
            if path in ours or not path.exists():
                return path
        raise AssertionError("there is always another number")

    def _keep_within_bounds(self, newest: Path) -> None:
        found = self._files()
        too_many = sum(one.bytes for one in found) - self._most_bytes
        for one in found:
            if too_many <= 0:
                return
            if one.path == newest:
                continue
            # Nobody came for them while as much again arrived; a full disk would stop ingest for everybody.
            log.error("quarantine_file_deleted", file=one.path.name, entries=one.entries, bytes=one.bytes)
            one.path.unlink()
            too_many -= one.bytes

    def _files(self) -> list[_File]:
        """Oldest first."""
        if not self.directory.is_dir():
            return []
        found = [(path, match) for path in self.directory.iterdir() if (match := _NAME.fullmatch(path.name))]
        files = []
        for path, match in found:
            stat = path.stat()
            files.append(_File(path, int(match[1]), int(match[3]), stat.st_size, stat.st_mtime_ns))
        return sorted(files, key=lambda one: (one.written_ns, one.first))


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=1, mtime=0) as packed:
            for line in lines:
                packed.write(line)
        file.flush()
        os.fsync(file.fileno())


def _entries_in(path: Path) -> set[tuple[int, str]]:
    with gzip.open(path) as lines:
        found = [msgspec.json.decode(line, type=_Named) for line in lines]
    return {(one.entry_id, one.sha256) for one in found}


def _line(entry: QuarantineEntry) -> bytes:
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
    return msgspec.json.encode(fields | {"body": base64.b64encode(entry.body).decode()}) + b"\n"
