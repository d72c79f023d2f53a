"""Quarantine rows: written inside the transaction that found the message wanting, read and marked by operators."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from worker.store.port import IncomingReject, QuarantineEntry, QuarantineRoom
from worker.store.quarantine_rows import keep
from worker.store.sql import load_statements
from worker.store.sqlite.role import Role
from worker.wire.records import INT64_MAX

SQL = load_statements(Path(__file__).parent / "sql" / "quarantine.sql")


def insert_quarantine(connection: sqlite3.Connection, scenario_no: int, reject: IncomingReject) -> bool:
    """Store a message that is none; False where the same body was there with the same reason."""
    kept = keep(reject.body)
    headers = msgspec.json.encode(dict(reject.headers)).decode()
    row = (
        scenario_no, str(reject.reason), reject.detail, reject.received_at_ms,
        kept.size, kept.sha256, kept.body, int(kept.truncated), headers,
    )  # fmt: skip
    return bool(connection.execute(SQL["insert_quarantine"], row).fetchone()[0] == 1)


class Quarantine(Role):
    """The quarantine part of `worker.store.port.RecordLog`."""

    async def quarantine_list(
        self,
        scenario: str | None = None,
        *,
        reason: str | None = None,
        limit: int = 100,
        after: int = 0,
        pending_only: bool = False,
    ) -> list[QuarantineEntry]:
        """Entries above `after`, oldest first."""
        parameters = {
            "scenario": scenario, "reason": reason, "limit": limit, "after": after, "pending_only": pending_only,
        }  # fmt: skip
        rows = await self._database.read(lambda db: db.execute(SQL["list_quarantine"], parameters).fetchall())
        return [_entry(row) for row in rows]

    async def quarantine_waiting(
        self, scenario: str | None = None, *, reason: str | None = None, limit: int | None = None
    ) -> list[int]:
        """Least tried first, then oldest."""
        # A negative limit is none; what is beyond 64 bits SQLite cannot take.
        parameters = {"scenario": scenario, "reason": reason, "limit": -1 if limit is None else min(limit, INT64_MAX)}
        rows = await self._database.read(lambda db: db.execute(SQL["waiting_quarantine"], parameters).fetchall())
        return [entry_id for (entry_id,) in rows]

    async def quarantine_get(self, entry_id: int) -> QuarantineEntry | None:
        """The entry of this number."""
        row = await self._database.read(lambda db: db.execute(SQL["get_quarantine"], (entry_id,)).fetchone())
        return None if row is None else _entry(row)

    async def quarantine_mark_replayed(self, entry_ids: Sequence[int], now_ms: int) -> None:
        """Note that these were sent through again."""
        rows = [(now_ms, entry_id) for entry_id in entry_ids]
        await self._database.write(lambda db: db.executemany(SQL["mark_replayed"], rows))

    async def quarantine_mark_refused(self, entry_ids: Sequence[int]) -> None:
        """Count a replay that changed nothing."""
        rows = [(entry_id,) for entry_id in entry_ids]
        await self._database.write(lambda db: db.executemany(SQL["mark_refused"], rows))

    async def quarantine_room(self) -> QuarantineRoom:
        """One row, kept by triggers."""
        row = await self._database.read(lambda db: db.execute(SQL["quarantine_room"]).fetchone())
        return QuarantineRoom(*row)

    async def quarantine_move_out(self, entry_ids: Sequence[int]) -> None:
        """Delete them and count how many there were."""
        rows = [(entry_id,) for entry_id in entry_ids]

        def remove(connection: sqlite3.Connection) -> None:
            gone = connection.executemany(SQL["remove_quarantine"], rows).rowcount
            connection.execute(SQL["note_moved"], (gone,))

        await self._database.write(remove)


def _entry(row: Sequence[Any]) -> QuarantineEntry:
    entry_id, scenario, reason, detail, received_at_ms, size, digest, body, truncated, headers, *counts = row
    seen, replayed, replays = counts
    return QuarantineEntry(
        entry_id=entry_id, scenario=scenario, reason=reason, detail=detail, received_at_ms=received_at_ms, size=size,
        sha256=digest, body=body, truncated=bool(truncated), headers=msgspec.json.decode(headers), seen=seen,
        replayed_at_ms=replayed, replays=replays,
    )  # fmt: skip
