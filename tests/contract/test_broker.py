"""What a broker must do for the worker: RabbitMQ and the fake in memory keep the same contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from worker.broker.control import CommandSource, ControlListener
from worker.broker.memory import MemoryBroker, MemoryControl, MemoryPublisher, MemorySubscriber
from worker.broker.port import ControlMessage, Delivery, OutgoingMessage, Publisher, Subscription
from worker.broker.publisher import RabbitPublisher
from worker.broker.session import Session
from worker.broker.subscriber import Subscriber
from worker.broker.topology import Queue, ensure_topology, reply_queue, shared_objects, temporary_queue
from worker.broker.url import parse_amqp_url
from worker.errors import PublishFailed


class Harness:
    """Makes the parts of one broker, and takes them down."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack

    async def subscriber(self, scenario: str, inbox: asyncio.Queue[Delivery], *, prefetch: int = 100) -> Subscription:
        raise NotImplementedError

    async def publisher(self) -> Publisher:
        raise NotImplementedError

    async def control(self, worker_id: str, scenarios: list[str]) -> CommandSource:
        raise NotImplementedError

    async def make_queue(self, queue: Queue) -> None:
        raise NotImplementedError

    async def take(self, queue: str) -> bytes | None:
        """One message off a queue, None where it stays empty."""
        raise NotImplementedError


class InMemory(Harness):
    def __init__(self, stack: AsyncExitStack) -> None:
        super().__init__(stack)
        self.broker = MemoryBroker()

    async def subscriber(self, scenario: str, inbox: asyncio.Queue[Delivery], *, prefetch: int = 100) -> Subscription:
        subscriber = MemorySubscriber(self.broker, scenario, inbox, prefetch=prefetch)
        await subscriber.start()
        self.stack.push_async_callback(subscriber.stop)
        return subscriber

    async def publisher(self) -> Publisher:
        return MemoryPublisher(self.broker)

    async def control(self, worker_id: str, scenarios: list[str]) -> CommandSource:
        control = MemoryControl(self.broker, worker_id=worker_id, boot_id="b1", scenarios=scenarios)
        await control.start()
        self.stack.push_async_callback(control.stop)
        return control

    async def make_queue(self, queue: Queue) -> None:
        self.broker.declare(queue)

    async def take(self, queue: str) -> bytes | None:
        ready = self.broker.queues[queue].ready
        return ready.popleft().message.body if ready else None


class Real(Harness):
    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        super().__init__(stack)
        self.url = parse_amqp_url(url)
        self.session: Session | None = None

    async def _session(self, role: Any) -> Session:
        session = Session(role, self.url)
        await session.start()
        self.stack.push_async_callback(session.close)
        return session

    async def subscriber(self, scenario: str, inbox: asyncio.Queue[Delivery], *, prefetch: int = 100) -> Subscription:
        subscriber = Subscriber(await self._session("consume"), scenario, inbox, prefetch=prefetch)
        await subscriber.start()
        self.stack.push_async_callback(subscriber.stop)
        return subscriber

    async def publisher(self) -> Publisher:
        publisher = RabbitPublisher(await self._session("publish"))
        self.stack.push_async_callback(publisher.close)
        return publisher

    async def control(self, worker_id: str, scenarios: list[str]) -> CommandSource:
        session = await self._session("control")
        control = ControlListener(
            session, RabbitPublisher(session), worker_id=worker_id, boot_id="b1", scenarios=scenarios
        )
        await control.start()
        self.stack.push_async_callback(control.stop)
        return control

    async def make_queue(self, queue: Queue) -> None:
        self.session = self.session or await self._session("control")
        await ensure_topology(self.session, [*shared_objects(), queue], "auto")

    async def take(self, queue: str) -> bytes | None:
        assert self.session is not None
        channel = await self.session.open_channel()
        message = await channel.basic_get(queue, no_ack=True)
        await channel.close()
        return message.body if message.delivery_tag else None


