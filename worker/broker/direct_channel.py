"""A channel that hands each delivery straight to its consumer, without a task of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import structlog
from aiormq import spec
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.header import ContentHeader

log = structlog.get_logger(__name__)


class DirectChannel(Channel):
    """aiormq's channel, but for what it does with a delivery.

    The library makes a task of each and registers it in three places: 14 of the 52 us that a small message costs there,
    4 of which ours needs (measured, aiormq 7.2.4, 2 cores). A callback that neither waits nor fails needs no task, and
    none can be cancelled between a delivery and the note that we have it.
    """

    _hand_over: Callable[[DeliveredMessage], None]

    @classmethod
    def of(cls, channel: Channel) -> DirectChannel:
        """The same channel, turned into one of these: a connection makes channels of the library's class only."""
        channel.__class__ = cls
        return cast("DirectChannel", channel)

    async def consume(
        self, queue: str, hand_over: Callable[[DeliveredMessage], None], *, no_ack: bool, timeout: float
    ) -> str:
        """Register a consumer; its tag. All consumers of one channel share the newest `hand_over`."""
        self._hand_over = hand_over
        answer = await self.basic_consume(queue, _never_called, no_ack=no_ack, timeout=timeout)
        return str(answer.consumer_tag)

    async def _on_deliver_frame(self, frame: spec.Basic.Deliver) -> None:
        header = await self._get_frame()
        if not isinstance(header, ContentHeader):
            # As in the library: the channel closes, the consumer is brought back on another.
            raise TypeError(f"a delivery is followed by {header!r}")
        message = await self._read_content(frame, header)
        if frame.consumer_tag not in self.consumers:
            return  # cancelled meanwhile: it stays with the broker
        try:
            self._hand_over(message)
        except Exception:  # a fault of ours must not end the channel, which would bring the same message again
            log.exception("delivery_not_taken", delivery_tag=message.delivery_tag)


async def _never_called(message: DeliveredMessage) -> None:
    """What the library is given for a callback."""
    raise NotImplementedError(f"delivery {message.delivery_tag} went past _on_deliver_frame")
