"""The yardstick: a pipeline of the worker's shape that does nothing else, `python -m tests.bench.bare --help`.

Consumes with the worker's prefetch, decodes into types without rules, commits up to 64 messages in one transaction
(WAL, full sync) in a thread of its own, and acknowledges. Its rows hold what the worker's rows hold, keyed by task and
sequence, and each batch has its identity. It checks nothing, cannot tell a bad message from a good one, knows no
scenario and projects nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiormq
import msgspec
from aiormq.abc import DeliveredMessage
from msgspec import Struct
from msgspec.structs import astuple

GROUP = 64
SCHEMA = """
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
PRAGMA cache_size=-65536;
PRAGMA wal_autocheckpoint=4000;
CREATE TABLE batch (
    batch_no INTEGER PRIMARY KEY, producer_id TEXT, epoch INTEGER, seq INTEGER, content_hash BLOB,
    UNIQUE (producer_id, epoch, seq)
);
CREATE TABLE record (
    task TEXT, sequence INTEGER, position INTEGER, kind INTEGER, body TEXT, PRIMARY KEY (task, sequence)
) WITHOUT ROWID;
"""
INSERT_BATCH = "INSERT INTO batch (producer_id, epoch, seq, content_hash) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
INSERT_RECORD = "INSERT INTO record VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"


class Action(Struct, tag_field="type", tag="action", gc=False):
    """The fields of the worker's `ActionRecord`, without its rules."""

    task_id: str
    tick: int
    worker_id: int
    action: str
    event_id: int | None = None
    session_id: str | None = None
    group_id: str | None = None
    target: str | None = None
    success: bool | None = None
    error: str | None = None
    duration_ms: int | None = None
    timestamp_ms: int | None = None
    kpi: float | None = None
    discoveries: int | None = None
    output: str | None = None
    cost: float | None = None
    selection_logic: str | None = None
    from_guidance: bool | None = None
    previous_action: str | None = None
    lora: str | None = None
    propensity: float | None = None
    candidates: list[str] | None = None
    policy_version: str | None = None
    record_id: str | None = None


class Message(Struct):
    """One records message."""

    producer_id: str
    producer_epoch: int
    batch_seq: int
    records: list[Action]


decode = msgspec.json.Decoder(Message).decode
encode = msgspec.json.Encoder().encode


class Log:
    """The table, written in a thread of its own."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.executescript(SCHEMA)
        self._batches = 0

    def store(self, bodies: list[bytes], messages: list[Message]) -> None:
        """One transaction."""
        batches = [
            (message.producer_id, message.producer_epoch, message.batch_seq, hashlib.sha256(body).digest())
            for body, message in zip(bodies, messages, strict=True)
        ]
        rows: list[tuple[Any, ...]] = []
        for message in messages:
            self._batches += 1
            place = self._batches << 14
            for at, record in enumerate(message.records, place):
                rows.append((record.task_id, record.event_id, at, 0, encode(astuple(record)).decode()))
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(INSERT_BATCH, batches)
        self._connection.executemany(INSERT_RECORD, rows)
        self._connection.execute("COMMIT")


async def serve(url: str, queue: str, path: str, prefetch: int) -> None:
    """Consume until killed."""
    log = Log(path)
    writer = ThreadPoolExecutor(1)
    inbox: asyncio.Queue[tuple[DeliveredMessage, Message]] = asyncio.Queue()
    connection = await aiormq.connect(url)
    channel = await connection.channel(publisher_confirms=False, frame_buffer_size=1000)
    await channel.basic_qos(prefetch_count=prefetch)

    async def on_message(message: DeliveredMessage) -> None:
        inbox.put_nowait((message, decode(message.body)))

    await channel.basic_consume(queue, on_message)
    loop = asyncio.get_running_loop()
    while True:
        group = [await inbox.get()]
        while len(group) < GROUP and not inbox.empty():
            group.append(inbox.get_nowait())
        bodies, messages = [delivery.body for delivery, _ in group], [message for _, message in group]
        await loop.run_in_executor(writer, log.store, bodies, messages)
        await channel.basic_ack(group[-1][0].delivery_tag or 0, multiple=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--prefetch", type=int, default=192)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    asyncio.run(serve(os.environ["SWARM_AMQP_URL"], options.queue, options.database, options.prefetch))


if __name__ == "__main__":
    main()
