"""What the sink costs, as JSON lines: `python tests/bench/bench_sink.py [--records N]`.

`null`: a store that keeps nothing, so what is left is gathering, judging and acknowledging; `decode_us` is the share of
the decoder alone, `beyond_us` what the sink adds. `sqlite`: the real store, durable commits. Microseconds of processor
time of the whole process, best of three rounds; deliveries lie ready in the inbox, there is no broker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.broker.port import Delivery
from worker.clock import SystemClock
from worker.episodes.rules import Rules
from worker.sink.sink import Sink
from worker.store import open_store
from worker.store.port import Incoming, RecordLog, Stored, Verdict
from worker.wire.codec import decode_batch, encode_batch
from worker.wire.records import ActionRecord

PREFETCH = 192


class ReadyDelivery:
    """A delivery with nothing behind it."""

    __slots__ = ("acked", "body")
    scenario = "S"
    content_type = "application/json"
    content_encoding = None
    user_id = None
    redelivered = False
    stale = False
    headers: dict[str, str] = {}  # noqa: RUF012  never written

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.acked = False

    async def ack(self) -> None:
        """Note it."""
        self.acked = True

    async def give_back(self) -> None:
        """Never."""
        raise AssertionError


class NullLog:
    """Keeps nothing."""

    async def ingest(self, group: Sequence[Incoming]) -> list[Verdict]:
        """All stored, at once."""
        return [Stored(1, 1, 0)] * len(group)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def bodies(messages: int, per_message: int) -> list[bytes]:
    """Records messages with actions of about 400 bytes, 20 to a task."""
    return [
        encode_batch(
            [_action(message * per_message + index) for index in range(per_message)],
            producer_id="node-7",
            producer_epoch=0,
            batch_seq=message,
        )
        for message in range(messages)
    ]


def _action(number: int) -> ActionRecord:
    task, step = divmod(number, 20)
    return ActionRecord(
        task_id=f"task-{task:032d}", tick=step, worker_id=step % 4, action="done" if step == 19 else "search_flights",
        event_id=step << 24 | (step % 4) << 8, session_id="session-2026-02-01-0007", group_id="g1790000000000",
        target=f"src/module_{number % 50}.py", success=number % 5 != 0, duration_ms=137, timestamp_ms=1_790_000_000_000,
        kpi=0.25, discoveries=1, output=f"found {number} matches in the tree", selection_logic="UCB1",
        previous_action="read_file",
    )  # fmt: skip


async def settle(deliveries: Sequence[Delivery]) -> None:
    """As the broker does: one call a group."""
    for delivery in deliveries:
        await delivery.ack()


async def run(store: RecordLog, texts: list[bytes]) -> tuple[float, float, Sink]:
    """Wall and processor seconds for one pass; the inbox is refilled like a consumer with a prefetch would."""
    inbox: asyncio.Queue[Delivery] = asyncio.Queue(PREFETCH)
    stopping = asyncio.Event()
    rules = Rules()
    sink = Sink(store, SystemClock(), lambda _: rules, settle=settle)

    async def feed() -> None:
        for text in texts:
            await inbox.put(ReadyDelivery(text))
        stopping.set()

    wall, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        group.create_task(feed())
        group.create_task(sink.run(inbox, stopping))
    return time.perf_counter() - wall, time.process_time() - cpu, sink


def decode_seconds(texts: list[bytes]) -> float:
    """Processor seconds of the decoder alone."""
    began = time.process_time()
    for text in texts:
        decode_batch(text, scenario="S", content_type="application/json")
    return time.process_time() - began


async def null_case(per_message: int, messages: int) -> dict[str, Any]:
    """The sink without a store."""
    texts = bodies(messages, per_message)
    decode = min(decode_seconds(texts) for _ in range(3))
    cpu = min([(await run(NullLog(), texts))[1] for _ in range(3)])
    beyond = cpu - decode
    return {
        "case": "null", "per_message": per_message, "decode_us_per_message": round(decode / messages * 1e6, 2),
        "beyond_us_per_message": round(beyond / messages * 1e6, 2),
        "beyond_us_per_record": round(beyond / messages / per_message * 1e6, 3),
    }  # fmt: skip


async def sqlite_case(per_message: int, messages: int) -> dict[str, Any]:
    """The sink with the real store."""
    texts = bodies(messages, per_message)
    best: tuple[float, float, Sink] | None = None
    for _ in range(3):
        with tempfile.TemporaryDirectory() as directory:
            store = open_store(f"sqlite:///{Path(directory) / 'bench.db'}", SystemClock())
            await store.open()
            try:
                found = await run(store, texts)
            finally:
                await store.close()
        best = found if best is None or found[0] < best[0] else best
    assert best is not None
    wall, cpu, sink = best
    records = messages * per_message
    return {
        "case": "sqlite", "per_message": per_message, "records_per_s": round(records / wall),
        "messages_per_s": round(messages / wall), "cpu_us_per_record": round(cpu / records * 1e6, 2),
        "groups": sink.stats.groups, "store_share": round(sink.stats.commit_seconds / wall, 2),
    }  # fmt: skip


def main() -> None:
    """All cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000, help="at 100 records a message; less at fewer")
    records: int = parser.parse_args().records
    for per_message, messages in ((100, records // 100), (10, records // 20), (1, records // 10)):
        for case in (null_case, sqlite_case):
            sys.stdout.write(json.dumps(asyncio.run(case(per_message, messages))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
