"""A store that is down while the connection is lost: found by the simulation, which waited for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from worker.broker.port import Delivery
from worker.clock import ManualClock
from worker.errors import StoreUnavailable
from worker.sink.batcher import Item
from worker.sink.stats import SinkStats
from worker.sink.writer import GroupWriter
from worker.store import open_store
from worker.store.port import IncomingReject, RecordLog, Verdict


class _Stale:
    """A delivery whose channel goes while the store is away."""

    stale = False


class _Away:
    """A store that is away for so many calls."""

    def __init__(self, store: RecordLog, calls: int) -> None:
        self._store = store
        self._calls = calls

    async def ingest(self, group: list[Any]) -> list[Verdict]:
        """Refuses, and then does it."""
        self._calls -= 1
        if self._calls >= 0:
            raise StoreUnavailable("away")
        return await self._store.ingest(group)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_consumption_goes_on_though_all_that_waited_for_the_store_went_stale(kind: str, tmp_path: Path) -> None:
    """Paused since the store was away, and with nothing left to write, nobody would ever have found it up again."""
    clock = ManualClock()
    store = open_store("memory:" if kind == "memory" else f"sqlite://{tmp_path}/swarm.db", clock)
    await store.open()
    delivery = _Stale()
    told: list[str] = []

    async def pause(seconds: float) -> None:
        clock.advance(seconds)
        delivery.stale = True

    stats = SinkStats()
    writer = GroupWriter(
        cast("RecordLog", _Away(store, calls=3)),
        clock,
        stats,
        on_store_down=lambda reason: told.append(f"down: {reason}"),
        on_store_up=lambda: told.append("up"),
        pause=pause,
    )
    reject = IncomingReject(scenario="S", reason="not_json", detail="$", body=b"{", received_at_ms=0)
    item = Item(cast("Delivery", delivery), reject)
    await writer.write([item])
    assert told == ["down: away", "up"]
    assert stats.store_down_reason is None
    assert item.verdict is None
    await store.close()
