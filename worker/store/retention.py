"""What may be forgotten: events that were sent, and runs that left no model, thirty days after they ended.

Records are the log and stay. So do models, the runs that made them and what was live when: a few kilobytes a training.
Commands are forgotten as new ones come (`store.ledger_rules`), quarantine by its bytes (`sink.quarantine_room`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from worker.clock import Clock, sleep_unless
from worker.errors import StoreUnavailable

log = structlog.get_logger(__name__)

KEPT_MS = 30 * 24 * 3600 * 1000
#: Seconds between two looks.
_INTERVAL = 3600.0
#: Rows in one transaction: ingest waits for it no longer than for one of its own groups.
_AT_ONCE = 200


class Forgetful(Protocol):
    """The store, as far as this needs it."""

    async def forget_sent_events(self, before_ms: int, limit: int) -> int: ...

    async def forget_fruitless_runs(self, before_ms: int, limit: int) -> int: ...


class Retention:
    """Forgets once an hour; the first time right after the start."""

    def __init__(
        self, store: Forgetful, clock: Clock, *, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._store = store
        self._clock = clock
        self._pause = pause

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping`. A store that is away is asked again an hour later."""
        while not stopping.is_set():
            try:
                await self.forget()
            except StoreUnavailable as error:
                log.info("nothing_forgotten", reason=str(error))
            await sleep_unless(stopping, _INTERVAL)

    async def forget(self) -> int:
        """Forget what is old enough, in small transactions with room for ingest between them; how many rows."""
        before_ms = self._clock.now_ms() - KEPT_MS
        forgotten = 0
        for forget in (self._store.forget_sent_events, self._store.forget_fruitless_runs):
            while rows := await forget(before_ms, _AT_ONCE):
                forgotten += rows
                await self._pause(0.05)
        if forgotten:
            log.info("forgotten", rows=forgotten)
        return forgotten
