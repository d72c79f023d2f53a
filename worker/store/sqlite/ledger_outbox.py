"""Events that wait for the broker's confirm."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from worker.store.port import OutboxEvent
from worker.store.sqlite.ledger_query import SQL, add_events, change, select
from worker.store.sqlite.role import Role


class Outbox(Role):
    """`worker.store.port.Outbox` on SQLite."""

    async def add_events(self, events: Sequence[OutboxEvent]) -> None:
        await self._database.write(lambda connection: add_events(connection, events))

    async def unsent_events(self, limit: int) -> list[OutboxEvent]:
        return await self._database.read(
            lambda connection: select(connection, OutboxEvent, "unsent_events", limit=limit)
        )

    async def mark_sent(self, event_ids: Sequence[str], now_ms: int) -> None:
        rows = [{"event_id": event_id, "now_ms": now_ms} for event_id in event_ids]

        def mark(connection: sqlite3.Connection) -> None:
            connection.executemany(SQL["mark_event_sent"], rows)

        await self._database.write(mark)

    async def mark_attempt(self, event_id: str) -> None:
        await self._database.write(lambda connection: change(connection, "mark_event_attempt", event_id=event_id))

    async def forget_sent_events(self, before_ms: int, limit: int) -> int:
        return await self._database.write(
            lambda connection: change(connection, "forget_sent_events", before_ms=before_ms, limit=limit)
        )

    async def events(self, scenario: str | None = None, *, limit: int = 100) -> list[OutboxEvent]:
        if scenario is None:
            return await self._database.read(lambda connection: select(connection, OutboxEvent, "events", limit=limit))
        return await self._database.read(
            lambda connection: select(connection, OutboxEvent, "events_of_scenario", scenario=scenario, limit=limit)
        )
