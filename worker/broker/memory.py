"""A broker in memory with the same ports, for tests of everything else: topic routing, returns, redelivery, control."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from worker.broker.control import MAX_REPLY
from worker.broker.port import ControlMessage, Delivery, OutgoingMessage
from worker.broker.topology import (
    LEARNING_JOURNAL,
    Queue,
    records_queue,
    scenario_objects,
    worker_objects,
    worker_queue,
)
from worker.errors import PublishFailed
from worker.wire.commands import is_allowed_reply_to
from worker.wire.names import CONTROL_EXCHANGE, LEARNING_EXCHANGE


@dataclass(slots=True)
class Held:
    """A message in a queue, with how often it was handed out."""

    message: OutgoingMessage
    deliveries: int = 0


@dataclass(slots=True)
class MemoryQueue:
    """Ready messages, and those in somebody's hands."""

    ready: deque[Held] = field(default_factory=deque)
    limit: int | None = None
    wake: list[MemoryConsumer] = field(default_factory=list)


class MemoryBroker:
    """Exchanges, queues and bindings as the worker declares them. One per test."""

    def __init__(self) -> None:
        self.queues: dict[str, MemoryQueue] = {}
        self.bindings: list[tuple[str, str, str]] = []
        #: Every message that was confirmed, in order.
        self.published: list[OutgoingMessage] = []
        #: While set, each publish fails with this reason.
        self.failing: str | None = None
        self.declare(Queue(name=LEARNING_JOURNAL, arguments={}, bindings=[(LEARNING_EXCHANGE, "#")]))

    def declare(self, queue: Queue) -> MemoryQueue:
        """Make a queue and its bindings, once."""
        for exchange, key in queue.bindings:
            if (exchange, key, queue.name) not in self.bindings:
                self.bindings.append((exchange, key, queue.name))
        return self.queues.setdefault(queue.name, MemoryQueue())

    def declare_scenario(self, scenario: str) -> None:
        """Make what one scenario needs."""
        for item in scenario_objects(scenario):
            if isinstance(item, Queue):
                self.declare(item)

    def delete(self, name: str) -> None:
        """Drop a queue and its bindings."""
        self.queues.pop(name, None)
        self.bindings = [binding for binding in self.bindings if binding[2] != name]

    def cut(self) -> None:
        """Lose all channels: what is unsettled is redelivered, deliveries in hand are stale."""
        for queue in self.queues.values():
            for consumer in list(queue.wake):
                consumer.lose_channel()

    def send(self, message: OutgoingMessage, *, mandatory: bool = True) -> None:
        """Route a message. Raises `PublishFailed` like the real publisher."""
        if self.failing is not None:
            raise PublishFailed(f"told to fail: {self.failing}", reason=self.failing)
        targets = self._route(message)
        if not targets:
            if mandatory:
                raise PublishFailed(
                    f"no queue takes it: exchange {message.exchange!r}, routing key {message.routing_key!r}",
                    reason="returned",
                )
            return
        for queue in targets:
            if queue.limit is not None and len(queue.ready) >= queue.limit:
                raise PublishFailed("the queue refuses more; send it again later", reason="nacked")
        self.published.append(message)
        for queue in targets:
            queue.ready.append(Held(message))
            for consumer in queue.wake:
                consumer.fill()

    def _route(self, message: OutgoingMessage) -> list[MemoryQueue]:
        if not message.exchange:
            queue = self.queues.get(message.routing_key)
            return [queue] if queue is not None else []
        copies = message.headers.get("CC", [])
        keys = [message.routing_key, *([copies] if isinstance(copies, str) else copies)]
        names = {
            name
            for exchange, pattern, name in self.bindings
            if exchange == message.exchange and any(topic_matches(pattern, key) for key in keys)
        }
        return [self.queues[name] for name in sorted(names)]


