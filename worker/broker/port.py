"""The broker's port: deliveries in, messages out. RabbitMQ and the in-memory fake both keep it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct


class Delivery(Protocol):
    """One records message in our hands, unacknowledged.

    Settling a delivery whose channel is gone does nothing: the broker has requeued it, and the idempotent log absorbs
    the copy.
    """

    @property
    def scenario(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def content_type(self) -> str | None: ...
    @property
    def content_encoding(self) -> str | None: ...
    @property
    def headers(self) -> Mapping[str, str]:
        """AMQP headers and properties worth keeping, as text: message_id, user_id, app_id, type, ..."""
        ...

    @property
    def user_id(self) -> str | None:
        """The publisher's user, where it said so; the broker refuses a wrong one."""
        ...

    @property
    def routing_key(self) -> str:
        """As it was published; a copy by the headers CC or BCC has that of the first."""
        ...

    @property
    def redelivered(self) -> bool: ...
    @property
    def delivery_count(self) -> int:
        """How often the broker took it back; to be believed only where `redelivered`, else the producer says so."""
        ...

    @property
    def stale(self) -> bool:
        """The channel it came on is gone: to be dropped without work."""
        ...

    async def ack(self) -> None: ...

    async def give_back(self) -> None:
        """Return it to the queue politely (shutdown); not for failures."""
        ...


class OutgoingMessage(Struct, frozen=True, kw_only=True):
    """A message to be published persistent, mandatory and confirmed."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    content_type: str = "application/json"
    content_encoding: str | None = None
    type: str | None = None
    headers: Mapping[str, str | list[str]] = {}
    correlation_id: str | None = None
    reply_to: str | None = None
    user_id: str | None = None  # the broker refuses any but the connection's own


class Publisher(Protocol):
    """Sends one message at a time per message_id and waits for the broker's word."""

    async def publish(self, message: OutgoingMessage, *, mandatory: bool = True, timeout: float = 10.0) -> None:
        """Returns when the broker confirmed; raises `PublishFailed` (nacked, returned, timed out, no connection)."""
        ...


class ControlMessage(Protocol):
    """One command in our hands, unacknowledged."""

    @property
    def body(self) -> bytes: ...
    @property
    def exchange(self) -> str: ...
    @property
    def routing_key(self) -> str: ...
    @property
    def message_id(self) -> str | None: ...
    @property
    def reply_to(self) -> str | None: ...
    @property
    def correlation_id(self) -> str | None: ...
    @property
    def user_id(self) -> str | None: ...
    @property
    def headers(self) -> Mapping[str, str]: ...

    async def ack(self) -> None: ...


class Subscription(Protocol):
    """Deliveries of one scenario, put into the inbox it was made with."""

    async def start(self) -> None:
        """Consume. Raises `BrokerRefused` where retrying cannot help."""
        ...

    async def pause(self) -> None:
        """Take no more deliveries; those in hand can still be settled."""
        ...

    async def resume(self) -> None:
        """Take deliveries again."""
        ...

    async def stop(self) -> None:
        """Let go; what is not settled is redelivered."""
        ...

    async def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge a group of this subscription's deliveries in few frames; stale and settled ones are skipped."""
        ...
