"""The broker dies, stops, throws everybody out, loses a queue, runs out of memory (T4, T14): nothing confirmed is lost.

One worker lives through all of it, and stores a fresh message within 10 s of the first connection that is let in again.
It learns all the time; what it has to tell meanwhile waits, and comes out.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.invariants import FRESH_STORED, compare, events_match, fresh_is_stored, quiet, settled
from tests.faults.mortal_broker import MortalBroker, mortal_broker
from tests.faults.oracle import UNCONFIRMED, Oracle
from tests.faults.store_state import damage, doubles, opened
from tests.faults.watch import watching
from tests.integration.foreign_node import depth, journal_at, node_at, service_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]

#: Seconds from the first connection that the broker lets in to a fresh message stored.
_RECOVERY = 10.0


class Trial:
    """One worker, one broker, a node that goes on publishing whatever happens, and the measured ways back."""

    def __init__(self, broker: MortalBroker, worker: WorkerProcess, oracle: Oracle) -> None:
        self.broker = broker
        self.worker = worker
        self.oracle = oracle
        self.scenario = worker.scenarios[0]
        self.recoveries: list[tuple[str, float]] = []
        #: Times (Unix ms) at which the broker took nothing, and an event waited.
        self.away: list[float] = []

    async def feed(self, stopping: asyncio.Event) -> None:
        """A batch ten times a second, on a new connection whenever the old one is gone."""
        while not stopping.is_set():
            try:
                async with node_at(self.broker.url) as node:
                    while not stopping.is_set() and await self.oracle.publish(node, self.scenario):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)  # the pace
            except UNCONFIRMED:
                await asyncio.sleep(0.1)  # the broker is away, and the next batch is to be attempted all the same

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """While the block runs."""
        stopping = asyncio.Event()
        feeding = asyncio.create_task(self.feed(stopping))
        try:
            yield
        finally:
            stopping.set()
            # A publish may wait for 20 s; what it sends counts as attempted.
            await asyncio.wait([feeding], timeout=2)
            feeding.cancel()
            await asyncio.wait([feeding])

    async def recovers(self, fault: str, since: float) -> None:
        """/ready says yes again, and a fresh message is stored, in time."""
        async with asyncio.timeout(_RECOVERY), node_at(self.broker.url) as node:
            await self.worker.wait_ready()
            await fresh_is_stored(self.worker, self.oracle, node, self.scenario)
        self.recoveries.append((fault, round(time.monotonic() - since, 2)))
        assert self.recoveries[-1][1] < _RECOVERY, self.recoveries

    async def dies(self, *, by: str) -> None:
        """Gone under load; the worker says so, and waits for it."""
        async with self.load():
            stored = (await self.worker.scenario_status())["records_received"]
            await until(self.worker.scenario_status, lambda status: status["records_received"] > stored + 20)
            # Its event is made while the broker is away.
            await until(self.worker.scenario_status, lambda status: bool(status["training_running"]))
            # Held still for a moment, so that it has in hand what it has not acknowledged.
            self.worker.send(signal.SIGSTOP)
            await asyncio.sleep(0.5)
            await (self.broker.kill() if by == "kill" else self.broker.stop())
            self.worker.send(signal.SIGCONT)
            problems = await until(self.worker.problems, within=5)
            assert any(self.scenario in problem for problem in problems or [])
            await self.has_to_tell()
            since = await self.broker.start()
            await self.recovers(by, since)
        assert self.worker.running

    async def has_to_tell(self) -> None:
        """Until an event waits in the outbox, as it must."""
        await until(self.worker.status, lambda status: status["counters"]["outbox_waiting"] > 0)
        self.away.append(time.time() * 1000)

    async def throws_everybody_out(self) -> None:
        """`close_all_connections`, under load."""
        async with self.load():
            before = (await self.worker.status())["counters"]["reconnects"]
            await self.broker.control("close_all_connections", "because")
            since = time.monotonic()
            await until(self.worker.status, lambda status: status["counters"]["reconnects"] >= before + 3)
            await self.recovers("close_all_connections", since)

    async def loses_the_queue(self) -> None:
        """Deleted under its consumer, empty, since its content would be lost by an operator's will."""
        async with node_at(self.broker.url) as node:
            await self.oracle.resend(node)
            await settled(self.worker, self.oracle, node)
            restarts = (await self.worker.scenario_status())["consumer_restarts"]
            queue = await node.channel.get_queue(f"swarm.records.{self.scenario}")
            assert await depth(node, queue.name) == 0
            await queue.delete(if_unused=False, if_empty=False)
            since = time.monotonic()
            await until(self.worker.scenario_status, lambda status: status["consumer_restarts"] > restarts)
            await self.recovers("queue deleted", since)

    async def runs_out_of_memory(self) -> None:
        """An alarm stops publishers, not consumers: what is in the queue is stored and learnt, and nothing hangs."""
        async with node_at(self.broker.url) as node:
            await self.oracle.resend(node)
            await settled(self.worker, self.oracle, node)
            self.worker.send(signal.SIGSTOP)
            await self.oracle.publish_many(node, [self.scenario], 60)
            await self.broker.control("set_vm_memory_high_watermark", "0.00001")
            self.worker.send(signal.SIGCONT)
            try:
                await settled(self.worker, self.oracle, node, within=FRESH_STORED)
                await self.has_to_tell()
                assert await self.worker.problems() == []
            finally:
                await self.broker.control("set_vm_memory_high_watermark", "0.4")
        await self.recovers("memory alarm", time.monotonic())

    async def holds(self) -> None:
        """Everything that was confirmed is stored once, byte for byte, and nothing else; every event came out (I5)."""
        async with node_at(self.broker.url) as node:
            await self.oracle.resend(node)
            await settled(self.worker, self.oracle, node)
            for queue in (f"swarm.records.{self.scenario}", f"swarm.dead.{self.scenario}"):
                assert await depth(node, queue) == 0
        await quiet(self.worker)
        assert await self.worker.stop(within=30) == 0
        assert compare(self.oracle, self.scenario, await self.worker.exported()) == ([], [], [])
        with opened(self.worker) as store:
            assert damage(store) == []
            assert doubles(store) == []
            for at in self.away:
                waited = "SELECT count(*) FROM outbox WHERE created_at_ms <= ? AND sent_at_ms > ?"
                assert store.execute(waited, (at, at)).fetchone()[0], "no event waited, so nothing was shown"
            for listening in (journal_at(self.broker.url), service_at(self.broker.url)):
                async with listening as ears:
                    await events_match(store, self.scenario, ears)


async def test_a_broker_that_dies_stops_forgets_and_swells_costs_nothing_that_was_confirmed(
    new_worker: NewWorker, scenario: str, oracle: Oracle
) -> None:
    """Three kills, a clean restart, two queues lost, everybody thrown out twice, an alarm."""
    async with mortal_broker() as broker:
        async with service_at(broker.url):
            pass  # it has its queue, and goes away
        worker = new_worker(scenario, amqp_url=broker.url, trigger="count(20)")
        await worker.start()
        trial = Trial(broker, worker, oracle)
        async with watching(worker) as watch:
            for by in ("kill", "kill", "kill", "stop"):
                await trial.dies(by=by)
            for _ in range(2):
                await trial.throws_everybody_out()
            for _ in range(2):
                await trial.loses_the_queue()
            await trial.runs_out_of_memory()
            await watch.look(worker)
            await trial.holds()
    print(trial.recoveries, f"starts took {broker.start_seconds}")  # noqa: T201 - pytest shows it on failure
    assert worker.starts == 1
    assert (len(trial.recoveries), len(trial.away)) == (9, 5)
    assert watch.redelivered > 0
    assert oracle.copies["resent"] > 0
