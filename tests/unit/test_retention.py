"""Forgetting: in small transactions, nothing before its time, and no end of the worker where the store is away."""

from __future__ import annotations

import asyncio

from worker.clock import ManualClock
from worker.errors import StoreUnavailable
from worker.store import open_store
from worker.store.port import OutboxEvent
from worker.store.retention import KEPT_MS, Retention

NOW = 1_700_000_000_000


async def nothing(_: float) -> None:
    """A pause that takes no time."""
    await asyncio.sleep(0)


async def test_what_is_thirty_days_old_is_forgotten_and_what_is_younger_stays() -> None:
    clock = ManualClock(NOW)
    store = open_store("memory:", clock)
    await store.open()
    events = [
        OutboxEvent(event_id=str(n), type="t", scenario="S", routing_key="k", body=b"{}", created_at_ms=NOW)
        for n in range(1_000)
    ]
    await store.add_events(events)
    await store.mark_sent([one.event_id for one in events[:950]], NOW)
    retention = Retention(store, clock, pause=nothing)
    clock.advance(KEPT_MS / 1000)
    assert await retention.forget() == 0
    clock.advance(1)
    assert await retention.forget() == 950
    assert len(await store.events(limit=2_000)) == 50


class Away:
    """A store that takes no writes, and may be asked once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def forget_sent_events(self, before_ms: int, limit: int) -> int:
        assert not self.asked.is_set()
        self.asked.set()
        raise StoreUnavailable("locked")

    async def forget_fruitless_runs(self, before_ms: int, limit: int) -> int:
        raise AssertionError


async def test_a_store_that_is_away_ends_nobody_and_stopping_takes_no_hour() -> None:
    store, stopping = Away(), asyncio.Event()
    running = asyncio.create_task(Retention(store, ManualClock(), pause=nothing).run(stopping))
    await store.asked.wait()
    stopping.set()
    await asyncio.wait_for(running, 5)
