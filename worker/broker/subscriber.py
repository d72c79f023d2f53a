"""Records of one scenario: from its queue into a bounded inbox, and acknowledged in groups once they are stored."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiormq.abc import DeliveredMessage

from worker import crash
from worker.broker.consumer import Consumer
from worker.broker.link import Link
from worker.broker.port import Delivery
from worker.broker.properties import as_text
from worker.broker.session import Session
from worker.broker.topology import TopologyMode, ensure_topology, exchanges, records_queue, scenario_objects
from worker.wire.limits import MAX_BODY


@dataclass(slots=True)
class SubscriberStats:
    """Counters since the start."""

    deliveries: int = 0
    redelivered: int = 0
    acked: int = 0
    given_back: int = 0
    stale: int = 0
    overflowed: int = 0
    oversized: int = 0


class RabbitDelivery:
    """A delivery of RabbitMQ; see `port.Delivery`."""

    __slots__ = ("_properties", "_size", "_subscriber", "body", "link", "redelivered", "routing_key", "scenario", "tag")

    def __init__(self, subscriber: Subscriber, link: Link, message: DeliveredMessage) -> None:
        body = message.body
        self._subscriber = subscriber
        self._properties = message.header.properties
        self._size = len(body)
        # One byte above the limit is enough for the decoder to see it; the rest is not kept in memory.
        self.body = body if len(body) <= MAX_BODY else body[: MAX_BODY + 1]
        self.link = link
        self.tag: int = message.delivery_tag or 0
        self.scenario = subscriber.scenario
        self.routing_key = message.routing_key or ""
        self.redelivered = bool(message.redelivered)

    @property
    def content_type(self) -> str | None:
        """As the producer sent it."""
        return self._properties.content_type

    @property
    def content_encoding(self) -> str | None:
        """As the producer sent it."""
        return self._properties.content_encoding

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers and properties as text; `body_bytes` is the size that was sent."""
        return {**as_text(self._properties), "body_bytes": str(self._size)}

    @property
    def user_id(self) -> str | None:
        """The publisher's user, checked by the broker."""
        return self._properties.user_id

    @property
    def delivery_count(self) -> int:
        """How often the broker took it back; to be believed only where `redelivered`, else the producer says so."""
        count = (self._properties.headers or {}).get("x-delivery-count")
        return count if isinstance(count, int) else 0

    @property
    def generation(self) -> int:
        """The channel's number it came on."""
        return self.link.generation

    @property
    def stale(self) -> bool:
        """The channel it came on is gone."""
        return self.link.gone

    async def ack(self) -> None:
        """Acknowledge this one."""
        await self._subscriber.ack_many([self])

    async def give_back(self) -> None:
        """Return it to the queue."""
        await self._subscriber.give_back(self)


class Subscriber:
    """Fills `inbox` with a scenario's deliveries; it should have room for `prefetch` of each scenario in it."""

    def __init__(
        self,
        session: Session,
        scenario: str,
        inbox: asyncio.Queue[Delivery],
        *,
        prefetch: int,
        topology: TopologyMode = "auto",
    ) -> None:
        self.scenario = scenario
        self.queue = records_queue(scenario)
        self.prefetch = prefetch
        self.stats = SubscriberStats()
        #: Loop time of the newest delivery; 0.0 before the first.
        self.last_delivery_at = 0.0
        self.session = session
        self._inbox = inbox
        self._topology: TopologyMode = topology
        self._overflow: deque[RabbitDelivery] = deque()
        self._drainer: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._consumer = Consumer(
            session, name=self.queue, prepare=self._prepare, on_message=self._on_message, prefetch=prefetch
        )

    @property
    def consuming(self) -> bool:
        """Whether the broker has our consumer registered, as far as we know; the watchdog asks the broker."""
        return self._consumer.consuming

    @property
    def consuming_since(self) -> float:
        """Loop time since which the present consumer is registered."""
        return self._consumer.consuming_since

    @property
    def paused(self) -> bool:
        """Whether `pause()` holds."""
        return self._consumer.paused

    @property
    def restarts(self) -> int:
        """How often the consumer was brought back."""
        return max(0, self._consumer.restarts)

    @property
    def outstanding(self) -> int:
        """Deliveries in our hands that are not settled."""
        link = self._consumer.link
        return len(link.outstanding) if link is not None and not link.gone else 0

    async def start(self) -> None:
        """Declare what is needed and consume. Raises `BrokerRefused`, or one of `faults.BROKER_ERRORS`."""
        await self._consumer.start()

    async def pause(self) -> None:
        """Take no more; what is in hand can still be settled."""
        await self._consumer.pause()

    async def resume(self) -> None:
        """Take deliveries again."""
        await self._consumer.resume()

    async def renew(self) -> None:
        """Register anew, beside the present consumer; see `Consumer.renew`."""
        await self._consumer.renew()

    def rebuild(self) -> None:
        """Start over on a new channel."""
        self._consumer.rebuild()

    async def stop(self) -> None:
        """Give up the channel; the broker redelivers what is unsettled."""
        await self._consumer.stop()
        if self._drainer is not None:
            self._drainer.cancel()
            await asyncio.wait([self._drainer])
        self._overflow.clear()

    async def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge a group in as few frames as safe. Stale ones and ones settled before are passed over."""
        tags: dict[Link, list[int]] = {}
        for delivery in deliveries:
            if not isinstance(delivery, RabbitDelivery):
                raise TypeError(f"{type(delivery).__name__} did not come from this subscriber")
            if delivery.link.gone:
                self.stats.stale += 1
            else:
                tags.setdefault(delivery.link, []).append(delivery.tag)
        for link, numbers in tags.items():
            before = len(link.outstanding)
            await link.ack(numbers, self.session.call_timeout)
            self.stats.acked += before - len(link.outstanding)

    async def give_back(self, delivery: RabbitDelivery) -> None:
        """Return one delivery to the queue."""
        await delivery.link.give_back(delivery.tag, self.session.call_timeout)
        self.stats.given_back += 1

    async def _prepare(self) -> list[str]:
        await ensure_topology(self.session, [*exchanges(), *scenario_objects(self.scenario)], self._topology)
        return [self.queue]

    def _on_message(self, link: Link, message: DeliveredMessage) -> None:
        stats = self.stats
        stats.deliveries += 1
        self.last_delivery_at = self._loop.time()
        delivery = RabbitDelivery(self, link, message)
        crash.point("receive")
        stats.redelivered += delivery.redelivered
        stats.oversized += len(delivery.body) > MAX_BODY
        # Quorum queues may exceed the prefetch (rabbitmq-server #5609): nothing is lost and nobody waits in a callback.
        if self._overflow or self._inbox.full():
            stats.overflowed += 1
            self._overflow.append(delivery)
            if self._drainer is None or self._drainer.done():
                self._drainer = asyncio.create_task(self._drain(), name=f"overflow-{self.scenario}")
        else:
            self._inbox.put_nowait(delivery)

    async def _drain(self) -> None:
        while self._overflow:
            delivery = self._overflow[0]
            if not delivery.stale:
                await self._inbox.put(delivery)
            self._overflow.popleft()
