"""A store in memory whose one transaction is always rolled back: to see whether storing something ends the process."""

from __future__ import annotations

import sqlite3

from worker.store.port import Incoming, IncomingBatch, IncomingReject
from worker.store.sqlite.ingest import GroupIngest
from worker.store.sqlite.migrate import migrate
from worker.store.sqlite.numbers import Numbers
from worker.wire.reasons import Rejection
from worker.wire.records import Batch


class TrialStore:
    """The real schema and the real statements, and nothing on a disk."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self._connection)

    def ingest(self, scenario: str, body: bytes, found: Batch | Rejection) -> None:
        """Store it as the worker would, and forget it. Raises what storing it raises."""
        incoming: Incoming
        if isinstance(found, Rejection):
            incoming = IncomingReject(
                scenario=scenario, reason=found.reason, detail=found.detail, body=body, received_at_ms=0
            )
        else:
            incoming = IncomingBatch(scenario=scenario, batch=found, body=body, received_at_ms=0)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            GroupIngest(self._connection, Numbers(), [incoming]).run()
        finally:
            self._connection.execute("ROLLBACK")
