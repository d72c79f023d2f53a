"""Room in the quarantine: when it is full its oldest entries move out into files, before anything new comes in.

Ingest waits for it, so however fast bad messages come, the store holds at most `limit` bytes of them and the one group
that is being stored. Nothing is forgotten before its file is on disk; where that cannot be written, it is the same as a
store that takes no writes: nothing is acknowledged, health says why, and it goes on by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from worker.errors import StoreUnavailable
from worker.sink.quarantine_files import QuarantineFiles
from worker.store.port import QuarantineEntry, RecordLog
from worker.store.quarantine_rows import room_of

log = structlog.get_logger(__name__)

#: Entries read at once; an entry keeps at most 1 MB.
_PAGE = 64
#: One file takes a sixteenth of the limit: half a second of writing at 256 MB.
_SHARE = 16
#: Entries forgotten in one transaction.
_FORGOTTEN_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomReport:
    """What the quarantine holds and what became of the rest."""

    entries: int
    bytes: int
    limit_bytes: int
    moved: int  # entries that went into files since the store was made
    files: int
    file_bytes: int
    file_entries: int
    deleted: int  # entries whose file was deleted, by us to stay within bounds or by an operator


class QuarantineKeeper:
    """Keeps one store's quarantine below `limit` bytes, and its files below as many again."""

    def __init__(self, store: RecordLog, files: QuarantineFiles, limit: int) -> None:
        self._store = store
        self._files = files
        self._limit = limit

    async def make_room(self) -> None:
        """Move the oldest entries out while there are too many. Raises `StoreUnavailable`: then nothing is lost."""
        while (room := await self._store.quarantine_room()).bytes > self._limit and room.entries > 1:
            share = self._limit // _SHARE
            entries = await self._oldest(share, at_once=min(_PAGE, share * room.entries // room.bytes + 1))
            try:
                path = await asyncio.to_thread(self._files.write, entries, instead_of=await self._attempts(entries))
            except OSError as error:
                raise StoreUnavailable(
                    f"the quarantine is full and its oldest entries cannot be moved to {self._files.directory} "
                    f"({error.strerror}); free some room there, or replay and raise SWARM_QUARANTINE_BYTES"
                ) from error
            numbers = [entry.entry_id for entry in entries]
            for start in range(0, len(numbers), _FORGOTTEN_AT_ONCE):
                await self._store.quarantine_move_out(numbers[start : start + _FORGOTTEN_AT_ONCE])
            log.warning("quarantine_moved_out", entries=len(entries), file=str(path))

    async def report(self) -> RoomReport:
        """For status and metrics."""
        room = await self._store.quarantine_room()
        usage = await asyncio.to_thread(self._files.usage)
        return RoomReport(
            entries=room.entries,
            bytes=room.bytes,
            limit_bytes=self._limit,
            moved=room.moved,
            files=usage.files,
            file_bytes=usage.bytes,
            file_entries=usage.entries,
            deleted=max(0, room.moved - usage.entries),
        )

    async def _attempts(self, entries: Sequence[QuarantineEntry]) -> list[Path]:
        """Files of an earlier try to move these out: all that is in them is still in the store.

        What is not was moved out for good, before an older backup of the store was restored, and is nowhere else.
        """
        here = {(entry.entry_id, entry.sha256) for entry in entries}
        found = await asyncio.to_thread(self._files.beginning_with, entries[0].entry_id)
        return [path for path, inside in found.items() if await self._are_in_the_store(inside - here)]

    async def _are_in_the_store(self, entries: set[tuple[int, str]]) -> bool:
        for entry_id, sha256 in entries:
            entry = await self._store.quarantine_get(entry_id)
            if entry is None or entry.sha256 != sha256:
                return False
        return True

    async def _oldest(self, share: int, *, at_once: int) -> list[QuarantineEntry]:
        """The entries of one file. The newest of all stays where it is, so that no number is ever given out again."""
        found: list[QuarantineEntry] = []
        size = 0
        while size < share:
            after = found[-1].entry_id if found else 0
            page = await self._store.quarantine_list(limit=at_once + 1, after=after)
            found += page[:-1]
            size += sum(room_of(entry.body, entry.detail, entry.headers) for entry in page[:-1])
            if len(page) <= at_once:
                break
        return found
