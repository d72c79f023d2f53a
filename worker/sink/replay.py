"""Replaying the quarantine: what was refused once is judged and stored again as if it had just come.

Worth it after an update that knows more, or after what was in the way (a conflicting batch, a store's fault) is gone.
Safe to repeat and to interrupt: what was stored by an earlier try comes back as a duplicate and is marked then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import structlog
from msgspec import Struct, field

from worker.clock import Clock
from worker.episodes.rules import Rules
from worker.errors import DataRefused
from worker.sink.judge import GZIP_MAGIC, Judge
from worker.store.port import Duplicate, Incoming, IncomingReject, Quarantined, QuarantineEntry, RecordLog, Stored
from worker.wire.reasons import Reason

log = structlog.get_logger(__name__)

#: Entries read at once; a body in the quarantine has at most 1 MB.
_PAGE = 20


class ReplayCounts(Struct, kw_only=True):
    """What came of a replay. `examined` is the sum of the four kinds below it."""

    examined: int = 0
    stored: int = 0  # entries that are in the log now, and marked as replayed
    duplicates: int = 0  # entries that were in the log already, and marked as replayed
    truncated: int = 0  # entries whose body was too big to be kept whole: only the producer can send it again
    still_refused: dict[str, int] = field(default_factory=dict)  # entries that stay, by the reason of today
    fresh_records: int = 0  # records that the log did not have


async def replay_quarantine(
    store: RecordLog,
    clock: Clock,
    rules_of: Callable[[str], Rules],
    *,
    scenario: str | None = None,
    reason: str | None = None,
    entry_ids: Sequence[int] | None = None,
) -> ReplayCounts:
    """Send quarantine entries that were not replayed yet through the same checks as a delivery.

    Which: those of `scenario` and `reason` (None: any), or exactly `entry_ids`. An entry that is refused again stays as
    it is. Raises `StoreUnavailable`; what was done until then is done, and the same call may be made again.
    """
    judge = Judge(rules_of, clock)
    counts = ReplayCounts()
    refused: Counter[str] = Counter()
    async for entry in _entries(store, scenario, reason, entry_ids):
        counts.examined += 1
        if entry.truncated:
            counts.truncated += 1
            continue
        match await _again(store, _judged(judge, entry)):
            case Stored(fresh=fresh):
                counts.stored += 1
                counts.fresh_records += fresh
            case Duplicate():
                counts.duplicates += 1
            case Quarantined(still):
                refused[str(still)] += 1
                continue
        await store.quarantine_mark_replayed([entry.entry_id], clock.now_ms())
    counts.still_refused = dict(refused)
    log.info("quarantine_replayed", examined=counts.examined, stored=counts.stored, still_refused=refused.total())
    return counts


async def _entries(
    store: RecordLog, scenario: str | None, reason: str | None, entry_ids: Sequence[int] | None
) -> AsyncIterator[QuarantineEntry]:
    if entry_ids is not None:
        for entry_id in entry_ids:
            entry = await store.quarantine_get(entry_id)
            if entry is not None and entry.replayed_at_ms is None and scenario in (None, entry.scenario):
                yield entry
        return
    after = 0
    while page := await store.quarantine_list(scenario, reason=reason, limit=_PAGE, after=after, pending_only=True):
        for entry in page:
            yield entry
        after = page[-1].entry_id


def _judged(judge: Judge, entry: QuarantineEntry) -> Incoming:
    # An entry that was good JSON and failed later was kept without headers, but its body tells that it is compressed.
    packed = "gzip" if entry.body.startswith(GZIP_MAGIC) else None
    return judge.message(
        entry.scenario,
        entry.body,
        content_type=entry.headers.get("content_type"),
        content_encoding=entry.headers.get("content_encoding", packed),
    )


async def _again(store: RecordLog, incoming: Incoming) -> Stored | Duplicate | Quarantined:
    """Store a batch alone. What would only go into the quarantine is not sent: it is there already."""
    if isinstance(incoming, IncomingReject):
        return Quarantined(incoming.reason)
    try:
        (verdict,) = await store.ingest([incoming])
    except DataRefused:
        return Quarantined(Reason.STORE_REFUSED)
    return verdict
