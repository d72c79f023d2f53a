"""What the sink counts about itself since it started, as plain numbers for health and metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from worker.sink.batcher import Item
from worker.store.port import Duplicate, IncomingBatch, Quarantined, Stored
from worker.wire.reasons import Reason


@dataclass(slots=True)
class SinkStats:
    """Counters and the present state of the sink."""

    messages: int = 0  # committed, whatever became of them
    records: int = 0  # in batches that were stored or had been stored before
    fresh: int = 0  # records that were new
    duplicates: int = 0  # batches that had been stored before
    duplicate_records: int = 0  # known records in batches that were new
    quarantined: Counter[str] = field(default_factory=Counter)  # messages and single records, by reason
    unknown_fields: int = 0
    groups: int = 0  # transactions
    commit_seconds: float = 0.0  # in the store, from the call to its return
    store_failures: int = 0  # groups that had to be tried again
    suspects: int = 0  # deliveries handled alone, since the broker had taken them back again and again
    stale: int = 0  # deliveries dropped because their channel was gone
    in_flight: int = 0  # deliveries taken and not settled
    last_stored_at_ms: int | None = None
    store_down_reason: str | None = None  # why the store takes no writes now; None: it does

    def count(self, item: Item) -> None:
        """Add what became of one message."""
        incoming = item.incoming
        match item.verdict:
            case Stored() as stored if isinstance(incoming, IncomingBatch):
                self.records += len(incoming.batch.records)
                self.fresh += stored.fresh
                self.duplicate_records += stored.duplicate_records
                self.unknown_fields += incoming.batch.unknown_fields
                if stored.conflicts:
                    self.quarantined[Reason.RECORD_CONFLICT] += stored.conflicts
            case Duplicate() if isinstance(incoming, IncomingBatch):
                self.records += len(incoming.batch.records)
                self.duplicates += 1
            case Quarantined(reason):
                self.quarantined[str(reason)] += 1
            case _:
                self.stale += 1  # while the store was down
                return
        self.messages += 1
