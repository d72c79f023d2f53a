"""Sessions and helpers for tests with a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from worker.broker.session import Role, Session
from worker.broker.url import parse_amqp_url

NewSession = Callable[..., Awaitable[Session]]


@pytest.fixture
async def new_session(amqp_url: str) -> AsyncIterator[NewSession]:
    """Makes started sessions, on `amqp_url` unless told otherwise, and closes them."""
    async with AsyncExitStack() as stack:

        async def make(role: Role = "consume", *, url: str = amqp_url, call_timeout: float = 5.0) -> Session:
            session = Session(role, parse_amqp_url(url), start_timeout=10, call_timeout=call_timeout)
            await session.start()
            stack.push_async_callback(session.close)
            return session

        yield make


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits until a condition holds; fails after `within` seconds."""

    async def wait(condition: Callable[[], bool], *, within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.02)

    return wait
