"""What a user of the broker may not do that a worker must: asked of the broker itself, without leaving a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused

from worker.broker.faults import broker_call
from worker.broker.session import Session
from worker.broker.topology import dead_queue, jobs_queue, records_queue
from worker.wire.names import LEARNING_EXCHANGE, RECORDS_EXCHANGE


async def missing_permissions(session: Session, scenario: str) -> list[str]:
    """What a worker of `scenario` would be refused, in words; raises one of `BROKER_ERRORS` for what is no refusal.

    Its objects must be there. To configure is not asked: objects may have been made by somebody else.
    """
    missing = [
        f"read from {queue}"
        for queue in (records_queue(scenario), jobs_queue(scenario), dead_queue(scenario))
        if await _refused(session, _reading(queue))
    ]
    missing += [
        f"write to {exchange or 'amq.default, where answers to commands go'}"
        for exchange, key in (
            (LEARNING_EXCHANGE, f"learning.trained.{scenario}"),
            (RECORDS_EXCHANGE, scenario),
            ("", "swarm.reply.check"),
        )
        if await _refused(session, _writing(exchange, key))
    ]
    return missing


def _reading(queue: str) -> Callable[[Channel], Awaitable[None]]:
    async def read(channel: Channel) -> None:
        declared = await channel.queue_declare(queue, passive=True)
        # Only of an empty one: to take a message and give it back would count as one of its returns.
        if declared.message_count == 0:
            await channel.basic_get(queue)

    return read


def _writing(exchange: str, key: str) -> Callable[[Channel], Awaitable[None]]:
    async def write(channel: Channel) -> None:
        """The broker checks a publish at once, and what is rolled back reaches nobody."""
        await channel.tx_select()
        await channel.basic_publish(b"", exchange=exchange, routing_key=key, wait=False)
        await channel.tx_rollback()

    return write


async def _refused(session: Session, attempt: Callable[[Channel], Awaitable[None]]) -> bool:
    channel = await session.open_channel()
    try:
        async with asyncio.timeout(session.call_timeout):
            with broker_call():
                await attempt(channel)
    except ChannelAccessRefused:
        return True
    finally:
        if not channel.is_closed:
            with broker_call():
                await channel.close(timeout=session.call_timeout)
    return False
