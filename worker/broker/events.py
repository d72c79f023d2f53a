"""Learning events for those who follow them: services, swarm nodes, the demo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from aiormq.abc import DeliveredMessage

from worker.broker.consumer import Consumer
from worker.broker.inbound import RabbitMessage
from worker.broker.link import Link
from worker.broker.session import Session
from worker.broker.topology import (
    Exchange,
    Queue,
    TopologyMode,
    ensure_topology,
    service_objects,
    temporary_queue,
)
from worker.wire.names import DEAD_EXCHANGE, LEARNING_EXCHANGE

_PREFETCH = 50
_EXPIRES_MS = 5 * 60 * 1000


class EventSubscriber:
    """Events in `inbox`, unacknowledged. The same event may come twice: its `message_id` tells.

    With `durable`, the queue is the service's `name` and fills while the service is away; without, it is this client's
    alone and goes five minutes after it. `keys` are topics: `learning.trained`, `learning.trained.<scenario>`,
    `learning.#`.
    """

    def __init__(
        self,
        session: Session,
        *,
        name: str,
        keys: Sequence[str] = ("learning.#",),
        durable: bool = False,
        topology: TopologyMode = "auto",
    ) -> None:
        self.inbox: asyncio.Queue[RabbitMessage] = asyncio.Queue()
        self._session = session
        self._topology: TopologyMode = topology
        self._durable = durable
        exchanges: list[Exchange | Queue] = [Exchange(name=LEARNING_EXCHANGE, kind="topic")]
        if durable:
            self._objects = [*exchanges, Exchange(name=DEAD_EXCHANGE, kind="direct"), *service_objects(name, keys)]
        else:
            bindings = [(LEARNING_EXCHANGE, key) for key in keys]
            queue = temporary_queue(f"{LEARNING_EXCHANGE}.tmp.{name}", bindings, expires_ms=_EXPIRES_MS)
            self._objects = [*exchanges, queue]
        self.queue = self._objects[-1].name
        self._consumer = Consumer(
            session, name=self.queue, prepare=self._prepare, on_message=self._on_message, prefetch=_PREFETCH
        )

    async def start(self) -> None:
        """Declare the queue and follow. Raises `BrokerRefused`, or one of `faults.BROKER_ERRORS`."""
        await self._consumer.start()

    async def stop(self) -> None:
        """Follow no more; a durable queue goes on filling."""
        if not self._durable:
            await self._consumer.delete_queue(self.queue)
        await self._consumer.stop()

    async def follow(self) -> AsyncIterator[RabbitMessage]:
        """Events as they come; each is acknowledged when the next one is asked for, stale ones are passed over."""
        while True:
            message = await self.inbox.get()
            if not message.stale:
                yield message
                await message.ack()

    async def _prepare(self) -> list[str]:
        await ensure_topology(self._session, self._objects, self._topology)
        return [self.queue]

    def _on_message(self, link: Link, message: DeliveredMessage) -> None:
        self.inbox.put_nowait(RabbitMessage(link, message))
