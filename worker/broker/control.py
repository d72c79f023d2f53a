"""The worker's ear for commands, and its answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Protocol

import structlog
from aiormq.abc import DeliveredMessage

from worker.broker.consumer import Consumer
from worker.broker.inbound import RabbitMessage
from worker.broker.link import Link
from worker.broker.port import ControlMessage, OutgoingMessage, Publisher
from worker.broker.session import Session
from worker.broker.topology import (
    TopologyMode,
    ensure_topology,
    exchanges,
    jobs_queue,
    scenario_objects,
    worker_keys,
    worker_objects,
    worker_queue,
)
from worker.errors import PublishFailed
from worker.wire.commands import is_allowed_reply_to

log = structlog.get_logger(__name__)

#: Bytes of an answer. The longest is a status, a kilobyte a scenario.
MAX_REPLY = 1024 * 1024
_PREFETCH = 16


class CommandSource(Protocol):
    """Commands of this worker in `inbox`, and the way to answer them; kept by RabbitMQ and by the in-memory fake."""

    inbox: asyncio.Queue[ControlMessage]

    async def start(self) -> None:
        """Listen."""
        ...

    async def stop(self) -> None:
        """Listen no more; unsettled job commands go to another worker."""
        ...

    async def reply(self, to: ControlMessage, body: bytes) -> bool:
        """Answer at most once; False where there is no allowed address, or the answer could not be sent."""
        ...


class ControlListener:
    """Broadcast and addressed commands from this worker's own queue, and jobs from the scenarios' queues.

    `inbox` holds at most 16 unacknowledged commands of each queue; the broker keeps the rest.
    """

    def __init__(
        self,
        session: Session,
        publisher: Publisher,
        *,
        worker_id: str,
        boot_id: str,
        scenarios: Sequence[str],
        topology: TopologyMode = "auto",
    ) -> None:
        self.inbox: asyncio.Queue[ControlMessage] = asyncio.Queue()
        self.queue = worker_queue(worker_id, boot_id)
        self._session = session
        self._publisher = publisher
        self._worker_id = worker_id
        self._boot_id = boot_id
        self._scenarios = tuple(scenarios)
        self._topology: TopologyMode = topology
        self._numbers = itertools.count(1)
        self._consumer = Consumer(
            session, name=self.queue, prepare=self._prepare, on_message=self._on_message, prefetch=_PREFETCH
        )

    @property
    def listening(self) -> bool:
        """Whether the broker has our consumers registered, as far as we know."""
        return self._consumer.consuming

    async def start(self) -> None:
        """Declare what is needed and listen. Raises `BrokerRefused`, or one of `faults.BROKER_ERRORS`."""
        await self._consumer.start()

    async def last_call(self) -> None:
        """Take in what was sent to this worker until now, and nothing after it: whoever sends more is told at once.

        Unanswered, a second shutdown that came just before the end of the first would have its sender wait in vain.
        """
        await self._consumer.drain_only(self.queue, worker_keys(self._worker_id, self._scenarios))

    async def stop(self) -> None:
        """Listen no more. The queue of this start goes at once, so that a sender is told that nobody listens."""
        await self._consumer.delete_queue(self.queue)
        # Taken back, not only closed: the broker counts the consumers of a closed channel for a moment, and a job sent
        # in that moment would lie in its queue (after 7 of 150 stops, RabbitMQ 3.10.8 under load).
        await self._consumer.pause()
        await self._consumer.stop()

    async def reply(self, to: ControlMessage, body: bytes) -> bool:
        """Answer `to`, at most once and without a promise that it arrives; see `CommandSource.reply`."""
        reply_to = to.reply_to
        if reply_to is None:
            return False
        if not is_allowed_reply_to(reply_to):
            log.warning("reply_refused", reply_to=repr(reply_to[:80]), message_id=to.message_id)
            return False
        if len(body) > MAX_REPLY:
            log.warning("reply_too_large", bytes=len(body), most=MAX_REPLY, message_id=to.message_id)
            return False
        answer = OutgoingMessage(
            exchange="",
            routing_key=reply_to,
            body=body,
            message_id=f"{self._worker_id}.{self._boot_id}:{next(self._numbers)}",
            correlation_id=to.correlation_id or to.message_id,
            headers={"worker": self._worker_id},
        )
        try:
            await self._publisher.publish(answer, mandatory=False)
        except PublishFailed as error:
            log.warning("reply_not_sent", message_id=to.message_id, error=str(error))
            return False
        return True

    async def _prepare(self) -> list[str]:
        objects = [*exchanges()]
        for scenario in self._scenarios:
            objects += scenario_objects(scenario)
        await ensure_topology(self._session, objects, self._topology)
        # This worker's own queue cannot have been made beforehand: its name is new with each start.
        own = worker_objects(self._worker_id, self._boot_id, self._scenarios)
        await ensure_topology(self._session, own, "auto")
        return [self.queue, *(jobs_queue(scenario) for scenario in self._scenarios)]

    def _on_message(self, link: Link, message: DeliveredMessage) -> None:
        self.inbox.put_nowait(RabbitMessage(link, message))
