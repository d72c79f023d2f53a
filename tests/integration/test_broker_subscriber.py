"""Records come through: once acknowledged gone, else again; after every kind of loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import pytest
from aiormq.abc import ChannelFrame
from pamqp.heartbeat import Heartbeat

from tests.integration.conftest import NewSession
from tests.integration.proxy import proxied
from worker.broker.port import Delivery, OutgoingMessage
from worker.broker.publisher import RabbitPublisher
from worker.broker.session import Session
from worker.broker.subscriber import Subscriber
from worker.broker.topology import records_queue
from worker.wire.limits import MAX_BODY

if TYPE_CHECKING:
    from tests.conftest import Broker

pytestmark = pytest.mark.rabbitmq
Eventually = Callable[..., Awaitable[None]]
Publish = Callable[[int], Awaitable[None]]


@pytest.fixture
async def publish(new_session: NewSession, scenario: str) -> AsyncIterator[Publish]:
    """Publishes n records messages with the bodies 0, 1, 2, ..., counting on."""
    publisher = RabbitPublisher(await new_session("publish"))
    sent = 0

    async def send(count: int) -> None:
        nonlocal sent
        messages = [
            OutgoingMessage(
                exchange="swarm.records", routing_key=scenario, body=b"%d" % number, message_id=f"m{number}"
            )
            for number in range(sent, sent + count)
        ]
        sent += count
        await asyncio.gather(*[publisher.publish(message) for message in messages])

    yield send
    await publisher.close()


async def take(inbox: asyncio.Queue[Delivery], count: int, within: float = 15.0) -> list[Delivery]:
    async with asyncio.timeout(within):
        return [await inbox.get() for _ in range(count)]


async def take_fresh(inbox: asyncio.Queue[Delivery], count: int, within: float = 15.0) -> list[Delivery]:
    fresh: list[Delivery] = []
    async with asyncio.timeout(within):
        while len(fresh) < count:
            delivery = await inbox.get()
            if not delivery.stale:
                fresh.append(delivery)
    return fresh


def bodies(deliveries: list[Delivery]) -> list[int]:
    return sorted(int(delivery.body) for delivery in deliveries)


async def ready(session: Session, scenario: str) -> int:
    channel = await session.open_channel()
    answer = await channel.queue_declare(records_queue(scenario), passive=True)
    await channel.close()
    return answer.message_count or 0


async def test_what_is_acked_is_gone_and_what_is_not_comes_again(
    new_session: NewSession, scenario: str, publish: Publish
) -> None:
    session = await new_session()
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
    first = Subscriber(session, scenario, inbox, prefetch=100)
    await first.start()
    await publish(10)
    got = await take(inbox, 10)
    assert bodies(got) == list(range(10))
    assert not any(delivery.redelivered or delivery.stale for delivery in got)
    # Neither the oldest nor together: 1, 3 and 5 of 0..9, then twice.
    odd = [delivery for delivery in got if int(delivery.body) in (1, 3, 5)]
    await first.ack_many(odd)
    await first.ack_many(odd)
    await odd[0].ack()
    assert first.outstanding == 7
    await first.stop()
    assert all(delivery.stale for delivery in got)
    await got[0].ack()

    second = Subscriber(session, scenario, inbox, prefetch=100)
    await second.start()
    again = await take_fresh(inbox, 7)
    assert bodies(again) == [0, 2, 4, 6, 7, 8, 9]
    assert all(delivery.redelivered for delivery in again)
    await second.ack_many(again)
    await second.stop()
    assert await ready(session, scenario) == 0
    assert first.stats.acked == 3
    assert second.stats.acked == 7


async def test_a_complete_prefix_and_loose_ones_are_acked_in_any_order(
    new_session: NewSession, scenario: str, publish: Publish
) -> None:
    """A cumulative ack must never cover a delivery that is not in the group."""
    session = await new_session()
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
    subscriber = Subscriber(session, scenario, inbox, prefetch=100)
    await subscriber.start()
    await publish(30)
    got = sorted(await take(inbox, 30), key=lambda delivery: int(delivery.body))
    await subscriber.ack_many([*got[12:14], *got[0:10][::-1], got[20]])
    await subscriber.ack_many(got[10:12])
    await subscriber.ack_many(got[25:30])
    await subscriber.stop()
    inbox = asyncio.Queue(100)
    second = Subscriber(session, scenario, inbox, prefetch=100)
    await second.start()
    assert bodies(await take(inbox, 10)) == [14, 15, 16, 17, 18, 19, 21, 22, 23, 24]
    await second.stop()


async def test_properties_come_along(new_session: NewSession, scenario: str) -> None:
    session = await new_session()
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(10)
    subscriber = Subscriber(session, scenario, inbox, prefetch=10)
    await subscriber.start()
    publisher = RabbitPublisher(await new_session("publish"))
    await publisher.publish(
        OutgoingMessage(
            exchange="swarm.records", routing_key=f"{scenario}.x", body=b"z", message_id="p:0:1", type="records",
            content_encoding="gzip", headers={"traceparent": "00-abc", "CC": ["elsewhere"]},
        )
    )  # fmt: skip
    (delivery,) = await take(inbox, 1)
    assert delivery.scenario == scenario
    assert delivery.content_type == "application/json"
    assert delivery.content_encoding == "gzip"
    assert delivery.user_id is None
    assert delivery.headers["message_id"] == "p:0:1"
    assert delivery.headers["type"] == "records"
    assert delivery.headers["traceparent"] == "00-abc"
    await delivery.give_back()
    (again,) = await take(inbox, 1)
    assert again.redelivered
    await again.ack()
    await subscriber.stop()


async def test_an_oversized_body_arrives_cut_so_that_it_is_refused_and_not_kept(
    new_session: NewSession, scenario: str
) -> None:
    session = await new_session()
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(10)
    subscriber = Subscriber(session, scenario, inbox, prefetch=10)
    await subscriber.start()
    publisher = RabbitPublisher(await new_session("publish"))
    await publisher.publish(
        OutgoingMessage(exchange="swarm.records", routing_key=scenario, body=bytes(9_000_000), message_id="big")
    )
    (delivery,) = await take(inbox, 1)
    assert len(delivery.body) == MAX_BODY + 1
    assert delivery.headers["body_bytes"] == "9000000"
    assert subscriber.stats.oversized == 1
    await delivery.ack()
    await subscriber.stop()


async def test_a_smaller_inbox_than_the_prefetch_loses_nothing(
    new_session: NewSession, scenario: str, publish: Publish
) -> None:
    """Quorum queues may exceed the prefetch (rabbitmq-server #5609); a full inbox must not block a callback."""
    session = await new_session()
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(3)
    subscriber = Subscriber(session, scenario, inbox, prefetch=50)
    await subscriber.start()
    await publish(40)
    got = await take(inbox, 40)
    assert [int(delivery.body) for delivery in got] == sorted(int(delivery.body) for delivery in got)
    assert subscriber.stats.overflowed > 0
    await subscriber.ack_many(got)
    await subscriber.stop()
    assert await ready(session, scenario) == 0


async def test_pausing_keeps_what_is_in_hand_and_takes_no_more(
    new_session: NewSession, scenario: str, publish: Publish
) -> None:
    session = await new_session()
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
    subscriber = Subscriber(session, scenario, inbox, prefetch=100)
    await subscriber.start()
    await publish(5)
    in_hand = await take(inbox, 5)
    await subscriber.pause()
    assert not subscriber.consuming
    await publish(5)
    assert await ready(session, scenario) == 5
    assert inbox.empty()
    await subscriber.ack_many(in_hand)
    await subscriber.resume()
    assert subscriber.consuming
    rest = await take(inbox, 5)
    assert bodies(rest) == [5, 6, 7, 8, 9]
    await subscriber.ack_many(rest)
    await subscriber.stop()
    assert await ready(session, scenario) == 0


async def test_records_flow_again_after_the_wire_was_cut(
    new_session: NewSession, amqp_url: str, scenario: str, publish: Publish
) -> None:
    """What was in hand is stale and dropped without harm; the same records come on a new generation."""
    async with proxied(amqp_url) as (proxy, url):
        session = await new_session(url=url)
        inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
        subscriber = Subscriber(session, scenario, inbox, prefetch=100)
        await subscriber.start()
        await publish(10)
        old = await take(inbox, 10)
        await subscriber.ack_many(old[:4])
        # The broker has to have these four acks, else they come again too.
        await subscriber.pause()
        await subscriber.resume()
        proxy.cut()
        new = await take_fresh(inbox, 6)
        assert bodies(new) == bodies(old[4:])
        assert all(delivery.stale for delivery in old)
        await subscriber.ack_many(old)
        await subscriber.ack_many(new)
        await publish(3)
        last = await take_fresh(inbox, 3)
        await subscriber.ack_many(last)
        assert subscriber.restarts == 1
        assert subscriber.stats.stale >= 6
        await subscriber.stop()
        assert await ready(session, scenario) == 0


async def test_a_paused_subscriber_stays_paused_across_a_cut(
    new_session: NewSession, amqp_url: str, scenario: str, publish: Publish, eventually: Eventually
) -> None:
    async with proxied(amqp_url) as (proxy, url):
        session = await new_session(url=url)
        inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
        subscriber = Subscriber(session, scenario, inbox, prefetch=100)
        await subscriber.start()
        await subscriber.pause()
        proxy.cut()
        await eventually(lambda: subscriber.restarts == 1)
        await publish(3)
        assert await ready(session, scenario) == 3
        await subscriber.resume()
        await subscriber.ack_many(await take_fresh(inbox, 3))
        await subscriber.stop()


async def test_a_connection_closed_by_the_broker_comes_back(
    new_session: NewSession, broker: Broker, scenario: str, publish: Publish, amqp_url: str
) -> None:
    session = await new_session()
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
    subscriber = Subscriber(session, scenario, inbox, prefetch=100)
    await subscriber.start()
    await publish(3)
    await take(inbox, 3)
    vhost = amqp_url.rsplit("/", 1)[1]
    await asyncio.to_thread(broker.control, "close_all_connections", "--vhost", vhost, "maintenance")
    again = await take_fresh(inbox, 3)
    assert bodies(again) == [0, 1, 2]
    await subscriber.ack_many(again)
    await subscriber.stop()


async def test_a_queue_deleted_under_the_consumer_is_made_again(
    new_session: NewSession, scenario: str, publish: Publish, eventually: Eventually
) -> None:
    """The broker cancels the consumer, which older clients never noticed (aiormq #116)."""
    session = await new_session()
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
    subscriber = Subscriber(session, scenario, inbox, prefetch=100)
    await subscriber.start()
    channel = await (await new_session("control")).open_channel()
    await channel.queue_delete(records_queue(scenario))
    await eventually(lambda: subscriber.restarts == 1 and subscriber.consuming)
    await publish(3)
    await subscriber.ack_many(await take_fresh(inbox, 3))
    await subscriber.stop()


async def test_thin_slices_and_latency_change_nothing(
    new_session: NewSession, amqp_url: str, scenario: str, publish: Publish
) -> None:
    async with proxied(amqp_url) as (proxy, url):
        proxy.slice, proxy.delay = 7, 0.01
        session = await new_session(url=url)
        inbox: asyncio.Queue[Delivery] = asyncio.Queue(100)
        subscriber = Subscriber(session, scenario, inbox, prefetch=100)
        await subscriber.start()
        await publish(20)
        got = await take(inbox, 20)
        assert bodies(got) == list(range(20))
        await subscriber.ack_many(got)
        await subscriber.stop()
        assert await ready(session, scenario) == 0


async def test_acks_that_the_wire_does_not_take_start_the_consumer_over(
    new_session: NewSession, amqp_url: str, scenario: str, publish: Publish, eventually: Eventually
) -> None:
    """Else it was given up in silence: it took no delivery any more, and nothing brought it back."""
    async with proxied(amqp_url) as (proxy, url):
        inbox: asyncio.Queue[Delivery] = asyncio.Queue(10)
        subscriber = Subscriber(await new_session(url=url, call_timeout=0.5), scenario, inbox, prefetch=10)
        await subscriber.start()
        await publish(1)
        (held,) = await take(inbox, 1)
        proxy.freeze("up")
        link = subscriber._consumer.link
        assert link is not None
        # More than the kernel takes, and behind it as many frames as may wait.
        jam = asyncio.create_task(link.channel.basic_publish(bytes(12_000_000), routing_key="nowhere"))
        async with asyncio.timeout(5):
            while not link.channel.write_queue.full():
                link.channel.write_queue.put_nowait(ChannelFrame.marshall(0, [Heartbeat()]))
                await asyncio.sleep(0.02)
        await held.ack()
        assert held.stale
        proxy.thaw()
        (again,) = await take_fresh(inbox, 1)
        assert again.redelivered
        await eventually(lambda: subscriber.restarts == 1)
        await asyncio.wait([jam], timeout=5)
        await again.ack()
        await subscriber.stop()
