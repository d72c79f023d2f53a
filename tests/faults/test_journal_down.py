"""RabbitMQ may lose the journal, a stream, for good: events come out all the same, and it is told what to do.

What is declared within the last second before a kill -9 is lost by RabbitMQ 3.10.8; so is the journal here, alone.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from aio_pika.abc import AbstractIncomingMessage

from tests.faults.mortal_broker import MortalBroker, mortal_broker
from tests.integration.foreign_node import connection_to, ears_at, journal_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until
from worker.broker.event_publisher import EventPublisher
from worker.broker.port import OutgoingMessage
from worker.broker.session import Session
from worker.broker.topology import ensure_topology, exchanges, journal_objects, scenario_objects, service_objects
from worker.broker.url import parse_amqp_url
from worker.errors import PublishFailed

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]

#: As README.md gives it to operators.
_FORGET = (
    'rabbit_amqqueue:internal_delete(rabbit_misc:r(<<"/">>, queue, <<"swarm.learning.journal">>), <<"operator">>).'
)


async def _session(broker: MortalBroker) -> Session:
    session = Session("publish", parse_amqp_url(broker.url), start_timeout=10)
    await session.start()
    return session


async def _lose_the_journal(broker: MortalBroker, scenario: str) -> None:
    session = await _session(broker)
    await ensure_topology(session, [*exchanges(), *scenario_objects(scenario)], "auto")
    await asyncio.sleep(3)  # so that these are not lost
    await ensure_topology(session, journal_objects(), "auto")
    await broker.kill()
    await session.close()
    await broker.start()


async def _event(worker: WorkerProcess) -> float:
    """Have one made by a run that finds nothing to learn from; seconds until it was sent."""
    sent = (await worker.status())["counters"]["events_sent"]
    began = time.monotonic()
    await worker.tell("train-now", "--scenario", worker.scenarios[0], "--force")
    await until(worker.status, lambda status: status["counters"]["events_sent"] > sent, within=20)
    return time.monotonic() - began


async def test_events_come_out_without_the_journal_and_with_it_once_it_is_back(
    new_worker: NewWorker, scenario: str
) -> None:
    """Nobody else listens at first, so an event came back, and waited with all behind it as long as it was down."""
    async with mortal_broker() as broker:
        await _lose_the_journal(broker, scenario)
        worker = new_worker(scenario, amqp_url=broker.url)
        await worker.start()
        await _event(worker)
        status = await worker.status()
        assert (status["ready"], status["journal"]["up"], status["counters"]["journal_up"]) == (True, False, 0)
        assert "down or inaccessible" in status["journal"]["reason"]
        async with ears_at(broker.url, "learning.#") as ears:
            assert await _event(worker) < 10
            await ears.wait_for("learning.skipped", scenario)
        await broker.control("eval", _FORGET)
        await _event(worker)
        assert (await worker.status())["journal"] == {"up": True, "reason": None}
        async with journal_at(broker.url) as journal:
            await journal.wait_for("learning.skipped", scenario)


async def test_an_event_waits_for_a_journal_that_is_only_late() -> None:
    """For up to 0.5 s of a start a sound one is down: what others had a queue for was confirmed, and not in it."""
    async with mortal_broker() as broker:
        session = await _session(broker)
        await ensure_topology(session, [*exchanges(), *journal_objects()], "auto")
        await ensure_topology(session, service_objects("planner", ["learning.#"]), "auto")
        await asyncio.sleep(3)  # so that none is lost
        await session.close()
        await broker.stop()
        await broker.start()
        session = await _session(broker)
        publisher = EventPublisher(session, "auto")
        names = [f"e{number}" for number in range(20)]
        for name in names:
            await _publish(publisher, name)
        async with connection_to(broker.url) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=100)
            journal = await channel.get_queue("swarm.learning.journal", ensure=False)
            heard: list[str | None] = []

            async def hear(message: AbstractIncomingMessage) -> None:
                heard.append(message.message_id)
                await message.ack()

            async def last() -> bool:
                return names[-1] in heard

            await journal.consume(hear, arguments={"x-stream-offset": "first"})
            await until(last)
        assert heard == names
        assert publisher.journal_trouble is None
        await session.close()


async def _publish(publisher: EventPublisher, name: str) -> None:
    """As the outbox does it: until it is confirmed."""
    while True:
        try:
            await publisher.publish(
                OutgoingMessage(
                    exchange="swarm.learning", routing_key="learning.trained.S", body=b"{}", message_id=name
                )
            )
        except PublishFailed:
            await asyncio.sleep(0.1)  # the outbox waits for longer
        else:
            return
