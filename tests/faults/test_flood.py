"""200 MB against a store that takes five commits a second: memory stays bounded, producers wait, nothing is dropped."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import psutil
import pytest
from aio_pika.exceptions import DeliveryError

from tests.conftest import Broker
from tests.faults.programs.slow_worker import COMMITS_A_SECOND
from tests.integration.foreign_node import Node, body, depth, line, node_at
from tests.integration.worker_process import NewWorker, until

#: On a busy machine.
pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]

_PROGRAM = (sys.executable, str(Path(__file__).parent / "programs" / "slow_worker.py"))
_MESSAGES, _NODES = 1_000, 8
_PADDING = {f"note_{n}": "x" * 52_000 for n in range(4)}  # in fields that nobody knows, to spare the disk
_PREFETCH = 100
_QUEUE_BYTES = 20_000_000
_LONGEST_WAIT = 0.4  # seconds between two tries of a producer that was pushed back


class _Producer:
    """One of several that share a connection; backs off where the queue takes no more."""

    def __init__(self, node: Node, scenario: str) -> None:
        self.sent: list[bytes] = []
        self.bytes = 0
        self.pushed_back = 0
        self._node = node
        self._scenario = scenario

    async def publish(self, number: int) -> None:
        record = {"type": "action", "task_id": f"t{number}", "tick": 0, "worker_id": 0, "action": "look"}
        text = body([record | _PADDING], producer_id="flood", batch_seq=number)
        wait = _LONGEST_WAIT / 8
        while True:
            try:
                await self._node.publish(self._scenario, text)
            except DeliveryError:
                self.pushed_back += 1
                await asyncio.sleep(wait)
                wait = min(_LONGEST_WAIT, wait * 2)
            else:
                self.sent.append(line(record))
                self.bytes += len(text)
                return


async def _highest_rss(process: psutil.Process, over: asyncio.Event) -> int:
    highest = 0
    while not over.is_set():
        highest = max(highest, process.memory_info().rss)
        await asyncio.sleep(0.05)
    return highest


async def test_a_flood_is_taken_at_the_stores_pace_in_bounded_memory(
    new_worker: NewWorker, amqp_url: str, scenario: str, broker: Broker
) -> None:
    worker = new_worker(scenario, prefetch=_PREFETCH)
    worker.program = _PROGRAM
    await worker.start()
    limit = json.dumps({"max-length-bytes": _QUEUE_BYTES})
    vhost = amqp_url.rsplit("/", 1)[1]
    await asyncio.to_thread(
        broker.control, "set_policy", "-p", vhost, "small", "^swarm[.]records[.]", limit, "--apply-to", "queues"
    )
    process = psutil.Process(worker.pid)
    base = process.memory_info().rss
    began, over = time.monotonic(), asyncio.Event()
    watching = asyncio.create_task(_highest_rss(process, over))
    numbers = iter(range(_MESSAGES))
    async with node_at(amqp_url) as node:
        producer = _Producer(node, scenario)

        async def publish_all() -> None:
            for number in numbers:
                await producer.publish(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(_NODES):
                group.create_task(publish_all())
        await until(worker.scenario_status, lambda s: s["records_received"] == _MESSAGES, within=40)
        took = time.monotonic() - began
        over.set()
        highest = await watching
        assert await depth(node, f"swarm.records.{scenario}") == 0
        assert await depth(node, f"swarm.dead.{scenario}") == 0

    assert producer.bytes > 200_000_000
    assert producer.pushed_back > 0
    counters = (await worker.status())["counters"]
    assert counters["groups"] <= took * COMMITS_A_SECOND + 1  # it was slow
    # In hand: what is prefetched, once as it came, and what is made of it on the way; nothing of the flood beyond.
    message = producer.bytes // _MESSAGES
    bound = base + _PREFETCH * message * 3
    assert highest < bound, (base, highest)  # 22 MB above base where this was written
    assert bound < base + producer.bytes / 2  # or the bound would say nothing
    assert sorted(await worker.exported()) == sorted(producer.sent)
    seen = await worker.scenario_status()
    assert (seen["quarantined"], seen["batches"]) == (0, _MESSAGES)
    assert await worker.stop() == 0
