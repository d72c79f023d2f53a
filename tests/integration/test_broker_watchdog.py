"""The watchdog sees what a healthy-looking socket hides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.integration.conftest import NewSession
from tests.integration.proxy import proxied
from worker.broker.port import Delivery, OutgoingMessage
from worker.broker.publisher import RabbitPublisher
from worker.broker.subscriber import Subscriber
from worker.broker.topology import Queue, scenario_objects
from worker.broker.watchdog import Watchdog
from worker.errors import WorkerError

pytestmark = pytest.mark.rabbitmq
Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
async def subscriber(new_session: NewSession, scenario: str) -> AsyncIterator[Subscriber]:
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(10)
    subscriber = Subscriber(await new_session(), scenario, inbox, prefetch=10)
    await subscriber.start()
    yield subscriber
    await subscriber.stop()


async def lose_consumer(subscriber: Subscriber) -> None:
    """The bug nobody knows of yet: the broker has forgotten the consumer, and the client thinks it is there."""
    link = subscriber._consumer.link
    assert link is not None
    for tag in link.tags.values():
        await link.channel.basic_cancel(tag)
    assert subscriber.consuming, "this is what makes it a trap"


async def test_a_registered_consumer_is_healthy(subscriber: Subscriber) -> None:
    watchdog = Watchdog(subscriber)
    assert not watchdog.healthy
    await watchdog.check()
    assert watchdog.healthy
    assert (watchdog.reason, watchdog.queue_depth, watchdog.consumers) == ("consuming", 0, 1)
    await subscriber.pause()
    await watchdog.check()
    assert watchdog.healthy
    assert watchdog.reason == "paused"


async def test_a_forgotten_consumer_is_started_over(subscriber: Subscriber, eventually: Eventually) -> None:
    watchdog = Watchdog(subscriber)
    await watchdog.check()
    await lose_consumer(subscriber)
    await watchdog.check()
    assert not watchdog.healthy
    assert "no consumer" in watchdog.reason
    await eventually(lambda: subscriber.restarts == 1 and subscriber.consuming)
    await watchdog.check()
    assert watchdog.healthy
    assert watchdog.rebuilds == 1


async def test_twice_in_a_row_ends_the_worker(subscriber: Subscriber, eventually: Eventually, scenario: str) -> None:
    """Messages wait and starting over has not helped: let the supervisor start a fresh process."""
    publisher = RabbitPublisher(subscriber.session)
    watchdog = Watchdog(subscriber, quiet=0.0)
    await lose_consumer(subscriber)
    await publisher.publish(OutgoingMessage(exchange="swarm.records", routing_key=scenario, body=b"1", message_id="m1"))
    await watchdog.check()
    await eventually(lambda: subscriber.restarts == 1 and subscriber.outstanding == 1)
    await lose_consumer(subscriber)
    await publisher.publish(OutgoingMessage(exchange="swarm.records", routing_key=scenario, body=b"2", message_id="m2"))
    with pytest.raises(WorkerError, match="has not helped") as stalled:
        await asyncio.wait_for(watchdog.run(), 10)
    assert stalled.value.exit_code == 70


async def test_a_full_window_is_the_stores_slowness_and_no_stall(
    subscriber: Subscriber, scenario: str, eventually: Eventually
) -> None:
    publisher = RabbitPublisher(subscriber.session)
    for number in range(15):
        await publisher.publish(
            OutgoingMessage(exchange="swarm.records", routing_key=scenario, body=b"1", message_id=f"m{number}")
        )
    await eventually(lambda: subscriber.outstanding == 10)
    watchdog = Watchdog(subscriber, quiet=0.0)
    for _ in range(3):
        await watchdog.check()
    assert watchdog.healthy
    assert watchdog.queue_depth == 5


async def test_while_it_asks_what_the_last_check_found_stands(
    new_session: NewSession, amqp_url: str, scenario: str, eventually: Eventually
) -> None:
    """A worker in order was not ready for the length of each check, with "consuming" for a reason."""
    async with proxied(amqp_url) as (proxy, url):
        subscriber = Subscriber(await new_session(url=url), scenario, asyncio.Queue(10), prefetch=10)
        await subscriber.start()
        watchdog = Watchdog(subscriber)
        await watchdog.check()
        proxy.freeze()
        asking = asyncio.create_task(watchdog.check())
        await asyncio.sleep(0)
        assert (watchdog.healthy, watchdog.reason) == (True, "consuming")
        proxy.thaw()
        await asking
        assert watchdog.healthy

        proxy.refuse()
        proxy.cut()
        await eventually(lambda: not watchdog.healthy)
        assert watchdog.reason == "the consumer is being brought back"
        proxy.refuse(refusing=False)
        await eventually(lambda: watchdog.healthy)
        assert watchdog.reason == "consuming"
        await subscriber.stop()


async def test_an_unreachable_broker_is_unhealthy_and_no_reason_to_die(
    new_session: NewSession, amqp_url: str, scenario: str
) -> None:
    async with proxied(amqp_url) as (proxy, url):
        inbox: asyncio.Queue[Delivery] = asyncio.Queue(10)
        session = await new_session(url=url, call_timeout=0.5)
        subscriber = Subscriber(session, scenario, inbox, prefetch=10)
        await subscriber.start()
        watchdog = Watchdog(subscriber)
        proxy.freeze()
        for _ in range(3):
            await watchdog.check()
        assert not watchdog.healthy
        assert "does not answer" in watchdog.reason
        assert watchdog.rebuilds == 0
        proxy.thaw()
        await subscriber.stop()


async def test_a_queue_that_is_gone_is_made_again(subscriber: Subscriber, eventually: Eventually) -> None:
    """With its bindings: a node that publishes to the exchange reaches it."""
    channel = await subscriber.session.open_channel()
    await channel.queue_delete(subscriber.queue)
    await eventually(lambda: subscriber.restarts == 1 and subscriber.consuming)
    await RabbitPublisher(subscriber.session).publish(
        OutgoingMessage(exchange="swarm.records", routing_key=subscriber.scenario, body=b"1", message_id="m1")
    )
    await eventually(lambda: subscriber.outstanding == 1)


async def test_an_exchange_that_is_gone_is_made_again(subscriber: Subscriber, eventually: Eventually) -> None:
    """The queue is there, the consumer is there, and no node can publish: nothing but the watchdog would notice."""
    watchdog = Watchdog(subscriber)
    channel = await subscriber.session.open_channel()
    await channel.exchange_delete("swarm.records")
    await watchdog.check()
    assert (watchdog.healthy, watchdog.reason) == (False, "swarm.records is gone from the broker")
    await eventually(lambda: subscriber.restarts == 1 and subscriber.consuming)
    await watchdog.check()
    assert watchdog.healthy
    await RabbitPublisher(subscriber.session).publish(
        OutgoingMessage(exchange="swarm.records", routing_key=subscriber.scenario, body=b"1", message_id="m1")
    )
    await eventually(lambda: subscriber.outstanding == 1)


async def test_a_consumer_that_does_not_come_back_ends_the_worker_while_the_broker_answers(
    subscriber: Subscriber, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Nobody knows why it does not: a fresh process is the cure, not a worker that is red for days."""

    async def never() -> list[str]:
        raise ConnectionError("for a reason nobody knows")

    watchdog = Watchdog(subscriber, interval=0.05, quiet=0.2)
    await watchdog.check()
    monkeypatch.setattr(subscriber._consumer, "_prepare", never)
    subscriber.rebuild()
    await eventually(lambda: not subscriber.consuming)
    assert not watchdog.healthy
    with pytest.raises(WorkerError, match=r"has not come back .* has not helped") as stalled:
        await asyncio.wait_for(watchdog.run(), 10)
    assert stalled.value.exit_code == 70
    assert watchdog.rebuilds == 1


