"""A swarm node and a service that know nothing of this project but its JSON schemas: plain aio-pika and plain JSON."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import jsonschema
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, DeliveryError

from tests.integration.worker_process import until

SCHEMAS = Path(__file__).parents[2] / "schemas"


def line(record: dict[str, Any]) -> bytes:
    """A record as `export records` must give it back: compact, fields in the order sent."""
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()


def body(records: Sequence[Any], **envelope: Any) -> bytes:
    """A records message."""
    return json.dumps({"schema_version": 1, **envelope, "records": list(records)}, ensure_ascii=False).encode()


def episode(task: int, *, success: bool, session: bool = True) -> list[dict[str, Any]]:
    """Four actions and the end of their session: `look` works, `guess` does not."""
    first = "look" if success else "guess"
    actions = [first, "move", first, "done"]
    records: list[dict[str, Any]] = [
        {
            "type": "action",
            "task_id": f"t{task}",
            "tick": tick,
            "worker_id": 0,
            "action": action,
            "event_id": tick << 24,
            "session_id": f"s{task}",
            "success": success or action == "move",
        }
        for tick, action in enumerate(actions)
    ]
    if session:
        outcome = {"kind": "success", "score": 1.0} if success else {"kind": "failure", "reason": "guessed"}
        records.append(
            {
                "type": "learn_stats",
                "session_id": f"s{task}",
                "stats_json": {},
                "outcome": outcome,
                "total_ticks": 4,
                "total_actions": 4,
            }
        )
    return records


class Node:
    """Publishes with confirms; what is not confirmed it may send again under the same identity."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel, exchange: AbstractExchange) -> None:
        self.connection = connection
        self.channel = channel
        self._exchange = exchange

    async def publish(self, scenario: str, data: bytes, *, times: int = 1, packed: bool = False, **how: Any) -> None:
        """Send a body, as often as told, and wait for the confirms."""
        properties: dict[str, Any] = {"content_type": "application/json", **how}
        if packed:
            data, properties["content_encoding"] = gzip.compress(data), "gzip"
        message = aio_pika.Message(data, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **properties)
        await asyncio.gather(*(self._exchange.publish(message, routing_key=scenario, timeout=20) for _ in range(times)))

    async def publish_until_confirmed(self, scenario: str, data: bytes) -> int:
        """Send until the broker takes it; the number of tries."""
        tries = 0
        while True:
            tries += 1
            try:
                await self.publish(scenario, data)
            except (DeliveryError, AMQPError, TimeoutError):
                await asyncio.sleep(0.05)
            else:
                return tries


async def depth(node: Node, queue: str) -> int:
    """Messages of a queue that nobody has taken; those in hand count only once their taker is gone."""
    declared = await node.channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


@asynccontextmanager
async def connection_to(url: str) -> AsyncIterator[AbstractConnection]:
    """Closed also where it could not be made.

    aio-pika leaves that to the collector, which may come when no loop runs: a coroutine is never awaited then.
    """
    connection = aio_pika.Connection(aio_pika.connection.make_url(url))
    try:
        await connection.connect()
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def node_at(url: str) -> AsyncIterator[Node]:
    """A node on a connection of its own. Its exchange is made by the worker, or by the node if that is first."""
    async with connection_to(url) as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.declare_exchange("swarm.records", aio_pika.ExchangeType.TOPIC, durable=True)
        yield Node(connection, channel, exchange)


class Operator:
    """Sends commands as plain JSON and takes the answers, each checked against its schema."""

    def __init__(self, exchange: AbstractExchange, reply_to: str) -> None:
        self.reply_to = reply_to
        self.replies: list[dict[str, Any]] = []
        self._exchange = exchange

    async def send(
        self, key: str, command: str, *, command_id: str, reply_to: str | None = None, **fields: Any
    ) -> None:
        """A command by the schema, unless `fields` spoil it."""
        message = {"schema_version": 1, "command": command, "command_id": command_id, "args": {}, **fields}
        await self.send_raw(key, json.dumps(message).encode(), reply_to=reply_to, correlation_id=command_id)

    async def send_raw(self, key: str, data: bytes, *, reply_to: str | None = None, **properties: Any) -> None:
        """Any bytes at all."""
        message = aio_pika.Message(data, reply_to=reply_to or self.reply_to, **properties)
        await self._exchange.publish(message, routing_key=key)

    async def hear(self, message: AbstractIncomingMessage) -> None:
        """Take one answer."""
        reply = json.loads(message.body)
        jsonschema.validate(reply, json.loads((SCHEMAS / "reply.v1.schema.json").read_text()))
        self.replies.append(reply | {"correlation_id": message.correlation_id})

    async def answers(self, command_id: str, number: int, *, within: float = 20.0) -> list[dict[str, Any]]:
        """The final answers to a command, once there are so many."""

        async def look() -> list[dict[str, Any]]:
            mine = [reply for reply in self.replies if reply["correlation_id"] == command_id]
            return [reply for reply in mine if reply["status"] != "accepted"]

        return await until(look, lambda replies: len(replies) >= number, within=within)


