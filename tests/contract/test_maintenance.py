"""Contract of `Maintenance`, on every store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.store.port import Store


async def test_an_open_store_takes_a_probe(store: Store) -> None:
    """The probe writes and commits, and says nothing when that works."""
    await store.probe()
    assert (await store.describe())["kind"] in {"memory", "sqlite"}
