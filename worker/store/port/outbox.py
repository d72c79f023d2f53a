"""The outbox: events stored with the change they tell of, kept until the broker confirms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class OutboxEvent(Struct, kw_only=True):
    """An event on its way out: stored with the change it tells of, sent until the broker confirms."""

    event_id: str
    type: str
    scenario: str
    routing_key: str
    body: bytes
    created_at_ms: int
    attempts: int = 0
    sent_at_ms: int | None = None


class Outbox(Protocol):
    """Events that wait for the broker's confirm."""

    async def add_events(self, events: Sequence[OutboxEvent]) -> None:
        """Queue events; one that is queued under its id already is left as it is."""
        ...

    async def unsent_events(self, limit: int) -> list[OutboxEvent]:
        """Oldest first."""
        ...

    async def mark_sent(self, event_ids: Sequence[str], now_ms: int) -> None:
        """The broker confirmed them."""
        ...

    async def mark_attempt(self, event_id: str) -> None:
        """Sending it failed once more."""
        ...

    async def forget_sent_events(self, before_ms: int, limit: int) -> int:
        """Forget at most so many that were confirmed before this time, oldest first; how many there were."""
        ...

    async def events(self, scenario: str | None = None, *, limit: int = 100) -> list[OutboxEvent]:
        """Newest first, sent or not."""
        ...