@asynccontextmanager
async def operator_at(url: str) -> AsyncIterator[Operator]:
    """An operator with a queue of its own for answers."""
    async with connection_to(url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("swarm.control", aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(f"swarm.reply.{uuid4()}", exclusive=True)
        operator = Operator(exchange, queue.name)
        await queue.consume(operator.hear, no_ack=True)
        yield operator


class Ears:
    """A service that listens to learning events, checks each against its schema and drops copies by id."""

    def __init__(self) -> None:
        self.deliveries: list[tuple[str, dict[str, Any]]] = []
        self.copies: Counter[str] = Counter()

    def hear(self, message: AbstractIncomingMessage) -> None:
        """Take one message."""
        event = json.loads(message.body)
        assert message.content_type == "application/cloudevents+json"
        assert message.type == event["type"]
        assert message.message_id == event["id"]
        schema = json.loads((SCHEMAS / f"{event['type']}.v1.schema.json").read_text())
        jsonschema.validate(event, schema, format_checker=jsonschema.FormatChecker())
        self.copies[event["id"]] += 1
        if self.copies[event["id"]] == 1:
            self.deliveries.append((message.routing_key or "", event))

    def of(self, type_: str, scenario: str) -> list[dict[str, Any]]:
        """Events of a type and scenario, each once, in the order they came."""
        return [event for _, event in self.deliveries if (event["type"], event["subject"]) == (type_, scenario)]

    async def wait_for(
        self, type_: str, scenario: str, number: int = 1, *, within: float = 20.0
    ) -> list[dict[str, Any]]:
        """The events of a type and scenario, once there are so many."""

        async def look() -> list[dict[str, Any]]:
            return self.of(type_, scenario)

        return await until(look, lambda events: len(events) >= number, within=within)


@asynccontextmanager
async def ears_at(url: str, *keys: str) -> AsyncIterator[Ears]:
    """Listen to these binding keys of `swarm.learning`."""
    async with connection_to(url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("swarm.learning", aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(exclusive=True)
        for key in keys:
            await queue.bind(exchange, key)
        ears = Ears()
        failures: list[BaseException] = []

        async def take(message: AbstractIncomingMessage) -> None:
            try:
                ears.hear(message)
            except Exception as error:  # noqa: BLE001 - told below, in the test
                failures.append(error)

        await queue.consume(take, no_ack=True)
        yield ears
        assert not failures, failures


@asynccontextmanager
async def journal_at(url: str) -> AsyncIterator[Ears]:
    """Read the journal of all events from its beginning: for a service that was away, or was cut off."""
    async with connection_to(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)  # a stream is not delivered without
        queue = await channel.get_queue("swarm.learning.journal", ensure=False)
        ears = Ears()

        async def take(message: AbstractIncomingMessage) -> None:
            ears.hear(message)
            await message.ack()

        await queue.consume(take, arguments={"x-stream-offset": "first"})
        yield ears


@asynccontextmanager
async def service_at(url: str) -> AsyncIterator[Ears]:
    """A service with a durable queue of its own, which fills while it is away."""
    async with connection_to(url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=100)
        exchange = await channel.declare_exchange("swarm.learning", aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(
            "swarm.learning.sub.tester", durable=True, arguments={"x-queue-type": "quorum"}
        )
        await queue.bind(exchange, "learning.#")
        ears = Ears()

        async def take(message: AbstractIncomingMessage) -> None:
            ears.hear(message)
            await message.ack()

        await queue.consume(take)
        yield ears
