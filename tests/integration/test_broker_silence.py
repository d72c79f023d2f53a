"""A connection that falls silent is lost, and cancels nobody who asks the broker for something on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiormq.channel import Channel

from tests.integration.conftest import NewSession
from tests.integration.proxy import proxied
from worker.broker.control_client import ControlClient
from worker.broker.dead import DeadLetters
from worker.broker.publisher import RabbitPublisher
from worker.broker.session import Session
from worker.clock import SystemClock
from worker.errors import BrokerUnreachable

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
async def silent(new_session: NewSession, amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    """A session whose broker is heard no more once a channel is open."""
    async with proxied(f"{amqp_url}?heartbeat=1") as (proxy, url):
        session = await new_session("control", url=url, call_timeout=20)
        real = session.open_channel

        async def open_channel(*, confirms: bool = False) -> Channel:
            channel = await real(confirms=confirms)
            proxy.half_open()
            return channel

        monkeypatch.setattr(session, "open_channel", open_channel)
        yield session


async def test_dead_letters_are_not_reached(silent: Session) -> None:
    with pytest.raises(BrokerUnreachable):
        await DeadLetters(silent, RabbitPublisher(silent), SystemClock()).look("S", 1)


async def test_it_is_not_known_who_listens(silent: Session) -> None:
    assert await ControlClient(silent, client_id="c")._consumers("q") is None
