"""A broker that is away is waited for; a connection that does not come back to one that is there ends the worker."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.conftest import NewSession
from tests.integration.proxy import proxied
from worker.broker.probe import handshake
from worker.broker.supervision import supervise
from worker.broker.url import BrokerUrl, parse_amqp_url
from worker.errors import WorkerError

pytestmark = pytest.mark.rabbitmq


async def test_a_broker_that_is_away_is_waited_for(new_session: NewSession, amqp_url: str) -> None:
    knocks: list[BrokerUrl] = []

    def knock(url: BrokerUrl) -> None:
        knocks.append(url)
        handshake(url)

    async with proxied(amqp_url) as (proxy, url):
        session = await new_session(url=url)
        supervising = asyncio.create_task(supervise(session, interval=0.05, patience=5, knock=knock))
        proxy.refuse()
        proxy.cut()
        async with asyncio.timeout(10):
            while len(knocks) < 10:  # noqa: ASYNC110 - the thread has no event of ours
                await asyncio.sleep(0.02)
        assert not session.connected
        proxy.refuse(refusing=False)
        async with asyncio.timeout(10):
            while not session.connected:  # noqa: ASYNC110 - the session has no event for it
                await asyncio.sleep(0.02)
        seen = len(knocks)
        await asyncio.sleep(0.3)
        assert len(knocks) <= seen + 1, "a connection that is there needs no other"
        assert not supervising.done()
        supervising.cancel()


async def test_a_connection_that_does_not_come_back_to_a_broker_that_is_there_ends_the_worker(
    new_session: NewSession, amqp_url: str
) -> None:
    """The recovery bug that nobody knows of yet: here, one that is kept from reconnecting."""
    async with proxied(amqp_url) as (proxy, url):
        session = await new_session(url=url)
        proxy.refuse()
        proxy.cut()
        with pytest.raises(WorkerError, match="has not come back") as broken:
            await asyncio.wait_for(
                supervise(session, interval=0.05, patience=0.2, knock=lambda _: handshake(parse_amqp_url(amqp_url))),
                10,
            )
        assert broken.value.exit_code == 70
