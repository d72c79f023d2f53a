"""A worker that is frozen (SIGSTOP) and goes on later (T13): what it still holds is stale, and nothing doubles.

SQLite's file has one worker at a time: the frozen one keeps its lock, so that no second one takes over beside it.
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.faults.invariants import check
from tests.faults.oracle import Oracle
from tests.faults.watch import watching
from tests.integration.foreign_node import depth, ears_at, node_at
from tests.integration.worker_process import NewWorker, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(90)]


async def test_a_frozen_worker_keeps_its_store_and_drops_what_it_held_when_it_thaws(
    new_worker: NewWorker, amqp_url: str, scenario: str, oracle: Oracle
) -> None:
    """The broker takes its messages back after two beats; what it has in hand is no longer its own, and not acked."""
    worker = new_worker(scenario, amqp_url=f"{amqp_url}?heartbeat=1", trigger="count(100)", apply_mode="auto")
    await worker.start()
    async with node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears, watching(worker) as watch:
        stopping = asyncio.Event()
        loading = asyncio.create_task(oracle.load(node, [scenario], stopping, pace=0.01))
        await until(worker.scenario_status, lambda status: status["records_received"] > 100)
        worker.send(signal.SIGSTOP)
        before = oracle.issued[scenario]
        # The whole window, and more, is delivered to nobody; until the broker misses the heartbeats.
        await until(lambda: depth(node, f"swarm.records.{scenario}"), lambda ready: ready > 0, within=15)
        second = new_worker(scenario, directory=worker.directory, worker_id="second", amqp_url=amqp_url)
        assert f"in use by pid {worker.pid}" in (await second.cli("run", code=78)).err
        stopping.set()
        await loading
        assert oracle.issued[scenario] > before
        worker.send(signal.SIGCONT)
        await until(worker.status, lambda status: status["counters"]["reconnects"] > 0)
        await worker.wait_ready()
        await check(worker, oracle, node, ears=ears, watch=watch)
    assert worker.starts == 1
