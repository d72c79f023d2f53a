"""Publishing with the broker's word for each message: persistent, mandatory, confirmed, within bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog
from aiormq import spec
from aiormq.channel import Channel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from pamqp.common import FieldValue

from worker import crash
from worker.broker.faults import BROKER_ERRORS, broker_call, describe
from worker.broker.port import OutgoingMessage
from worker.broker.session import Session
from worker.errors import BrokerRefused, PublishFailed

log = structlog.get_logger(__name__)

_PERSISTENT = 2
#: The client's own timeout comes first; the second one is for the case that it does not come.
_SECOND_TIMEOUT = 2.0


@dataclass(slots=True)
class PublisherStats:
    """Counters since the start."""

    published: int = 0
    returned: int = 0
    nacked: int = 0
    timed_out: int = 0
    failed: int = 0


class RabbitPublisher:
    """See `port.Publisher`. Any number of messages may be in flight at once, up to `max_in_flight`."""

    def __init__(
        self,
        session: Session,
        *,
        max_in_flight: int = 512,
        restore: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`restore` declares again what was not there; it is called before the publish after such a failure."""
        self.stats = PublisherStats()
        self._session = session
        self._restore = restore
        self._missing = False
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._slots = asyncio.Semaphore(max_in_flight)
        self._in_flight: dict[str, asyncio.Future[None]] = {}

    async def prepare(self) -> None:
        """Declare what `restore` declares. A broker in trouble is left to the next publish.

        Raises `BrokerRefused`.
        """
        if self._restore is None:
            return
        self._missing = True
        try:
            await self._restore()
        except BROKER_ERRORS as error:
            log.warning("not_declared", error=describe(error))
        else:
            self._missing = False

    def doubt(self) -> None:
        """Declare again what `restore` declares, before the next publish."""
        self._missing = True

    async def publish(self, message: OutgoingMessage, *, mandatory: bool = True, timeout: float = 10.0) -> None:
        """Send and wait for the confirm. Raises `PublishFailed`, whose `reason` says what happened.

        After `timeout` and `no_connection` it may have arrived all the same: send it again under the same `message_id`.
        """
        channel = None
        try:
            async with asyncio.timeout(timeout + _SECOND_TIMEOUT), self._slots:
                await self._wait_for_turn(message.message_id)
                done = self._in_flight[message.message_id] = asyncio.get_running_loop().create_future()
                try:
                    channel = await self._open()
                    await self._publish(channel, message, mandatory=mandatory, timeout=timeout)
                finally:
                    del self._in_flight[message.message_id]
                    done.set_result(None)
        except TimeoutError as error:
            self.stats.timed_out += 1
            await self._drop_channel(channel)
            raise PublishFailed(f"the broker did not confirm within {timeout:g} s", reason="timeout") from error
        self.stats.published += 1

    async def close(self) -> None:
        """Close the channel; publishes in flight fail."""
        await self._drop_channel(self._channel)

    async def _wait_for_turn(self, message_id: str) -> None:
        # The client library finds the confirm of a returned message by its id: two in flight would be mixed up.
        while message_id in self._in_flight:
            await asyncio.wait([self._in_flight[message_id]])

    async def _publish(self, channel: Channel, message: OutgoingMessage, *, mandatory: bool, timeout: float) -> None:
        where = f"exchange {message.exchange!r}, routing key {message.routing_key!r}"
        try:
            # wait=False: not waiting for the socket to drain keeps many in flight; the slots bound what is buffered.
            sending = channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                properties=_properties(message),
                mandatory=mandatory,
                timeout=timeout,
                wait=False,
            )
            # Events have a type, answers to commands have none.
            with broker_call():
                await (sending if message.type is None else crash.halfway("event_published", sending))
        except PublishError as error:
            self.stats.returned += 1
            self._missing = True
            raise PublishFailed(f"no queue takes it: {where} ({describe(error)})", reason="returned") from error
        except DeliveryError as error:
            self.stats.nacked += 1
            raise PublishFailed(f"the queue refuses more, {where}; send it again later", reason="nacked") from error
        except ChannelNotFoundEntity as error:
            self.stats.returned += 1
            self._missing = True
            raise PublishFailed(f"the exchange does not exist: {where}", reason="no_exchange") from error
        except (ChannelAccessRefused, ChannelPreconditionFailed) as error:
            self.stats.failed += 1
            raise PublishFailed(f"the broker refuses it: {describe(error)}; {where}", reason="refused") from error
        except TimeoutError:
            raise
        except BROKER_ERRORS as error:
            self.stats.failed += 1
            raise PublishFailed(
                f"the connection was lost before the confirm: {describe(error)}", reason="no_connection"
            ) from error

    async def _open(self) -> Channel:
        async with self._opening:
            if self._missing and self._restore is not None:
                await self._restore_missing(self._restore)
            if self._channel is not None and not self._channel.is_closed:
                return self._channel
            if not self._session.connected:
                self.stats.failed += 1
                raise PublishFailed(f"not connected to {self._session.url.masked}", reason="no_connection")
            try:
                self._channel = await self._session.open_channel(confirms=True)
            except TimeoutError:
                raise
            except BROKER_ERRORS as error:
                self.stats.failed += 1
                raise PublishFailed(f"no channel to publish on: {describe(error)}", reason="no_connection") from error
            return self._channel

    async def _restore_missing(self, restore: Callable[[], Awaitable[None]]) -> None:
        try:
            await restore()
        except BrokerRefused as error:
            self.stats.failed += 1
            raise PublishFailed(str(error), reason="refused") from error
        except TimeoutError:
            raise
        except BROKER_ERRORS as error:
            self.stats.failed += 1
            raise PublishFailed(
                f"what is missing was not declared: {describe(error)}", reason="no_connection"
            ) from error
        self._missing = False

    async def _drop_channel(self, channel: Channel | None) -> None:
        # After a timeout the confirms of a channel cannot be trusted (aio-pika #671): the next publish opens a new one.
        if channel is None or channel is not self._channel:
            return
        self._channel = None
        if not channel.is_closed:
            log.info("publish_channel_closed", channel=channel.number)
            with suppress(*BROKER_ERRORS), broker_call():
                await channel.close(timeout=_SECOND_TIMEOUT)


def _properties(message: OutgoingMessage) -> spec.Basic.Properties:
    return spec.Basic.Properties(
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=_table(message.headers),
        delivery_mode=_PERSISTENT,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.message_id,
        message_type=message.type,
        user_id=message.user_id,
    )


def _table(headers: Mapping[str, str | list[str]]) -> dict[str, FieldValue] | None:
    return {name: list(value) if isinstance(value, list) else value for name, value in headers.items()} or None
