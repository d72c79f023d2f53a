"""A scenario that was served once and is no more: what it left in the store lies there and harms nobody."""

from __future__ import annotations

from pathlib import Path

from tests.contract.projection_building import action, incoming
from worker.app import WorkerBuilder
from worker.clock import SystemClock
from worker.store import open_store


async def test_what_a_scenario_left_that_is_no_longer_served_does_not_end_the_worker(tmp_path: Path) -> None:
    """It has no rules any more: the projector ended at it with a KeyError, and the worker with it, at every start."""
    store = open_store(f"sqlite://{tmp_path}/swarm.db", SystemClock())
    await store.open()
    await store.ingest([incoming(action(0), seq=1, scenario="gone", ends=["t"])])
    await store.close()
    worker = WorkerBuilder(data_dir=tmp_path, scenarios="here").build()
    parts = worker._assemble(worker)
    await parts.store.open()
    try:
        assert await parts.projector.catch_up() == 0
        assert (await parts.store.facts("gone")).open_tasks == 1
    finally:
        await parts.store.close()
