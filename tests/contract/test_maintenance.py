"""Contract of `Maintenance`, on every store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.contract.log_building import NOW, action, everything, incoming, llm, stats

if TYPE_CHECKING:
    from worker.store.port import Store


async def test_an_open_store_takes_a_probe(store: Store) -> None:
    """The probe writes and commits, and says nothing when that works."""
    await store.probe()
    assert (await store.describe())["kind"] in {"memory", "sqlite"}


async def test_a_store_that_nobody_tampered_with_knows_of_no_damage(store: Store) -> None:
    """Whatever was stored in it and read from it, with duplicates and conflicts."""
    one = incoming(action(1), action(2), stats(task_ids=["t"]), llm(task_id="t"), seq=1)
    await store.ingest([one, one, incoming(action(1), action(2, action="other"), action(3), seq=2)])
    assert len(await everything(store)) == 5
    assert len(await store.pending(now_ms=NOW, idle_ms=0, limit=100)) == 2
    assert len(await store.sessions("S")) == 1
    await store.rebuild("S")
    assert list(store.damage) == []
