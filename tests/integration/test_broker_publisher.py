"""Publishing: the broker's word for each message, or an error that says which word it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from pamqp.common import FieldValue

from tests.integration.conftest import NewSession
from tests.integration.proxy import proxied
from worker.broker.port import OutgoingMessage
from worker.broker.publisher import RabbitPublisher
from worker.broker.topology import LEARNING_JOURNAL, ensure_topology, shared_objects
from worker.errors import PublishFailed

pytestmark = pytest.mark.rabbitmq


def message(key: str, message_id: str = "m1", *, exchange: str = "") -> OutgoingMessage:
    return OutgoingMessage(exchange=exchange, routing_key=key, body=b"{}", message_id=message_id)


async def test_what_no_queue_takes_is_an_error(new_session: NewSession) -> None:
    publisher = RabbitPublisher(await new_session("publish"))
    with pytest.raises(PublishFailed, match="no-such-queue") as failed:
        await publisher.publish(message("no-such-queue"))
    assert failed.value.reason == "returned"
    await publisher.publish(message("no-such-queue"), mandatory=False)
    assert (publisher.stats.returned, publisher.stats.published) == (1, 1)


async def test_a_missing_exchange_fails_its_message_and_the_next_one_goes_through(new_session: NewSession) -> None:
    session = await new_session("publish")
    channel = await session.open_channel()
    await channel.queue_declare("q", durable=True)
    publisher = RabbitPublisher(session)
    with pytest.raises(PublishFailed) as failed:
        await publisher.publish(message("x", exchange="swarm.nowhere"))
    assert failed.value.reason == "no_exchange"
    await publisher.publish(message("q"))


async def test_a_full_queue_refuses_with_a_reason(new_session: NewSession) -> None:
    session = await new_session("publish")
    channel = await session.open_channel()
    limits: dict[str, FieldValue] = {"x-queue-type": "quorum", "x-max-length": 2, "x-overflow": "reject-publish"}
    await channel.queue_declare("full", durable=True, arguments=limits)
    publisher = RabbitPublisher(session)

    async def fill() -> None:
        # One after the other: a quorum queue's limit is soft, and lets what is in flight pass.
        for number in range(20):
            await publisher.publish(message("full", f"m{number}"))

    with pytest.raises(PublishFailed) as failed:
        await fill()
    assert failed.value.reason == "nacked"


async def test_every_event_has_a_place_and_its_copy_key_is_honoured(new_session: NewSession) -> None:
    """`CC` lets a service bind the bare event name; a queue that both keys reach gets one copy."""
    session = await new_session("publish")
    await ensure_topology(session, shared_objects(), "auto")
    channel = await session.open_channel()
    for queue, keys in {"bare": ["learning.trained"], "both": ["learning.#"], "one": ["learning.trained.S"]}.items():
        await channel.queue_declare(queue, durable=True)
        for key in keys:
            await channel.queue_bind(queue, "swarm.learning", key)
    event = OutgoingMessage(
        exchange="swarm.learning", routing_key="learning.trained.S", body=b"{}", message_id="e1",
        type="learning.trained", headers={"CC": ["learning.trained"]},
    )  # fmt: skip
    publisher = RabbitPublisher(session)
    await publisher.publish(event)
    for queue in ("bare", "both", "one"):
        first = await channel.basic_get(queue, no_ack=True)
        assert first.header.properties.message_id == "e1"
        assert first.header.properties.delivery_mode == 2
        assert (await channel.basic_get(queue, no_ack=True)).body == b""
    await channel.queue_declare(LEARNING_JOURNAL, passive=True)


async def test_one_message_id_is_never_in_flight_twice(new_session: NewSession) -> None:
    """The client library would mix their confirms up: each caller must hear of its own message."""
    session = await new_session("publish")
    channel = await session.open_channel()
    await channel.queue_declare("q", durable=True)
    publisher = RabbitPublisher(session)
    jobs = [publisher.publish(message("q" if number % 2 else "nowhere", "same")) for number in range(20)]
    outcomes = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 20)
    assert [isinstance(outcome, PublishFailed) for outcome in outcomes] == [number % 2 == 0 for number in range(20)]


async def test_a_blocked_broker_costs_the_timeout_and_not_more(new_session: NewSession, amqp_url: str) -> None:
    async with proxied(amqp_url) as (proxy, url):
        session = await new_session("publish", url=url)
        channel = await session.open_channel()
        await channel.queue_declare("q", durable=True)
        publisher = RabbitPublisher(session)
        await publisher.publish(message("q"))
        proxy.freeze()
        started = time.monotonic()
        with pytest.raises(PublishFailed) as failed:
            await publisher.publish(message("q", "m2"), timeout=0.5)
        assert failed.value.reason == "timeout"
        assert time.monotonic() - started < 5
        proxy.thaw()
        for number in range(20):
            await publisher.publish(message("q", f"later{number}"))


async def test_without_a_connection_it_fails_at_once_and_works_again_later(
    new_session: NewSession, amqp_url: str, eventually: Callable[..., Awaitable[None]]
) -> None:
    async with proxied(amqp_url) as (proxy, url):
        session = await new_session("publish", url=url)
        channel = await session.open_channel()
        await channel.queue_declare("q", durable=True)
        publisher = RabbitPublisher(session)
        await publisher.publish(message("q"))
        proxy.refuse()
        proxy.cut()
        await eventually(lambda: not session.connected)
        with pytest.raises(PublishFailed) as failed:
            await publisher.publish(message("q", "m2"), timeout=2)
        assert failed.value.reason == "no_connection"
        proxy.refuse(refusing=False)
        async with asyncio.timeout(20):
            while True:
                try:
                    await publisher.publish(message("q", "m3"), timeout=2)
                except PublishFailed:
                    await asyncio.sleep(0.1)
                else:
                    break


async def test_many_are_in_flight_together(new_session: NewSession) -> None:
    session = await new_session("publish")
    channel = await session.open_channel()
    await channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
    publisher = RabbitPublisher(session, max_in_flight=64)
    await asyncio.gather(*[publisher.publish(message("q", f"m{number}")) for number in range(500)])
    answer = await channel.queue_declare("q", passive=True)
    assert answer.message_count == 500


async def test_an_exchange_or_its_journal_that_is_gone_is_made_again(new_session: NewSession) -> None:
    """Nobody else would: events waited in the outbox until the worker was started anew."""
    session = await new_session("publish")
    await ensure_topology(session, shared_objects(), "auto")
    publisher = RabbitPublisher(session, restore=lambda: ensure_topology(session, shared_objects(), "auto"))
    event = message("learning.trained.S", exchange="swarm.learning")
    channel = await session.open_channel()
    for number, (delete, reason) in enumerate(
        (
            (channel.exchange_delete("swarm.learning"), "no_exchange"),
            (channel.queue_delete(LEARNING_JOURNAL), "returned"),
        )
    ):
        await publisher.publish(event)
        await delete
        with pytest.raises(PublishFailed) as failed:
            await publisher.publish(event)
        assert failed.value.reason == reason
        await publisher.publish(event)
        assert publisher.stats.published == 2 * (number + 1)


async def test_a_channel_that_is_given_up_fails_what_is_in_flight_and_cancels_nobody(new_session: NewSession) -> None:
    """aiormq cancels what waits on a channel that is closed: a node's other senders, taken for cancelled, were gone."""
    session = await new_session("publish")
    channel = await session.open_channel()
    await channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
    publisher = RabbitPublisher(session)
    lost: list[BaseException] = []
    for _ in range(20):  # on a busy machine the broker may be the faster one
        await publisher.publish(message("q"))
        patient = [asyncio.create_task(publisher.publish(message("q", f"p{number}"))) for number in range(200)]
        await asyncio.sleep(0)
        # It gives the channel up, and the broker closes that before it has synced the others.
        with pytest.raises(PublishFailed, match="did not confirm"):
            await publisher.publish(message("q", "m"), timeout=0.0)
        lost += [end for end in await asyncio.gather(*patient, return_exceptions=True) if end is not None]
        if lost:
            break
    assert lost
    assert {type(end) for end in lost} == {PublishFailed}
    await publisher.publish(message("q", "m2"))


async def test_a_connection_given_up_for_its_silence_fails_a_publish_and_cancels_nobody(
    new_session: NewSession, amqp_url: str
) -> None:
    """Heartbeats end it with a cancellation too; the relay of events was gone with the first one."""
    async with proxied(f"{amqp_url}?heartbeat=1") as (proxy, url):
        publisher = RabbitPublisher(await new_session("publish", url=url))
        await publisher.publish(message("nowhere"), mandatory=False)
        proxy.half_open()
        with pytest.raises(PublishFailed) as lost:
            await publisher.publish(message("nowhere", "m2"), mandatory=False, timeout=20)
        assert lost.value.reason == "no_connection"
