"""The client on a real broker: restarts, unconfirmed batches, back-pressure, events, and the synchronous face."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from worker.broker.port import Delivery, OutgoingMessage
from worker.broker.publisher import RabbitPublisher
from worker.broker.session import Session
from worker.broker.subscriber import Subscriber
from worker.client.actions import ActionEventBuilder
from worker.client.connect import connect_follower, connect_publisher
from worker.client.publisher import PublisherLimits, RecordPublisher
from worker.client.sync import SyncPublisher
from worker.errors import BrokerUnreachable
from worker.wire.codec import decode_batch
from worker.wire.events import Failed, encode_event
from worker.wire.records import ActionRecord, Batch, LearnStatsRecord, Success

pytestmark = pytest.mark.rabbitmq

NewSession = Callable[..., Awaitable[Session]]
Eventually = Callable[..., Awaitable[None]]


def action(tick: int) -> ActionRecord:
    return ActionRecord(task_id="t", tick=tick, worker_id=0, action="look")


@pytest.fixture
async def inbox(new_session: NewSession, scenario: str) -> asyncio.Queue[Delivery]:
    """What a worker would get of the scenario."""
    queue: asyncio.Queue[Delivery] = asyncio.Queue(1000)
    await Subscriber(await new_session(), scenario, queue, prefetch=1000).start()
    return queue


async def received(inbox: asyncio.Queue[Delivery], count: int) -> list[tuple[str, Batch]]:
    """The next batches with their message ids."""
    batches = []
    for _ in range(count):
        delivery = await asyncio.wait_for(inbox.get(), 20)
        batch = decode_batch(delivery.body, scenario=delivery.scenario, content_type=delivery.content_type)
        assert isinstance(batch, Batch)
        batches.append((delivery.headers["message_id"], batch))
        await delivery.ack()
    return batches


async def test_events_and_a_session_arrive_as_one_producers_counted_batches(
    amqp_url: str, scenario: str, tmp_path: Path, inbox: asyncio.Queue[Delivery]
) -> None:
    async with connect_publisher(amqp_url, scenario=scenario, producer_id="node", state_dir=tmp_path) as publisher:
        for tick in range(150):
            await publisher.publish(ActionEventBuilder(tick, 1, "look").task_id("t").build())
        await publisher.end_session("s", outcome=Success(1.0), total_ticks=150, total_actions=150)
        batches = [batch for _, batch in await received(inbox, 2)]
    batches.sort(key=lambda batch: batch.identity.batch_seq or 0)
    assert [batch.identity.batch_seq for batch in batches] == [0, 1]
    assert [len(batch.records) for batch in batches] == [100, 51]
    assert isinstance(batches[1].records[-1], LearnStatsRecord)


async def test_a_restart_keeps_the_counter(
    amqp_url: str, scenario: str, tmp_path: Path, inbox: asyncio.Queue[Delivery]
) -> None:
    for start in range(3):
        async with connect_publisher(amqp_url, scenario=scenario, producer_id="node", state_dir=tmp_path) as publisher:
            await publisher.publish(action(start))
    batches = [batch for _, batch in await received(inbox, 3)]
    assert [batch.identity.batch_seq for batch in batches] == [0, 1, 2]
    assert len({batch.identity.producer_epoch for batch in batches}) == 1


async def test_before_any_worker_made_the_queue_batches_wait_and_then_arrive(
    amqp_url: str, scenario: str, tmp_path: Path, new_session: NewSession, eventually: Eventually
) -> None:
    """Returned, or no exchange at all: kept, sent again, confirmed once somebody takes it."""
    async with connect_publisher(amqp_url, scenario=scenario, producer_id="node", state_dir=tmp_path) as publisher:
        await publisher.publish(action(0))
        await eventually(lambda: publisher.stats.failures >= 2)
        queue: asyncio.Queue[Delivery] = asyncio.Queue(10)
        await Subscriber(await new_session(), scenario, queue, prefetch=10).start()
        await publisher.flush()
        [(_, batch)] = await received(queue, 1)
        assert batch.records == [action(0)]


async def test_what_was_not_confirmed_is_sent_after_a_restart_under_the_same_identity(
    amqp_url: str, scenario: str, tmp_path: Path, new_session: NewSession, eventually: Eventually
) -> None:
    options: dict[str, Any] = {"scenario": scenario, "producer_id": "node", "state_dir": tmp_path}
    async with connect_publisher(amqp_url, **options, close_timeout=0.01) as publisher:
        for tick in range(250):
            await publisher.publish(action(tick))
        await eventually(lambda: publisher.stats.unconfirmed == 3 and publisher.stats.buffered == 0)
    queue: asyncio.Queue[Delivery] = asyncio.Queue(10)
    await Subscriber(await new_session(), scenario, queue, prefetch=10).start()
    async with connect_publisher(amqp_url, **options) as publisher:
        assert publisher.stats.resent == 3
        await publisher.flush()
        await publisher.publish(action(250))
        await publisher.flush()
        batches = sorted(await received(queue, 4))
        epoch = batches[0][1].identity.producer_epoch
        assert [message_id for message_id, _ in batches] == [f"node:{epoch}:{seq}" for seq in range(4)]
        assert [record for _, batch in batches for record in batch.records] == [action(tick) for tick in range(251)]


async def test_a_full_queue_makes_publish_wait_and_loses_nothing(
    amqp_url: str, scenario: str, tmp_path: Path, new_session: NewSession, eventually: Eventually
) -> None:
    """The broker rejects (reject-publish), the publisher keeps and tries again, the node feels it as a slow publish."""
    session = await new_session()
    queue: asyncio.Queue[Delivery] = asyncio.Queue(100)
    worker = Subscriber(session, scenario, queue, prefetch=100)
    await worker.start()
    await worker.pause()
    channel = await session.open_channel()
    await channel.queue_declare(
        f"limited.{scenario}",
        durable=True,
        arguments={"x-queue-type": "quorum", "x-max-length": 2, "x-overflow": "reject-publish"},
    )
    await channel.queue_bind(f"limited.{scenario}", "swarm.records", scenario)
    limits = PublisherLimits(batch_records=1, buffer_records=2, spool_batches=4, batch_age=0.0)
    publishing = await new_session("publish")
    publisher = RecordPublisher(
        RabbitPublisher(publishing), scenario=scenario, producer_id="node", state_dir=tmp_path, limits=limits
    )
    async with publisher:
        taken = 0

        async def feed() -> None:
            nonlocal taken
            for tick in range(40):
                await publisher.publish(action(tick))
                taken += 1

        feeding = asyncio.create_task(feed())
        await eventually(lambda: publisher.stats.failures > 5 and publisher.stats.buffered == 2)
        # A quorum queue takes a few more than its limit before it rejects.
        assert taken < 40
        assert not feeding.done()
        await channel.queue_delete(f"limited.{scenario}")
        await feeding
        await publisher.flush()
        await worker.resume()
        # A rejected message had reached the queue without a limit: copies under one identity, as a worker expects.
        ticks: set[int] = set()
        while len(ticks) < 40:
            [(_, batch)] = await received(queue, 1)
            ticks |= {record.tick for record in batch.records if isinstance(record, ActionRecord)}
    assert ticks == set(range(40))


async def test_a_follower_gets_each_event_once(amqp_url: str, scenario: str, new_session: NewSession) -> None:
    data = Failed(scenario=scenario, reason="test")
    sending = RabbitPublisher(await new_session("publish"))
    async with connect_follower(amqp_url, name=scenario, keys=[f"learning.failed.{scenario}"]) as follower:
        for run in ("r1", "r1", "r2"):
            id_, body = encode_event(
                "learning.failed", subject_id=run, scenario=scenario, data=data, source="/w", time_ms=1
            )
            await sending.publish(
                OutgoingMessage(
                    exchange="swarm.learning", routing_key=f"learning.failed.{scenario}", body=body, message_id=id_
                )
            )
        ids: list[str] = []
        async for event in follower:
            ids.append(event.id)
            assert event.data == data
            if len(ids) == 2:
                break
        assert len(set(ids)) == 2
        assert follower.duplicates == 1


async def test_the_synchronous_face_publishes_flushes_and_ends_a_session(
    amqp_url: str, scenario: str, tmp_path: Path, inbox: asyncio.Queue[Delivery]
) -> None:
    def node() -> int:
        with SyncPublisher(amqp_url, scenario=scenario, producer_id="node", state_dir=tmp_path) as publisher:
            for tick in range(5):
                publisher.publish(action(tick))
            publisher.flush(timeout=20)
            publisher.end_session("s", outcome=Success(1.0), total_ticks=5, total_actions=5, phase="release")
            return publisher.stats.confirmed

    assert await asyncio.to_thread(node) >= 2
    records: list[Any] = []
    while not (records and isinstance(records[-1], LearnStatsRecord)):
        [(_, batch)] = await received(inbox, 1)
        records += batch.records
    assert records[:5] == [action(tick) for tick in range(5)]
    assert records[5].phase == "release"
    assert json.loads(bytes(records[5].stats_json))


async def test_a_broker_that_is_not_there_is_an_error_of_the_synchronous_face_too(tmp_path: Path) -> None:
    def node() -> None:
        with SyncPublisher(
            "amqp://guest:guest@localhost:1/", scenario="S", producer_id="n", state_dir=tmp_path, start_timeout=0.5
        ):
            pass

    with pytest.raises(BrokerUnreachable):
        await asyncio.to_thread(node)
