"""A store that takes no writes for a while: the worker says so, holds what it has, and goes on by itself."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.faults.store_trouble import locked_by_another
from tests.integration.foreign_node import body, depth, ears_at, episode, line, node_at
from tests.integration.worker_process import NewWorker, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]


async def test_a_locked_store_loses_nothing_and_the_worker_resumes_by_itself(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """Consumption pauses, /ready is red with the reason, what the worker was told meanwhile is done in the end."""
    worker = new_worker(scenario, trigger="count(400)")
    await worker.start()
    sent: list[bytes] = []
    async with node_at(amqp_url) as node, ears_at(amqp_url, f"learning.trained.{scenario}") as ears:

        async def publish(tasks: range) -> None:
            for task in tasks:
                records = episode(task, success=True)
                sent.extend(map(line, records))
                await node.publish(scenario, body(records, producer_id="n", batch_seq=task))

        await publish(range(50))
        await until(worker.scenario_status, lambda s: s["records_received"] > 0)
        with locked_by_another(worker):
            flowing = asyncio.create_task(publish(range(50, 400)))
            problems = await until(worker.problems, within=15)
            assert problems is not None
            assert all("SQLITE_BUSY" in problem for problem in problems)
            assert any(problem.startswith("store: ") for problem in problems)
            await until(worker.scenario_status, lambda s: s["held_because"] and not s["consumer_up"], within=15)
            await flowing
            # What is in hand is held, the rest waits at the broker; reading goes on.
            assert await depth(node, f"swarm.records.{scenario}") > 0
            stored = len(await worker.exported())
            assert stored < len(sent)
            pausing = asyncio.create_task(worker.tell("pause", "--scenario", scenario, "--what", "training"))
        unlocked = time.monotonic()
        await until(worker.scenario_status, lambda s: s["records_received"] == len(sent), within=25)
        await worker.wait_ready()
        assert time.monotonic() - unlocked < 20
        assert (await pausing)["status"] == "done"
        await worker.tell("resume", "--scenario", scenario, "--what", "training")
        await ears.wait_for("learning.trained", scenario)
        assert await depth(node, f"swarm.records.{scenario}") == 0
    assert sorted(await worker.exported()) == sorted(sent)
    assert [entry["event"] for entry in worker.log()].count("store_up") >= 1
    assert await worker.stop() == 0
