"""The broker objects the worker lives on: names, arguments, and declaring them in an order that loses nothing.

Arguments hold what safety needs, policies what capacity needs. The declarations mean the same on RabbitMQ 3.10 and 4.x:
nothing is left to a default that differs between them (4.x drops a message at its 20th return where no limit and no
dead-letter exchange are given; `x-delivery-limit=-1` is "unlimited" there and "at once" on 3.10).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import structlog
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError, ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from worker.broker.faults import broker_call, describe
from worker.broker.session import Session
from worker.errors import BrokerRefused
from worker.wire.names import CONTROL_EXCHANGE, DEAD_EXCHANGE, LEARNING_EXCHANGE, RECORDS_EXCHANGE

log = structlog.get_logger(__name__)

TopologyMode = Literal["auto", "passive"]

LEARNING_JOURNAL = f"{LEARNING_EXCHANGE}.journal"

#: A last resort against messages that kill the worker; poison is handled by the worker itself.
DELIVERY_LIMIT = 50
_JOB_DELIVERY_LIMIT = 5
_JOB_TTL_MS = 15 * 60 * 1000
_CONTROL_EXPIRES_MS = 5 * 60 * 1000
#: People who look into a dead queue return what they looked at; 4.x would drop it after 20 looks.
_DEAD_DELIVERY_LIMIT = 1000
#: What RabbitMQ says of a queue that exists where it cannot be reached.
_DOWN = "is down or inaccessible"


def records_queue(scenario: str) -> str:
    """Where a scenario's records wait."""
    return f"{RECORDS_EXCHANGE}.{scenario}"


def dead_queue(scenario: str) -> str:
    """Where a scenario's dead letters wait for a person; `x-death` says which queue they came from."""
    return f"{DEAD_EXCHANGE}.{scenario}"


def jobs_queue(scenario: str) -> str:
    """Commands of a scenario that exactly one worker carries out."""
    return f"{CONTROL_EXCHANGE}.jobs.{scenario}"


def worker_queue(worker_id: str, boot_id: str) -> str:
    """One worker's own copy of broadcast commands; a new name per start, so that a lingering lock never matters."""
    return f"{CONTROL_EXCHANGE}.w.{worker_id}.{boot_id}"


def reply_queue(client_id: str) -> str:
    """Where one operator waits for answers."""
    return f"swarm.reply.{client_id}"


def service_queue(service: str) -> str:
    """A service's own durable queue of learning events."""
    return f"{LEARNING_EXCHANGE}.sub.{service}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: Literal["topic", "direct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable queue, with the (exchange, routing key) pairs it is bound to."""

    name: str
    arguments: Mapping[str, Any]
    bindings: Sequence[tuple[str, str]] = field(default=())


def exchanges() -> list[Exchange | Queue]:
    """What all scenarios share, and taking in records needs."""
    return [
        Exchange(name=DEAD_EXCHANGE, kind="direct"),
        Exchange(name=RECORDS_EXCHANGE, kind="topic"),
        Exchange(name=LEARNING_EXCHANGE, kind="topic"),
        Exchange(name=CONTROL_EXCHANGE, kind="topic"),
    ]


def shared_objects() -> list[Exchange | Queue]:
    """What all scenarios share: the exchanges, and the journal that keeps every event."""
    return [*exchanges(), *journal_objects()]


def journal_objects() -> list[Exchange | Queue]:
    """The journal apart, which may be down for good where all else is well: see `event_publisher`."""
    journal = {"x-queue-type": "stream", "x-max-age": "30D"}
    return [Queue(name=LEARNING_JOURNAL, arguments=journal, bindings=[(LEARNING_EXCHANGE, "#")])]


def scenario_objects(scenario: str) -> list[Exchange | Queue]:
    """What one scenario needs. Dead letters first: what dies before its target exists waits 3 minutes (measured)."""
    records = records_queue(scenario)
    return [
        _dead_letters(dead_queue(scenario), scenario),
        Queue(
            name=records,
            arguments=_quorum(DELIVERY_LIMIT, dead_key=scenario),
            # A node may publish by scenario, by scenario and topic, or by the queue's name to this exchange.
            bindings=[(RECORDS_EXCHANGE, key) for key in (scenario, f"{scenario}.#", records)],
        ),
        Queue(
            name=jobs_queue(scenario),
            arguments={**_quorum(_JOB_DELIVERY_LIMIT, dead_key=scenario), "x-message-ttl": _JOB_TTL_MS},
            bindings=[(CONTROL_EXCHANGE, f"job.{scenario}")],
        ),
    ]


def service_objects(service: str, keys: Sequence[str]) -> list[Exchange | Queue]:
    """A service's own queue of events, which fills while the service is away."""
    name = service_queue(service)
    return [
        _dead_letters(f"{DEAD_EXCHANGE}.sub.{service}", name),
        Queue(
            name=name,
            arguments=_quorum(DELIVERY_LIMIT, dead_key=name),
            bindings=[(LEARNING_EXCHANGE, key) for key in keys],
        ),
    ]


def worker_objects(worker_id: str, boot_id: str, scenarios: Sequence[str]) -> list[Exchange | Queue]:
    """One worker's own objects.

    Not exclusive: after a half-open loss the broker keeps that lock for 31 s; durable with expiry was back in 2 s
    (measured, RabbitMQ 3.10.8, aio-pika 10.2.1).
    """
    return [temporary_queue(worker_queue(worker_id, boot_id), worker_keys(worker_id, scenarios))]


def worker_keys(worker_id: str, scenarios: Sequence[str]) -> list[tuple[str, str]]:
    """What a worker's own queue is bound to, as (exchange, routing key)."""
    keys = ["all", *(f"scenario.{scenario}" for scenario in scenarios), f"worker.{worker_id}"]
    return [(CONTROL_EXCHANGE, key) for key in keys]


