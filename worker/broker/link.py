"""One channel of a consumer: what is outstanding on it, and settling that in few frames.

Deliveries hold theirs, with its generation, and are stale once it is gone: what they say then must not be heard on
another channel, where their tags are somebody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog
from aiormq import spec
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel

log = structlog.get_logger(__name__)


class Link:
    """One channel's life: what is outstanding on it, and settling that."""

    __slots__ = ("_on_stuck", "channel", "generation", "outstanding", "retired", "tags")

    def __init__(self, channel: Channel, generation: int, on_stuck: Callable[[], None]) -> None:
        self.channel = channel
        self.generation = generation
        self.retired = False
        self._on_stuck = on_stuck
        #: Delivery tags not settled yet, oldest first.
        self.outstanding: dict[int, None] = {}
        #: Consumer tag by queue.
        self.tags: dict[str, str] = {}

    @property
    def gone(self) -> bool:
        """Whether the broker has taken back what was outstanding here."""
        return self.retired or self.channel.is_closed

    async def ack(self, tags: Iterable[int], timeout: float) -> None:
        """Acknowledge; cumulatively as far as `tags` are the oldest outstanding, singly for the rest, in one write.

        Tags settled before are ignored: acknowledging one twice would close the channel.
        """
        wanted = self.outstanding.keys() & tags
        if not wanted or self.gone:
            return
        upto = 0
        prefix = 0
        for tag in self.outstanding:
            if tag not in wanted:
                break
            upto = tag
            prefix += 1
        frames = [spec.Basic.Ack(upto, multiple=prefix > 1)] if prefix else []
        frames += [spec.Basic.Ack(tag) for tag in sorted(wanted) if tag > upto]
        for tag in wanted:
            del self.outstanding[tag]
        await self._send(frames, timeout)

    async def give_back(self, tag: int, timeout: float) -> None:
        """Return one to its queue. Nack, not reject: from RabbitMQ 4.3 it does not count towards the delivery limit."""
        if tag in self.outstanding and not self.gone:
            del self.outstanding[tag]
            await self._send([spec.Basic.Nack(tag, requeue=True)], timeout)

    async def _send(self, frames: list[spec.Basic.Ack] | list[spec.Basic.Nack], timeout: float) -> None:
        frame = ChannelFrame.marshall(self.channel.number, frames)
        queue = self.channel.write_queue
        try:
            if queue.full():
                async with asyncio.timeout(timeout):
                    await queue.put(frame)
            else:
                queue.put_nowait(frame)
        except TimeoutError:
            # The socket does not take even an ack: the connection is as good as lost, and so are these acks.
            log.warning("ack_not_sent", generation=self.generation)
            self.retired = True
            self._on_stuck()