def topic_matches(pattern: str, key: str) -> bool:
    """AMQP topics: `*` is one word, `#` any number of them."""

    def match(wanted: list[str], words: list[str]) -> bool:
        if not wanted:
            return not words
        if wanted[0] == "#":
            return any(match(wanted[1:], words[skip:]) for skip in range(len(words) + 1))
        return bool(words) and wanted[0] in ("*", words[0]) and match(wanted[1:], words[1:])

    return match(pattern.split("."), key.split("."))


class MemoryConsumer:
    """Hands a queue's messages on, up to `prefetch` unsettled ones."""

    def __init__(self, queue: MemoryQueue, prefetch: int) -> None:
        self.queue = queue
        self.prefetch = prefetch
        self.generation = 1
        self.paused = True
        self.outstanding: dict[int, Held] = {}
        self._tags = itertools.count(1)
        queue.wake.append(self)

    def deliver(self, tag: int, held: Held) -> None:
        """Put one message where it belongs."""
        raise NotImplementedError

    def fill(self) -> None:
        """Hand out what there is room for."""
        while not self.paused and self.queue.ready and len(self.outstanding) < self.prefetch:
            held = self.queue.ready.popleft()
            held.deliveries += 1
            tag = next(self._tags)
            self.outstanding[tag] = held
            self.deliver(tag, held)

    def lose_channel(self) -> None:
        """Requeue what is unsettled, at the head, and go on with a new generation."""
        self.generation += 1
        self.queue.ready.extendleft(reversed(self.outstanding.values()))
        self.outstanding.clear()
        for consumer in list(self.queue.wake):
            consumer.fill()

    def settle(self, tag: int, generation: int, *, requeue: bool) -> None:
        """Ack or requeue; nothing where the channel is gone or it was settled before."""
        if generation != self.generation or tag not in self.outstanding:
            return
        held = self.outstanding.pop(tag)
        if requeue:
            self.queue.ready.appendleft(held)
        self.fill()

    def leave(self) -> None:
        """Requeue what is unsettled and consume no more."""
        self.paused = True
        self.lose_channel()
        if self in self.queue.wake:
            self.queue.wake.remove(self)


class MemoryDelivery:
    """See `port.Delivery` and `port.ControlMessage`: both, since nothing in them differs here."""

    def __init__(self, consumer: MemoryConsumer, tag: int, held: Held, scenario: str = "") -> None:
        self._consumer = consumer
        self._generation = consumer.generation
        self.tag = tag
        self.message = held.message
        self.scenario = scenario
        self.body = held.message.body
        self.content_type: str | None = held.message.content_type
        self.content_encoding = held.message.content_encoding
        self.exchange = held.message.exchange
        self.routing_key = held.message.routing_key
        self.message_id: str | None = held.message.message_id
        self.reply_to = held.message.reply_to
        self.correlation_id = held.message.correlation_id
        self.user_id = held.message.user_id
        self.redelivered = held.deliveries > 1
        self.delivery_count = held.deliveries - 1

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers and properties as text."""
        message = self.message
        kept = {name: str(value) for name, value in message.headers.items()}
        for name in ("message_id", "correlation_id", "reply_to", "type", "content_type", "content_encoding"):
            value = getattr(message, name)
            if value is not None:
                kept[name] = value
        return kept

    @property
    def stale(self) -> bool:
        """The channel it came on is gone."""
        return self._generation != self._consumer.generation

    async def ack(self) -> None:
        """Acknowledge this one."""
        self._consumer.settle(self.tag, self._generation, requeue=False)

    async def give_back(self) -> None:
        """Return it to the queue."""
        self._consumer.settle(self.tag, self._generation, requeue=True)


class MemorySubscriber(MemoryConsumer):
    """See `port.Subscription`."""

    def __init__(self, broker: MemoryBroker, scenario: str, inbox: asyncio.Queue[Delivery], *, prefetch: int) -> None:
        broker.declare_scenario(scenario)
        super().__init__(broker.queues[records_queue(scenario)], prefetch)
        self.scenario = scenario
        self._inbox = inbox
        self._overflow: deque[Delivery] = deque()
        self._drainer: asyncio.Task[None] | None = None

    def deliver(self, tag: int, held: Held) -> None:
        """Into the inbox, never losing one when it is full."""
        delivery = MemoryDelivery(self, tag, held, self.scenario)
        if self._overflow or self._inbox.full():
            self._overflow.append(delivery)
            if self._drainer is None or self._drainer.done():
                self._drainer = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._inbox.put_nowait(delivery)

    async def start(self) -> None:
        """Consume."""
        await self.resume()

    async def pause(self) -> None:
        """Take no more."""
        self.paused = True

    async def resume(self) -> None:
        """Take deliveries again."""
        self.paused = False
        self.fill()

    async def stop(self) -> None:
        """Let go; what is unsettled is redelivered."""
        self.leave()
        if self._drainer is not None:
            self._drainer.cancel()
            await asyncio.wait([self._drainer])

    async def ack_many(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge a group."""
        for delivery in deliveries:
            await delivery.ack()

    async def _drain(self) -> None:
        while self._overflow:
            await self._inbox.put(self._overflow[0])
            self._overflow.popleft()


