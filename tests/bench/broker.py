"""The broker's side of a case: a fresh scenario's queue, filled beforehand, confirmed, at rest."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from uuid import uuid4

import psutil
from aiormq import spec
from aiormq.channel import Channel

from worker.broker.session import Session
from worker.broker.topology import ensure_topology, records_queue, scenario_objects, shared_objects
from worker.broker.url import parse_amqp_url
from worker.wire.names import RECORDS_EXCHANGE

#: Messages on their way to the broker at once.
_IN_FLIGHT = 256
_CONFIRM_SECONDS = 120.0
#: The machine counts as quiet when so little of its processors is used, or after so many looks.
_QUIET_PERCENT, _LOOKS, _LOOK_SECONDS = 20.0, 20, 0.25


class Queues:
    """Makes, fills, looks at and deletes records queues."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def fresh(self) -> str:
        """The name of a scenario that nobody has used; its objects are declared as the worker does it."""
        scenario = f"bench-{uuid4().hex[:12]}"
        await ensure_topology(self._session, [*shared_objects(), *scenario_objects(scenario)], "auto")
        return scenario

    async def fill(self, scenario: str, bodies: Iterable[bytes]) -> None:
        """Publish durably, each message confirmed by the quorum queue."""
        channel = await self._session.open_channel(confirms=True)
        waiting: set[asyncio.Task[object]] = set()
        try:
            for body in bodies:
                waiting.add(asyncio.create_task(_publish(channel, scenario, body)))
                if len(waiting) >= _IN_FLIGHT:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
            await asyncio.gather(*waiting)
        finally:
            await channel.close()

    async def depth(self, scenario: str) -> int:
        """Messages that wait to be delivered."""
        channel = await self._session.open_channel()
        try:
            answer = await channel.queue_declare(records_queue(scenario), passive=True)
            return answer.message_count or 0
        finally:
            await channel.close()

    async def drop(self, scenario: str) -> None:
        """Delete what the scenario has at the broker."""
        channel = await self._session.open_channel()
        try:
            for queue in (records_queue(scenario), f"swarm.dead.{scenario}", f"swarm.control.jobs.{scenario}"):
                await channel.queue_delete(queue)
        finally:
            await channel.close()


async def _publish(channel: Channel, scenario: str, body: bytes) -> None:
    await channel.basic_publish(
        body,
        exchange=RECORDS_EXCHANGE,
        routing_key=scenario,
        properties=spec.Basic.Properties(content_type="application/json", delivery_mode=2),
        mandatory=True,
        timeout=_CONFIRM_SECONDS,
    )


@asynccontextmanager
async def queues() -> AsyncIterator[Queues]:
    """A connection to the broker of SWARM_AMQP_URL."""
    session = Session("publish", parse_amqp_url(os.environ["SWARM_AMQP_URL"]))
    await session.start()
    try:
        yield Queues(session)
    finally:
        await session.close()


def until_quiet() -> None:
    """Wait, for a few seconds at most, until the broker has put away what it was sent."""
    psutil.cpu_percent()
    for _ in range(_LOOKS):
        if psutil.cpu_percent(_LOOK_SECONDS) < _QUIET_PERCENT:
            return
