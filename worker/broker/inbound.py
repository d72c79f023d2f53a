"""A message in our hands that is no records batch: a command, a reply, an event."""

from __future__ import annotations

from collections.abc import Mapping

from aiormq.abc import DeliveredMessage

from worker.broker.link import Link
from worker.broker.properties import as_text
from worker.broker.session import CALL_TIMEOUT


class RabbitMessage:
    """One message, unacknowledged; keeps `port.ControlMessage`. Acknowledging a stale one does nothing."""

    __slots__ = ("_link", "_message")

    def __init__(self, link: Link, message: DeliveredMessage) -> None:
        self._link = link
        self._message = message

    @property
    def body(self) -> bytes:
        """The body as it was sent."""
        return self._message.body

    @property
    def exchange(self) -> str:
        """The exchange it was published to."""
        return self._message.exchange or ""

    @property
    def routing_key(self) -> str:
        """The routing key it was published with."""
        return self._message.routing_key or ""

    @property
    def message_id(self) -> str | None:
        """As the sender set it."""
        return self._message.header.properties.message_id

    @property
    def type(self) -> str | None:
        """As the sender set it; an event's type."""
        return self._message.header.properties.message_type

    @property
    def reply_to(self) -> str | None:
        """Where the sender wants answers; not to be trusted."""
        return self._message.header.properties.reply_to

    @property
    def correlation_id(self) -> str | None:
        """What the answer must carry."""
        return self._message.header.properties.correlation_id

    @property
    def user_id(self) -> str | None:
        """The sender's user, where it said so; the broker refuses a wrong one."""
        return self._message.header.properties.user_id

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers and properties as text."""
        return as_text(self._message.header.properties)

    @property
    def redelivered(self) -> bool:
        """Whether the broker has handed it out before."""
        return bool(self._message.redelivered)

    @property
    def stale(self) -> bool:
        """The channel it came on is gone; the broker delivers it again."""
        return self._link.gone

    async def ack(self) -> None:
        """Take it off the queue."""
        await self._link.ack([self._message.delivery_tag or 0], CALL_TIMEOUT)
