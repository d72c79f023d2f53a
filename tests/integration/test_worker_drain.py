"""A shutdown in bounded time, whatever is away: what could not be finished comes again."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.integration.foreign_node import body, episode, line, node_at
from tests.integration.worker_process import NewWorker, until

pytestmark = pytest.mark.rabbitmq


async def test_a_worker_whose_store_takes_nothing_still_stops_in_time_and_loses_nothing(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """The sink would hold its group for ten minutes; SWARM_SHUTDOWN_GRACE is a promise all the same."""
    worker = new_worker(scenario, shutdown_grace="4s")
    await worker.start()
    records = episode(0, success=True)
    with closing(sqlite3.connect(worker.data_dir / "swarm.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with node_at(amqp_url) as node:
            await node.publish(scenario, body(records))
        await until(worker.problems, lambda problems: any("store" in one for one in problems or ()))
        # Beyond the grace, one wait for the lock: a statement that has begun is not interrupted.
        assert await worker.stop(within=4 + 5 + 3) == 0
    await worker.start()
    await until(worker.exported, lambda found: len(found) == len(records))
    assert sorted(await worker.exported()) == sorted(map(line, records))