class MemoryPublisher:
    """See `port.Publisher`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def publish(self, message: OutgoingMessage, *, mandatory: bool = True, timeout: float = 10.0) -> None:  # noqa: ARG002 - the port's
        """Routed at once."""
        self._broker.send(message, mandatory=mandatory)


class MemoryControl(MemoryConsumer):
    """See `control.CommandSource`."""

    def __init__(self, broker: MemoryBroker, *, worker_id: str, boot_id: str, scenarios: Sequence[str]) -> None:
        self.inbox: asyncio.Queue[ControlMessage] = asyncio.Queue()
        self._broker = broker
        self._worker_id = worker_id
        self._name = worker_queue(worker_id, boot_id)
        self._answers = itertools.count(1)
        for item in worker_objects(worker_id, boot_id, scenarios):
            if isinstance(item, Queue):
                broker.declare(item)
        super().__init__(broker.queues[self._name], prefetch=16)
        self._jobs = []
        for scenario in scenarios:
            broker.declare_scenario(scenario)
            self._jobs.append(_JobConsumer(broker.queues[f"{CONTROL_EXCHANGE}.jobs.{scenario}"], self.inbox))

    def deliver(self, tag: int, held: Held) -> None:
        """Into the inbox."""
        self.inbox.put_nowait(MemoryDelivery(self, tag, held))

    async def start(self) -> None:
        """Listen."""
        for consumer in (self, *self._jobs):
            consumer.paused = False
            consumer.fill()

    async def stop(self) -> None:
        """Listen no more."""
        for consumer in (self, *self._jobs):
            consumer.leave()
        self._broker.delete(self._name)

    async def reply(self, to: ControlMessage, body: bytes) -> bool:
        """Answer, to allowed addresses only."""
        if not is_allowed_reply_to(to.reply_to) or to.reply_to is None or len(body) > MAX_REPLY:
            return False
        answer = OutgoingMessage(
            exchange="",
            routing_key=to.reply_to,
            body=body,
            message_id=f"{self._worker_id}:{next(self._answers)}",
            correlation_id=to.correlation_id or to.message_id,
            headers={"worker": self._worker_id},
        )
        try:
            self._broker.send(answer, mandatory=False)
        except PublishFailed:
            return False
        return True


class _JobConsumer(MemoryConsumer):
    def __init__(self, queue: MemoryQueue, inbox: asyncio.Queue[ControlMessage]) -> None:
        super().__init__(queue, prefetch=16)
        self._inbox = inbox

    def deliver(self, tag: int, held: Held) -> None:
        self._inbox.put_nowait(MemoryDelivery(self, tag, held))
