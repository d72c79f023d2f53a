"""The log: batches in, verdicts out, records as they were sent, and what could not be stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol, TypeAlias

from msgspec import Struct

from worker.episodes.task import UNNAMED, PlacedAction
from worker.wire.records import Batch, Record


class IncomingBatch(Struct, kw_only=True):
    """A good batch on its way into the log."""

    scenario: str
    batch: Batch
    body: bytes  # as decoded, kept only where it must be quarantined after all
    received_at_ms: int
    terminal_tasks: frozenset[str] = frozenset()  # tasks with a terminal action in this batch


class IncomingReject(Struct, kw_only=True):
    """A message that cannot be a batch, on its way into quarantine."""

    scenario: str
    reason: str  # a code of worker.wire.reasons
    detail: str
    body: bytes
    received_at_ms: int
    headers: Mapping[str, str] = {}


Incoming: TypeAlias = IncomingBatch | IncomingReject


class Stored(Struct, frozen=True):
    """The batch is in the log; `fresh` of its records are new, the others were there under their own identity."""

    batch_no: int
    fresh: int
    duplicate_records: int
    conflicts: int = 0  # records whose identity was taken by another content: quarantined one by one


class Duplicate(Struct, frozen=True):
    """The same batch was stored before."""


class Quarantined(Struct, frozen=True):
    """The message is in quarantine."""

    reason: str


Verdict: TypeAlias = Stored | Duplicate | Quarantined


class StoredRecord(Struct, frozen=True):
    """A record with its place in the log."""

    scenario: str
    batch_no: int
    index: int  # place in its batch
    received_at_ms: int
    record: Record
    nulls: int  # see Batch.nulls
    producer: str = UNNAMED


class QuarantineEntry(Struct, kw_only=True):
    """One message (or record) that was not stored, with the reason."""

    entry_id: int
    scenario: str
    reason: str
    detail: str
    received_at_ms: int
    size: int  # bytes of the whole body
    sha256: str
    body: bytes  # the body, or its first 64 KB where it was over 1 MB
    truncated: bool
    headers: Mapping[str, str]
    seen: int  # how often the same body came with the same reason
    replayed_at_ms: int | None = None
    replays: int = 0  # how often a replay found it as bad as before


class QuarantineRoom(Struct, frozen=True):
    """How much the quarantine of the whole store holds."""

    entries: int
    bytes: int  # what the entries keep, and 256 for each
    moved: int  # entries that were moved out into files since the store was made


class RecordLog(Protocol):
    """Idempotent, append-only storage of records."""

    async def ingest(self, group: Sequence[Incoming]) -> list[Verdict]:
        """Store a group in one transaction and give one verdict each, in order.

        The same identity twice (also inside the group) with the same content hash is `Duplicate`; with another it is
        quarantined as `key_conflict`. A record whose own identity is taken is counted once; with another content it is
        quarantined alone and its neighbours are stored.
        """
        ...

    def records(
        self,
        scenario: str,
        *,
        type_: str | None = None,
        task_id: str | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> AsyncIterator[StoredRecord]:
        """Records in the order they were stored, of batches above `after`."""
        ...

    async def actions_of_tasks(
        self, scenario: str, task_ids: Sequence[str], *, most: int
    ) -> dict[str, list[PlacedAction]]:
        """The actions of several tasks in one read, those of each in the order they were stored.

        As many of `task_ids`, in their order, as it takes for `most` actions; at least one. A task that is not there
        has none, and neither has one that is damaged, as `damage` then says.
        """
        ...

    async def quarantine_list(
        self,
        scenario: str | None = None,
        *,
        reason: str | None = None,
        limit: int = 100,
        after: int = 0,
        pending_only: bool = False,
    ) -> list[QuarantineEntry]:
        """Entries above id `after`, oldest first."""
        ...

    async def quarantine_waiting(
        self, scenario: str | None = None, *, reason: str | None = None, limit: int | None = None
    ) -> list[int]:
        """Ids of entries that were not replayed yet: those that were tried least often first, of them the oldest."""
        ...

    async def quarantine_get(self, entry_id: int) -> QuarantineEntry | None:
        """One entry."""
        ...

    async def quarantine_mark_replayed(self, entry_ids: Sequence[int], now_ms: int) -> None:
        """They went through; they stay, marked."""
        ...

    async def quarantine_mark_refused(self, entry_ids: Sequence[int]) -> None:
        """A replay found them as bad as before; they stay, counted."""
        ...

    async def quarantine_room(self) -> QuarantineRoom:
        """How much is there, over all scenarios."""
        ...

    async def quarantine_move_out(self, entry_ids: Sequence[int]) -> None:
        """Forget entries that were written elsewhere, and count them as moved."""
        ...
