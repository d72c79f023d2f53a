"""What the sink costs, without a broker.

`null`: a store that keeps nothing, so what is left is gathering, judging and acknowledging; `decode_us` is the share of
the decoder alone, `beyond_us` what the sink adds. `sqlite`: the real store, durable commits. Microseconds of processor
time of the whole process, best of three rounds; deliveries lie ready in the inbox, there is no broker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from tests.bench.messages import bodies
from tests.bench.race import scratch
from tests.bench.report import Emit
from worker.broker.port import Delivery
from worker.clock import SystemClock
from worker.episodes.rules import Rules
from worker.sink.sink import Sink
from worker.store import open_store
from worker.store.port import Incoming, RecordLog, Stored, Verdict
from worker.wire.codec import decode_batch

PREFETCH = 192


class ReadyDelivery:
    """A delivery with nothing behind it."""

    __slots__ = ("acked", "body")
    scenario = "S"
    content_type = "application/json"
    content_encoding = None
    user_id = None
    routing_key = "S"
    redelivered = False
    delivery_count = 0
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


async def null_case(per_message: int, texts: list[bytes]) -> dict[str, Any]:
    """The sink without a store."""
    messages = len(texts)
    decode = min(decode_seconds(texts) for _ in range(3))
    cpu = min([(await run(NullLog(), texts))[1] for _ in range(3)])
    beyond = cpu - decode
    return {
        "bench": "sink", "case": f"null store, {per_message} a message",
        "decode_us_per_message": round(decode / messages * 1e6, 2),
        "beyond_us_per_message": round(beyond / messages * 1e6, 2),
        "beyond_us_per_record": round(beyond / messages / per_message * 1e6, 3),
    }  # fmt: skip


async def sqlite_case(per_message: int, texts: list[bytes]) -> dict[str, Any]:
    """The sink with the real store."""
    best: tuple[float, float, Sink] | None = None
    for _ in range(3):
        with scratch() as folder:
            store = open_store(f"sqlite://{folder / 'bench.db'}", SystemClock())
            await store.open()
            try:
                found = await run(store, texts)
            finally:
                await store.close()
        best = found if best is None or found[0] < best[0] else best
    assert best is not None
    wall, cpu, sink = best
    records = len(texts) * per_message
    return {
        "bench": "sink", "case": f"{per_message} a message", "records_per_second": round(records / wall),
        "messages_per_second": round(len(texts) / wall), "cpu_us_per_record": round(cpu / records * 1e6, 2),
        "groups": sink.stats.groups, "store_share": round(sink.stats.commit_seconds / wall, 2),
    }  # fmt: skip


async def case(emit: Emit, records: int) -> None:
    """All cases: so many records at 100 records a message, less at fewer."""
    for per_message, messages in ((100, records // 100), (10, records // 20), (1, records // 10)):
        texts = list(bodies(messages, per_message))
        emit(await null_case(per_message, texts))
        emit(await sqlite_case(per_message, texts))