@pytest.fixture(params=["memory", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
async def harness(request: pytest.FixtureRequest) -> AsyncIterator[Harness]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield InMemory(stack)
        else:
            yield Real(stack, request.getfixturevalue("amqp_url"))


def record(scenario: str, number: int) -> OutgoingMessage:
    return OutgoingMessage(
        exchange="swarm.records", routing_key=scenario, body=b"%d" % number, message_id=f"{scenario}:{number}"
    )


async def take(inbox: asyncio.Queue[Any], count: int) -> list[Any]:
    async with asyncio.timeout(10):
        return [await inbox.get() for _ in range(count)]


async def test_records_come_in_order_and_unacked_ones_again(harness: Harness, scenario: str) -> None:
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
    subscriber = await harness.subscriber(scenario, inbox)
    publisher = await harness.publisher()
    for number in range(6):
        await publisher.publish(record(scenario, number))
    got = await take(inbox, 6)
    assert [delivery.body for delivery in got] == [b"%d" % number for number in range(6)]
    assert {delivery.scenario for delivery in got} == {scenario}
    assert got[0].headers["message_id"] == f"{scenario}:0"
    assert not got[0].redelivered
    await subscriber.ack_many(got[:3])
    await subscriber.ack_many(got[:3])
    await got[4].ack()
    await subscriber.stop()
    assert got[3].stale
    await got[3].ack()

    second: asyncio.Queue[Delivery] = asyncio.Queue(100)
    other = await harness.subscriber(scenario, second)
    again = await take(second, 2)
    assert sorted(delivery.body for delivery in again) == [b"3", b"5"]
    assert all(delivery.redelivered for delivery in again)
    await other.ack_many(again)


async def test_no_more_than_the_prefetch_is_in_hand(harness: Harness, scenario: str) -> None:
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
    subscriber = await harness.subscriber(scenario, inbox, prefetch=3)
    publisher = await harness.publisher()
    for number in range(5):
        await publisher.publish(record(scenario, number))
    first = await take(inbox, 3)
    assert inbox.empty()
    await subscriber.ack_many(first)
    await subscriber.ack_many(await take(inbox, 2))


async def test_a_full_inbox_loses_nothing_and_keeps_the_order(harness: Harness, scenario: str) -> None:
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(2)
    subscriber = await harness.subscriber(scenario, inbox, prefetch=50)
    publisher = await harness.publisher()
    for number in range(10):
        await publisher.publish(record(scenario, number))
    got = await take(inbox, 10)
    assert [delivery.body for delivery in got] == [b"%d" % number for number in range(10)]
    await subscriber.ack_many(got)


async def test_pause_holds_back_and_resume_lets_go(harness: Harness, scenario: str) -> None:
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(10)
    subscriber = await harness.subscriber(scenario, inbox)
    await subscriber.pause()
    await (await harness.publisher()).publish(record(scenario, 1))
    assert inbox.empty()
    await subscriber.resume()
    (delivery,) = await take(inbox, 1)
    await delivery.give_back()
    (again,) = await take(inbox, 1)
    assert again.redelivered
    await again.ack()


async def test_what_nobody_takes_is_returned(harness: Harness) -> None:
    publisher = await harness.publisher()
    await harness.make_queue(Queue(name="any", arguments={}))
    with pytest.raises(PublishFailed) as failed:
        await publisher.publish(record("nobody-serves-this", 1))
    assert failed.value.reason == "returned"
    await publisher.publish(record("nobody-serves-this", 1), mandatory=False)


async def test_events_are_routed_by_topic_and_by_their_copy_key(harness: Harness) -> None:
    for name, key in {
        "all": "learning.#",
        "bare": "learning.trained",
        "one": "learning.*.S",
        "other": "learning.*.T",
    }.items():
        await harness.make_queue(Queue(name=name, arguments={}, bindings=[("swarm.learning", key)]))
    event = OutgoingMessage(
        exchange="swarm.learning", routing_key="learning.trained.S", body=b"e", message_id="e",
        headers={"CC": ["learning.trained"]},
    )  # fmt: skip
    await (await harness.publisher()).publish(event)
    assert [await harness.take(name) for name in ("all", "bare", "one", "other")] == [b"e", b"e", b"e", None]
    assert await harness.take("all") is None


async def test_every_worker_hears_a_broadcast_and_one_does_a_job(harness: Harness, scenario: str) -> None:
    first = await harness.control("w1", [scenario])
    second = await harness.control("w2", [scenario])
    publisher = await harness.publisher()

    async def send(key: str) -> None:
        command = OutgoingMessage(exchange="swarm.control", routing_key=key, body=key.encode(), message_id=key)
        await publisher.publish(command)

    for key in ("all", f"scenario.{scenario}", "worker.w2"):
        await send(key)
    heard = [message.body for message in await take(first.inbox, 2)]
    assert heard == [b"all", f"scenario.{scenario}".encode()]
    heard = [message.body for message in await take(second.inbox, 3)]
    assert heard == [b"all", f"scenario.{scenario}".encode(), b"worker.w2"]

    await send(f"job.{scenario}")
    inboxes = [asyncio.create_task(source.inbox.get()) for source in (first, second)]
    done, waiting = await asyncio.wait(inboxes, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    message: ControlMessage = done.pop().result()
    assert message.routing_key == f"job.{scenario}"
    await message.ack()
    for task in waiting:
        task.cancel()
    with pytest.raises(PublishFailed):
        await send("worker.w3")


async def test_answers_go_to_allowed_addresses_only(harness: Harness, scenario: str) -> None:
    """A free reply_to would let anybody write into any queue through the worker."""
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(10)
    await harness.subscriber(scenario, inbox)
    source = await harness.control("w1", [scenario])
    publisher = await harness.publisher()
    await harness.make_queue(temporary_queue(reply_queue("me")))
    expected = {
        "swarm.reply.me": True,
        f"swarm.records.{scenario}": False,
        "swarm.reply.me\n": False,
        "swarm.reply.ME": False,
        None: False,
    }
    for number, reply_to in enumerate(expected):
        await publisher.publish(
            OutgoingMessage(
                exchange="swarm.control", routing_key="all", body=b"{}", message_id=f"c{number}",
                correlation_id=f"c{number}", reply_to=reply_to,
            )
        )  # fmt: skip
    for message in await take(source.inbox, len(expected)):
        assert await source.reply(message, b"answer") is expected[message.reply_to]
        await message.ack()
    assert await harness.take("swarm.reply.me") == b"answer"
    assert await harness.take("swarm.reply.me") is None
    assert inbox.empty()
