"""A scenario's dead letters: looked at, and sent back to where they came from.

A message dies at its fiftieth return to the records queue, or as a command that nobody took in time. Each is taken off
the dead queue only after the broker has confirmed its copy: a crash between the two leaves both, and the log counts
them as one, since a batch's identity is in its body.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any
from uuid import uuid4

import structlog
from aiormq import spec
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity
from msgspec import Struct

from worker.broker.faults import BROKER_ERRORS, broker_call, describe
from worker.broker.port import OutgoingMessage, Publisher
from worker.broker.session import Session
from worker.broker.topology import dead_queue, jobs_queue, records_queue
from worker.clock import Clock
from worker.errors import BrokerUnreachable, NotFound, PublishFailed
from worker.wire.commands import decode_command
from worker.wire.names import RECORDS_EXCHANGE
from worker.wire.reasons import Rejection

log = structlog.get_logger(__name__)

#: Letters in our hands at once.
_AT_ONCE = 16
#: Characters that are told of a name somebody else chose.
_LONGEST_NAME = 64
#: What the broker noted of a message's death and returns. Its copy begins a new life: with the count it would be a
#: suspect for ever, and with its way in it the broker might take a second death for a loop and drop it. CC and BCC
#: would send copies where the first one went already.
_OF_ITS_DEATH = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "CC", "BCC")
#: Who had published a message that comes back, and how: the broker vouches only for us.
SENT_BY, SENT_WITH = "x-swarm-sent-by", "x-swarm-sent-with"


class DeadLetter(Struct, kw_only=True):
    """One message in a dead queue."""

    kind: str  # `records`, `command` or, from a queue that is not ours, `foreign`
    queue: str  # where it died
    reason: str  # the broker's: delivery_limit, expired, rejected, maxlen
    died_at_ms: int | None
    bytes: int
    message_id: str | None
    routing_key: str | None  # as published


class DeadList(Struct, kw_only=True):
    """A dead queue and its first letters."""

    messages: int
    letters: list[DeadLetter]


class DeadReplay(Struct, kw_only=True):
    """What came of sending them back."""

    messages: int  # in the queue when it began
    replayed: int = 0
    dropped: int = 0  # commands whose time was over: nobody would obey them
    kept: int = 0  # commands without an end, and what is not ours
    failed: int = 0  # not confirmed; they stay, and the same command may be given again
    error: str | None = None  # the first failure


class DeadLetters:
    """The dead queues of the scenarios that this worker serves."""

    def __init__(self, session: Session, publisher: Publisher, clock: Clock) -> None:
        self._session = session
        self._publisher = publisher
        self._clock = clock

    async def look(self, scenario: str, limit: int) -> DeadList:
        """The first `limit` letters, which go back to their places. Each look counts as a return; they have 1,000.

        Raises `NotFound` where there is no such queue, `BrokerUnreachable`.
        """
        async with self._channel(scenario) as (channel, waiting):
            letters: list[DeadLetter] = []
            while len(letters) < min(limit, waiting) and (message := await self._next(channel, scenario)):
                letters.append(_letter(message, scenario))
        return DeadList(messages=waiting, letters=letters)

    async def replay(self, scenario: str, limit: int | None = None) -> DeadReplay:
        """Send records back, at most `limit` letters; stops at the first that is not confirmed. Raises like `look`."""
        async with self._channel(scenario) as (channel, waiting):
            found = DeadReplay(messages=waiting)
            left = waiting if limit is None else min(limit, waiting)
            while left and not found.failed:
                batch = [message async for message in self._some(channel, scenario, min(left, _AT_ONCE))]
                if not batch:
                    break
                left -= len(batch)
                await asyncio.gather(*(self._send_back(channel, scenario, message, found) for message in batch))
        log.info("dead_letters_replayed", scenario=scenario, replayed=found.replayed, failed=found.failed)
        return found

    async def _send_back(self, channel: Channel, scenario: str, message: DeliveredMessage, found: DeadReplay) -> None:
        kind = _letter(message, scenario).kind
        if kind == "records":
            try:
                await self._publisher.publish(self._copy(message, scenario))
            except PublishFailed as error:
                found.failed += 1
                found.error = found.error or str(error)
                return
            found.replayed += 1
        elif kind == "command" and self._is_over(message):
            found.dropped += 1
        else:
            found.kept += 1
            return
        with broker_call():
            await channel.basic_ack(_tag(message), wait=False)

    def _is_over(self, message: DeliveredMessage) -> bool:
        command = decode_command(message.body)
        if isinstance(command, Rejection):
            return False
        over = 0 < command.expires_at_ms <= self._clock.now_ms()
        if over:
            log.info("dead_command_dropped", command=command.command, command_id=command.command_id)
        return over

    def _copy(self, message: DeliveredMessage, scenario: str) -> OutgoingMessage:
        properties = message.header.properties
        headers: dict[str, str | list[str]] = {
            name: value
            for name, value in (properties.headers or {}).items()
            if isinstance(value, str) and not name.startswith(_OF_ITS_DEATH)
        }
        headers.pop(SENT_BY, None)
        if properties.user_id is not None:
            headers[SENT_BY] = properties.user_id
        headers[SENT_WITH] = _letter(message, scenario).routing_key or ""
        return OutgoingMessage(
            exchange=RECORDS_EXCHANGE,
            routing_key=scenario,
            body=message.body,
            message_id=properties.message_id or str(uuid4()),
            content_type=properties.content_type or "application/json",
            content_encoding=properties.content_encoding,
            headers=headers,
            correlation_id=properties.correlation_id,
            user_id=self._session.url.login,
        )

    async def _some(self, channel: Channel, scenario: str, number: int) -> AsyncIterator[DeliveredMessage]:
        for _ in range(number):
            message = await self._next(channel, scenario)
            if message is None:
                return
            yield message

    async def _next(self, channel: Channel, scenario: str) -> DeliveredMessage | None:
        with broker_call():
            message = await channel.basic_get(dead_queue(scenario), timeout=self._session.call_timeout)
        return None if isinstance(message.delivery, spec.Basic.GetEmpty) else message

    @asynccontextmanager
    async def _channel(self, scenario: str) -> AsyncIterator[tuple[Channel, int]]:
        """A channel for this, and how many letters wait; what is not acknowledged on it goes back at the end."""
        queue = dead_queue(scenario)
        channel: Channel | None = None
        try:
            channel = await self._session.open_channel()
            with broker_call():
                declared = await channel.queue_declare(queue, passive=True, timeout=self._session.call_timeout)
            yield channel, declared.message_count or 0
        except ChannelNotFoundEntity as error:
            raise NotFound(f"there is no queue {queue}; the worker makes it when it serves the scenario") from error
        except BROKER_ERRORS as error:
            raise BrokerUnreachable(f"the broker did not give what is in {queue}: {describe(error)}") from error
        finally:
            if channel is not None and not channel.is_closed:
                with suppress(*BROKER_ERRORS), broker_call():
                    await channel.close(timeout=self._session.call_timeout)


def _letter(message: DeliveredMessage, scenario: str) -> DeadLetter:
    death = _death(message)
    queue = str(death.get("queue", ""))
    kinds = {records_queue(scenario): "records", jobs_queue(scenario): "command"}
    at = death.get("time")
    keys = death.get("routing-keys")
    return DeadLetter(
        kind=kinds.get(queue, "foreign"),
        queue=queue,
        reason=str(death.get("reason", "")),
        died_at_ms=round(at.timestamp() * 1000) if isinstance(at, datetime) else None,
        bytes=len(message.body),
        message_id=(message.header.properties.message_id or "")[:_LONGEST_NAME] or None,
        routing_key=str(keys[0])[:_LONGEST_NAME] if isinstance(keys, list) and keys else None,
    )


def _death(message: DeliveredMessage) -> Mapping[str, Any]:
    """The newest entry of `x-death`, which stands first."""
    deaths = (message.header.properties.headers or {}).get("x-death")
    newest = deaths[0] if isinstance(deaths, list) and deaths else {}
    return newest if isinstance(newest, dict) else {}


def _tag(message: DeliveredMessage) -> int:
    return message.delivery_tag or 0
