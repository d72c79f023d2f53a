"""Replaying the quarantine: what was refused once is judged and stored again as if it had just come.

Worth it after an update that knows more, or after what was in the way (a store's fault) is gone. Safe to repeat and to
interrupt: what was stored by an earlier try comes back as a duplicate and is marked then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from msgspec import Struct, field

from worker.clock import Clock
from worker.episodes.rules import Rules
from worker.errors import DataRefused
from worker.sink.judge import GZIP_MAGIC, Judge
from worker.sink.producers import Producers
from worker.sink.trial import NoTrial, Trial
from worker.store.port import Duplicate, IncomingReject, Quarantined, QuarantineEntry, RecordLog, Stored
from worker.wire.reasons import Reason

log = structlog.get_logger(__name__)

#: Entries that are told one by one, so that the answer stays short.
_TOLD = 500


class ReplayCounts(Struct, kw_only=True):
    """What came of a replay. `examined` is the sum of the four kinds below it."""

    examined: int = 0
    stored: int = 0  # entries that are in the log now, and marked as replayed
    duplicates: int = 0  # entries that were in the log already, and marked as replayed
    truncated: int = 0  # entries whose body was cut, being over 1 MB: only its producer can send it again
    still_refused: dict[str, int] = field(default_factory=dict)  # entries that stay, by the reason of today
    fresh_records: int = 0  # records that the log did not have
    missing: list[int] = field(default_factory=list)  # named, and not in the quarantine of the scenario
    done_before: list[int] = field(default_factory=list)  # named, and replayed by an earlier call
    #: By entry, for the first 500: `stored`, `duplicate`, `cut`, or today's reason for staying.
    entries: dict[str, str] = field(default_factory=dict)


async def replay_quarantine(
    store: RecordLog,
    clock: Clock,
    rules_of: Callable[[str], Rules],
    *,
    scenario: str | None = None,
    reason: str | None = None,
    entry_ids: Sequence[int] | None = None,
    limit: int | None = None,
    trial: Trial | None = None,
    producers: Producers | None = None,
) -> ReplayCounts:
    """Send quarantine entries that were not replayed yet through the same checks as a delivery.

    Which: those of `scenario` and `reason` (None: any), or exactly `entry_ids`; `limit` of them, those first that were
    tried least often. An entry that is refused again stays as it is, with its count of replays up by one. What comes
    meanwhile waits for the next call. Raises `StoreUnavailable`; what was done until then is done, and the same call
    may be made again.
    """
    replay = _Replay(store, clock, Judge(rules_of, clock, producers), trial or Trial(), ReplayCounts())
    try:
        if entry_ids is None:
            # Their numbers alone: a body may have 1 MB.
            for entry_id in await store.quarantine_waiting(scenario, reason=reason, limit=limit):
                await replay.waiting(entry_id)
        else:
            for entry_id in dict.fromkeys(entry_ids):
                if limit is not None and replay.counts.examined >= limit:
                    break
                await replay.named(entry_id, scenario)
    finally:
        await replay.trial.close()
    counts = replay.counts
    refused = sum(counts.still_refused.values())
    log.info("quarantine_replayed", examined=counts.examined, stored=counts.stored, still_refused=refused)
    return counts


@dataclass(frozen=True, slots=True)
class _Replay:
    store: RecordLog
    clock: Clock
    judge: Judge
    trial: Trial
    counts: ReplayCounts

    async def waiting(self, entry_id: int) -> None:
        """Try an entry that was waiting a moment ago; since then it may have been moved out to make room."""
        entry = await self.store.quarantine_get(entry_id)
        if entry is not None and entry.replayed_at_ms is None:
            await self._one(entry)

    async def named(self, entry_id: int, scenario: str | None) -> None:
        """Try an entry that somebody asked for, or say why there is nothing to try."""
        entry = await self.store.quarantine_get(entry_id)
        if entry is None or scenario not in (None, entry.scenario):
            self.counts.missing.append(entry_id)
        elif entry.replayed_at_ms is not None:
            self.counts.done_before.append(entry_id)
        else:
            await self._one(entry)

    async def _one(self, entry: QuarantineEntry) -> None:
        """Try this entry again, count and mark what became of it."""
        counts = self.counts
        counts.examined += 1
        if entry.truncated:
            counts.truncated += 1
            self._tell(entry, "cut")
            await self.store.quarantine_mark_refused([entry.entry_id])
            return
        match await self._again(entry):
            case Stored(fresh=fresh):
                counts.stored += 1
                counts.fresh_records += fresh
                self._tell(entry, "stored")
            case Duplicate():
                counts.duplicates += 1
                self._tell(entry, "duplicate")
            case Quarantined(reason):
                still = str(reason)
                counts.still_refused[still] = counts.still_refused.get(still, 0) + 1
                self._tell(entry, still)
                await self.store.quarantine_mark_refused([entry.entry_id])
                return
        await self.store.quarantine_mark_replayed([entry.entry_id], self.clock.now_ms())

    def _tell(self, entry: QuarantineEntry, what: str) -> None:
        if len(self.counts.entries) < _TOLD:
            self.counts.entries[str(entry.entry_id)] = what

    async def _again(self, entry: QuarantineEntry) -> Stored | Duplicate | Quarantined:
        """Judge and store it alone. What would only go into the quarantine is not sent: it is there already."""
        # An entry that was good JSON and failed later was kept without headers, but its body tells how it is packed.
        packed = "gzip" if entry.body.startswith(GZIP_MAGIC) else None
        content_type = entry.headers.get("content_type")
        content_encoding = entry.headers.get("content_encoding", packed)
        if entry.reason == Reason.RECORD_CONFLICT:
            # The log keeps for good what it was told first under this name. Sent again, the record would come back as
            # a batch without a record in it, and be taken for stored.
            return Quarantined(Reason.RECORD_CONFLICT)
        if entry.reason == Reason.CRASHED_DECODER and await self._is_deadly(entry, content_type, content_encoding):
            return Quarantined(Reason.CRASHED_DECODER)
        incoming = self.judge.message(
            entry.scenario,
            entry.body,
            content_type=content_type,
            content_encoding=content_encoding,
            sender=self.judge.sender_of(entry),
        )
        if isinstance(incoming, IncomingReject):
            return Quarantined(incoming.reason)
        try:
            (verdict,) = await self.store.ingest([incoming])
        except DataRefused:
            return Quarantined(Reason.STORE_REFUSED)
        return verdict

    async def _is_deadly(self, entry: QuarantineEntry, content_type: str | None, content_encoding: str | None) -> bool:
        """Whether decoding may end the process: a worker carries on what a crash interrupted, and would die again."""
        try:
            end = await self.trial.verdict(
                entry.scenario, entry.body, content_type=content_type, content_encoding=content_encoding
            )
        except NoTrial as error:
            log.warning("entry_not_replayed", entry=entry.entry_id, error=str(error))
            return True
        return end is not None