async def test_a_queue_that_was_deleted_and_made_again_at_once_does_not_swallow_what_comes(
    subscriber: Subscriber, eventually: Eventually
) -> None:
    """The broker tells nobody, counts the consumer, and gives it nothing; the queue has no bindings either."""
    watchdog = Watchdog(subscriber, idle=0.2)
    await watchdog.check()
    channel = await subscriber.session.open_channel()
    await channel.queue_delete(subscriber.queue)
    made = next(item for item in scenario_objects(subscriber.scenario) if item.name == subscriber.queue)
    assert isinstance(made, Queue)
    await channel.queue_declare(made.name, durable=True, arguments=dict(made.arguments))
    publisher = RabbitPublisher(subscriber.session)
    swallowed = OutgoingMessage(exchange="", routing_key=subscriber.queue, body=b"1", message_id="m1")
    await publisher.publish(swallowed)
    await asyncio.sleep(0.3)  # as long as an idle queue is left alone
    await watchdog.check()
    assert watchdog.healthy
    await eventually(lambda: subscriber.stats.deliveries >= 1)
    await publisher.publish(
        OutgoingMessage(exchange="swarm.records", routing_key=subscriber.scenario, body=b"2", message_id="m2")
    )
    await eventually(lambda: subscriber.stats.deliveries >= 2)


async def test_a_renewed_consumer_was_never_away(subscriber: Subscriber) -> None:
    """The new one is registered before the old one goes: /ready does not flicker on a quiet queue."""
    watchdog = Watchdog(subscriber, idle=0.0)
    generation = subscriber.session.generation
    renewing = asyncio.create_task(watchdog.check())
    while not renewing.done():
        assert subscriber.consuming
        await asyncio.sleep(0)
    assert subscriber.session.generation > generation + 1
    assert subscriber.restarts == 0
    assert watchdog.healthy
