"""The usual way: FastStream, pydantic models, one commit a message. `python -m tests.bench.faststream_worker --help`.

Stores what `bare` stores, with the same durability, as its documentation would have one write it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import os
import signal
import sqlite3
from typing import Annotated, Any, Literal

import orjson
from faststream import FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitMessage, RabbitQueue
from pydantic import BaseModel, Field

from tests.bench.bare import INSERT_BATCH, INSERT_RECORD, SCHEMA

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Key = Annotated[str, Field(min_length=1, max_length=128)]
Text = Annotated[str, Field(max_length=65_536)]


class Action(BaseModel):
    """The worker's `ActionRecord` as a pydantic model."""

    type: Literal["action"]
    task_id: Key
    tick: Count
    worker_id: Count
    action: Annotated[str, Field(min_length=1, max_length=256)]
    event_id: Count | None = None
    session_id: Key | None = None
    group_id: Key | None = None
    target: Text | None = None
    success: bool | None = None
    error: Text | None = None
    duration_ms: Count | None = None
    timestamp_ms: Count | None = None
    kpi: float | None = None
    discoveries: Count | None = None
    output: Text | None = None
    cost: float | None = None
    selection_logic: Text | None = None
    from_guidance: bool | None = None
    previous_action: Text | None = None
    lora: Text | None = None
    propensity: Annotated[float, Field(gt=0, le=1)] | None = None
    candidates: list[Text] | None = None
    policy_version: Text | None = None
    record_id: Key | None = None


class Batch(BaseModel):
    """One records message."""

    schema_version: Literal[1]
    producer_id: Annotated[str, Field(max_length=64)]
    producer_epoch: Count = 0
    batch_seq: Count
    records: Annotated[list[Action], Field(min_length=1, max_length=10_000)]


def make_app(url: str, queue: str, path: str, prefetch: int) -> FastStream:
    """The application."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(SCHEMA)
    broker = RabbitBroker(url, default_channel=Channel(prefetch_count=prefetch), logger=None)
    stored = 0

    @broker.subscriber(RabbitQueue(queue, queue_type=QueueType.QUORUM, durable=True, declare=False))
    async def handle(batch: Batch, message: RabbitMessage) -> None:
        nonlocal stored
        stored += 1
        rows: list[tuple[Any, ...]] = [
            (
                record.task_id,
                record.event_id,
                stored << 14 | at,
                0,
                orjson.dumps(list(record.__dict__.values())).decode(),
            )
            for at, record in enumerate(batch.records)
        ]
        content_hash = hashlib.sha256(message.body).digest()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(INSERT_BATCH, (batch.producer_id, batch.producer_epoch, batch.batch_seq, content_hash))
        connection.executemany(INSERT_RECORD, rows)
        connection.execute("COMMIT")

    return FastStream(broker, logger=None)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--prefetch", type=int, default=192)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    app = make_app(os.environ["SWARM_AMQP_URL"], options.queue, options.database, options.prefetch)
    asyncio.run(_run(app))


async def _run(app: FastStream) -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    await app.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
