"""How fast the SQLite store takes records, without a broker and a sink.

Each case stores actions in groups of 64 batches, as the sink does. `beside python` has another thread compute all the
while, `beside io` one that also makes system calls: what the event loop does to the writer's thread. `bare commit` is a
transaction of 64 small rows without any of our work.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.bench.messages import NOW_MS, action
from tests.bench.race import scratch
from tests.bench.report import Emit
from worker.clock import SystemClock
from worker.store import open_store
from worker.store.port import IncomingBatch, PendingTask, Projection, Store
from worker.wire.records import ActionRecord, Batch, BatchIdentity, Record

GROUP = 64


def groups(records: int, per_message: int) -> Iterator[list[IncomingBatch]]:
    """Groups of messages as the sink hands them over."""
    batch_seq = 0
    for _ in range(records // (GROUP * per_message)):
        group = []
        for _ in range(GROUP):
            start = batch_seq * per_message
            batch_records: list[Record] = [action(start + at) for at in range(per_message)]
            ends = frozenset(
                one.task_id for one in batch_records if isinstance(one, ActionRecord) and one.action == "done"
            )
            content_hash = hashlib.sha256(str(batch_seq).encode()).digest()
            batch = Batch(BatchIdentity("node-7", 0, batch_seq, None), content_hash, batch_records, None, 0)
            group.append(
                IncomingBatch(scenario="bench", batch=batch, body=b"", received_at_ms=NOW_MS, terminal_tasks=ends)
            )
            batch_seq += 1
        yield group


@contextmanager
def beside(kind: str | None) -> Iterator[None]:
    """Another thread that wants the interpreter."""
    stop = threading.Event()

    def compute() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        while not stop.is_set():
            for _ in range(300):
                pass
            if kind == "io":
                os.write(null, b"x")
        os.close(null)

    thread = threading.Thread(target=compute)
    if kind:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if kind:
            thread.join()


async def ingest(store: Store, work: list[list[IncomingBatch]]) -> float:
    """Seconds to store all groups."""
    started = time.perf_counter()
    for group in work:
        await store.ingest(group)
    return time.perf_counter() - started


async def case(emit: Emit, records: int) -> None:
    """All cases, the greatest with so many records."""
    with scratch() as folder:
        for per_message, share, besides in (
            (100, 1, (None, "io", "python")),
            (10, 4, (None,)),
            (1, 20, (None, "io")),
        ):
            for kind in besides:
                work = list(groups(records // share, per_message))
                path = folder / f"{per_message}{kind}.db"
                async with opened(path) as store:
                    with beside(kind):
                        cpu = time.process_time()
                        seconds = await ingest(store, work)
                        cpu = time.process_time() - cpu
                count = len(work) * GROUP * per_message
                line = {
                    "bench": "store",
                    "case": f"{per_message} a message" + (f", beside {kind}" if kind else ""),
                    "records_per_second": round(count / seconds),
                    "messages_per_second": round(len(work) * GROUP / seconds),
                    "ms_per_group": round(seconds / len(work) * 1000, 2),
                    "bytes_per_record": round(path.stat().st_size / count),
                }
                emit(line if kind else line | {"cpu_us_per_record": round(cpu / count * 1e6, 2)})
        emit(bare_commits(folder / "bare.db"))
        work = list(groups(records, 100))
        async with opened(folder / "rest.db") as store:
            await ingest(store, work)
            emit(await reads(store, work))


@contextmanager
def timed(figures: dict[str, float], name: str, times: int = 1) -> Iterator[None]:
    """Milliseconds of the block, divided by `times`, under `name`."""
    started = time.perf_counter()
    yield
    figures[name] = round((time.perf_counter() - started) / times * 1000, 3)


async def reads(store: Store, work: list[list[IncomingBatch]]) -> dict[str, Any]:
    """Facts, redelivery, projection, export over what is stored."""
    figures: dict[str, float] = {}
    with timed(figures, "facts_ms", 200):
        for _ in range(200):
            await store.facts("bench")
    with timed(figures, "redelivered_group_ms", 5):
        for group in work[:5]:
            await store.ingest(group)
    with timed(figures, "pending_4000_actions_ms"):
        pending = await store.pending(now_ms=NOW_MS, idle_ms=900_000, limit=4000)
    with timed(figures, "mark_them_projected_ms"):
        await store.project([Projection(of=item, episodes=[], counts={}) for item in pending])
    tasks = len(pending)
    with timed(figures, "project_all_ms"):
        while pending := await store.pending(now_ms=NOW_MS, idle_ms=900_000, limit=4000):
            await store.project([Projection(of=item, episodes=[], counts={}) for item in pending])
    with timed(figures, "pending_none_ms", 200):
        for _ in range(200):
            await store.pending(now_ms=NOW_MS, idle_ms=900_000, limit=4000)
    first = work[0][0].batch
    late: list[Record] = [replace(action(number), event_id=1 << 40) for number in range(0, 2000, 20)]
    identity = BatchIdentity(None, 0, None, "late")
    batch = Batch(identity, first.content_hash, late, None, 0)
    await store.ingest([IncomingBatch(scenario="bench", batch=batch, body=b"", received_at_ms=NOW_MS)])
    with timed(figures, "pending_100_late_ms"):
        pending = await store.pending(now_ms=NOW_MS, idle_ms=900_000, limit=4000)
    assert all(isinstance(item, PendingTask) for item in pending)
    exported = 0
    started = time.perf_counter()
    async for _ in store.records("bench"):
        exported += 1
    figures["export_records_per_second"] = round(exported / (time.perf_counter() - started))
    return {"bench": "store", "case": "reads", "stored": exported, "tasks_in_4000_actions": tasks, **figures}


def bare_commits(path: Path) -> dict[str, Any]:
    """The disk's own share: 64 small rows and a commit, again and again."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE bare (n INTEGER PRIMARY KEY, body TEXT)")
    started = time.perf_counter()
    times = 200
    for at in range(times):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO bare VALUES (?, ?)", [(at * GROUP + n, "x" * 250) for n in range(GROUP)])
        connection.execute("COMMIT")
    seconds = time.perf_counter() - started
    connection.close()
    return {"bench": "store", "case": "bare commit", "ms_per_group": round(seconds / times * 1000, 2)}


class opened:  # noqa: N801  reads as a verb in `async with`
    """A fresh store, opened and closed."""

    def __init__(self, path: Path) -> None:
        self._store = open_store(f"sqlite://{path}", SystemClock())

    async def __aenter__(self) -> Store:
        await self._store.open()
        return self._store

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()