def temporary_queue(
    name: str, bindings: Sequence[tuple[str, str]] = (), *, expires_ms: int = _CONTROL_EXPIRES_MS
) -> Queue:
    """A queue that goes by itself when nobody has used it for `expires_ms`; transient queues are refused from 4.3."""
    return Queue(name=name, arguments={"x-expires": expires_ms}, bindings=bindings)


async def ensure_topology(session: Session, objects: Sequence[Exchange | Queue], mode: TopologyMode) -> None:
    """Declare `objects` in their order (`auto`), or check that they exist (`passive`).

    `auto` declares, which also compares; where the user may not declare but the object exists, it is taken as it is.

    Raises `BrokerRefused` that names the object, what is wrong and the cure, else one of `faults.BROKER_ERRORS`.
    """
    async with _Declarer(session) as declarer:
        for item in objects:
            if mode == "passive":
                await declarer.check(item)
            else:
                await declarer.declare(item)


async def remove_scenario(session: Session, scenario: str) -> None:
    """Delete a scenario's queues with all that is in them: for one that was made for the moment and is served no more.

    What is not there is no error. Raises one of `faults.BROKER_ERRORS`, also without the right to.
    """
    async with _Declarer(session) as declarer:
        for item in scenario_objects(scenario):
            if isinstance(item, Queue):
                await declarer.remove(item)


def _quorum(delivery_limit: int, *, dead_key: str) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": delivery_limit,
        "x-dead-letter-exchange": DEAD_EXCHANGE,
        "x-dead-letter-routing-key": dead_key,
        "x-dead-letter-strategy": "at-least-once",
        # At-least-once dead-lettering needs it; with drop-head it silently falls back to at-most-once.
        "x-overflow": "reject-publish",
    }


def _dead_letters(name: str, key: str) -> Queue:
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": _DEAD_DELIVERY_LIMIT}
    return Queue(name=name, arguments=arguments, bindings=[(DEAD_EXCHANGE, key)])


class _Declarer:
    """A channel that is opened anew after each refusal, since a refusal closes it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._channel is not None and not self._channel.is_closed:
            with broker_call():
                await self._channel.close(timeout=self._session.call_timeout)

    async def declare(self, item: Exchange | Queue) -> None:
        try:
            await self._call(lambda channel: self._declare(channel, item, passive=False))
        except ChannelPreconditionFailed as error:
            raise _unequal(item, error) from error
        except ChannelAccessRefused as error:
            log.info("topology_not_declared", name=item.name, reason=describe(error))
            await self.check(item)
            return
        if isinstance(item, Queue):
            for exchange, key in item.bindings:
                await self._bind(item.name, exchange, key)

    async def check(self, item: Exchange | Queue) -> None:
        kind = "queue" if isinstance(item, Queue) else "exchange"
        try:
            await self._call(lambda channel: self._declare(channel, item, passive=True))
        except ChannelNotFoundEntity as error:
            if _DOWN in describe(error):
                raise
            raise BrokerRefused(
                f"{kind} {item.name!r} does not exist; create it (deploy/rabbitmq has the definitions) "
                "or let the worker do so: SWARM_TOPOLOGY=auto and permission to configure ^swarm\\."
            ) from error
        except ChannelAccessRefused as error:
            raise BrokerRefused(
                f"no permission on {kind} {item.name!r}: {describe(error)}; "
                "give the user of SWARM_AMQP_URL read on ^swarm\\."
            ) from error

    async def remove(self, item: Queue) -> None:
        await self._call(lambda channel: channel.queue_delete(item.name, timeout=self._session.call_timeout))

    async def _bind(self, queue: str, exchange: str, key: str) -> None:
        timeout = self._session.call_timeout
        try:
            await self._call(lambda channel: channel.queue_bind(queue, exchange, key, timeout=timeout))
        except (ChannelAccessRefused, ChannelNotFoundEntity) as error:
            raise BrokerRefused(
                f"cannot bind queue {queue!r} to {exchange!r} with key {key!r}: {describe(error)}; give the user of "
                "SWARM_AMQP_URL write and read on ^swarm\\., or bind it yourself and set SWARM_TOPOLOGY=passive"
            ) from error

    async def _declare(self, channel: Channel, item: Exchange | Queue, *, passive: bool) -> None:
        timeout = self._session.call_timeout
        if isinstance(item, Exchange):
            await channel.exchange_declare(
                item.name, exchange_type=item.kind, durable=True, passive=passive, timeout=timeout
            )
        else:
            arguments = None if passive else dict(item.arguments)
            await channel.queue_declare(item.name, durable=True, passive=passive, arguments=arguments, timeout=timeout)

    async def _call(self, call: Callable[[Channel], Awaitable[Any]]) -> None:
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._session.open_channel()
        try:
            async with asyncio.timeout(self._session.call_timeout):
                with broker_call():
                    await call(self._channel)
        except AMQPError:
            self._channel = None
            raise


def _unequal(item: Exchange | Queue, error: ChannelPreconditionFailed) -> BrokerRefused:
    """RabbitMQ says: inequivalent arg 'x' for queue 'q' in vhost '/': received 'a' but current is 'b'."""
    kind = "queue" if isinstance(item, Queue) else "exchange"
    text = describe(error)
    found = re.search(r"inequivalent arg '([^']+)'.*: (received .*)", text)
    what = f"argument {found[1]} is unequal: {found[2]}" if found else text
    return BrokerRefused(
        f"{kind} {item.name!r} exists with other properties, {what}; drain and delete it so that the worker can create "
        "it, or set SWARM_TOPOLOGY=passive to use it as it is"
    )
