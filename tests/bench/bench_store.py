"""How fast the SQLite store takes records, as JSON lines: `python tests/bench/bench_store.py [--records N]`.

Each case stores realistic actions (about 400 bytes on the wire, 20 a task) in groups of 64 batches, as the sink does.
`beside_python` has another thread compute all the while, `beside_io` one that also makes system calls: what the event
loop does to the writer's thread. `bare_commit` is the same number of one-row transactions without any of our work.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from worker.clock import SystemClock
from worker.store import open_store
from worker.store.port import IncomingBatch, PendingTask, Projection, Store
from worker.wire.records import ActionRecord, Batch, BatchIdentity

GROUP = 64
NOW = 1_790_000_000_000
ACTIONS = ("search_flights", "get_user_details", "read_file", "grep", "analyse", "done")


def action(number: int) -> ActionRecord:
    """The action of this number: 20 to a task, the last one terminal."""
    task, step = divmod(number, 20)
    return ActionRecord(
        task_id=str(UUID(int=hash((task, "task")) & (1 << 128) - 1)),
        tick=step,
        worker_id=step % 4,
        action="done" if step == 19 else ACTIONS[number % 5],
        event_id=step << 24 | (step % 4) << 8,
        session_id=str(UUID(int=task // 50)),
        group_id="g1790000000000",
        target=f"src/module_{number % 50}.py",
        success=number % 5 != 0,
        duration_ms=number % 900,
        timestamp_ms=NOW + number,
        kpi=0.25,
        discoveries=number % 3,
        output=f"found {number} matches in the tree",
        selection_logic="UCB1",
        previous_action=ACTIONS[(number - 1) % 5],
    )


def groups(records: int, per_message: int) -> list[list[IncomingBatch]]:
    """Groups of messages as the sink hands them over."""
    made = []
    number = 0
    for _ in range(records // (GROUP * per_message)):
        group = []
        for _ in range(GROUP):
            batch_records: list[ActionRecord] = [action(number + at) for at in range(per_message)]
            identity = BatchIdentity("node-7", 0, number, None)
            content_hash = hashlib.sha256(str(number).encode()).digest()
            ends = frozenset(record.task_id for record in batch_records if record.action == "done")
            batch = Batch(identity, content_hash, list(batch_records), None, 0)
            group.append(
                IncomingBatch(scenario="bench", batch=batch, body=b"", received_at_ms=NOW, terminal_tasks=ends)
            )
            number += per_message
        made.append(group)
    return made


@contextmanager
def beside(kind: str | None) -> Iterator[None]:
    """Another thread that wants the interpreter."""
    stop = threading.Event()

    def compute() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        while not stop.is_set():
            for _ in range(300):
                pass
            if kind == "beside_io":
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


def emit(case: str, **figures: object) -> None:
    sys.stdout.write(json.dumps({"bench": "store", "case": case, **figures}) + "\n")
    sys.stdout.flush()


async def ingest(store: Store, work: list[list[IncomingBatch]]) -> float:
    """Seconds to store all groups."""
    started = time.perf_counter()
    for group in work:
        await store.ingest(group)
    return time.perf_counter() - started


async def run(records: int, folder: Path) -> None:
    """All cases."""
    for per_message, share, besides in (
        (100, 1, (None, "beside_io", "beside_python")),
        (10, 4, (None,)),
        (1, 20, (None, "beside_io")),
    ):
        for kind in besides:
            work = groups(records // share, per_message)
            async with opened(folder / f"{per_message}{kind}.db") as store:
                with beside(kind):
                    cpu = time.process_time()
                    seconds = await ingest(store, work)
                    cpu = time.process_time() - cpu
            count = len(work) * GROUP * per_message
            emit(
                f"ingest_{per_message}" + (f"_{kind}" if kind else ""),
                records=count,
                records_per_second=round(count / seconds),
                messages_per_second=round(len(work) * GROUP / seconds),
                ms_per_group=round(seconds / len(work) * 1000, 2),
                cpu_us_per_record=None if kind else round(cpu / count * 1e6, 2),
                bytes_per_record=round((folder / f"{per_message}{kind}.db").stat().st_size / count),
            )
    bare_commits(folder / "bare.db")
    work = groups(records, 100)
    async with opened(folder / "rest.db") as store:
        await ingest(store, work)
        await reads(store, work)


@contextmanager
def timed(figures: dict[str, float], name: str, times: int = 1) -> Iterator[None]:
    """Milliseconds of the block, divided by `times`, under `name`."""
    started = time.perf_counter()
    yield
    figures[name] = round((time.perf_counter() - started) / times * 1000, 3)


async def reads(store: Store, work: list[list[IncomingBatch]]) -> None:
    """Facts, redelivery, projection, export over what is stored."""
    figures: dict[str, float] = {}
    with timed(figures, "facts_ms", 200):
        for _ in range(200):
            await store.facts("bench")
    with timed(figures, "redelivered_group_ms", 5):
        for group in work[:5]:
            await store.ingest(group)
    with timed(figures, "pending_4000_actions_ms"):
        pending = await store.pending(now_ms=NOW, idle_ms=900_000, limit=4000)
    with timed(figures, "mark_them_projected_ms"):
        await store.project([Projection(of=item, episodes=[], counts={}) for item in pending])
    tasks = len(pending)
    with timed(figures, "project_all_ms"):
        while pending := await store.pending(now_ms=NOW, idle_ms=900_000, limit=4000):
            await store.project([Projection(of=item, episodes=[], counts={}) for item in pending])
    with timed(figures, "pending_none_ms", 200):
        for _ in range(200):
            await store.pending(now_ms=NOW, idle_ms=900_000, limit=4000)
    first = work[0][0].batch
    late = [action(n) for n in range(0, 2000, 20)]
    for record in late:
        record.event_id = 1 << 40
    identity = BatchIdentity(None, 0, None, "late")
    batch = Batch(identity, first.content_hash, list(late), None, 0)
    await store.ingest([IncomingBatch(scenario="bench", batch=batch, body=b"", received_at_ms=NOW)])
    with timed(figures, "pending_100_late_ms"):
        pending = await store.pending(now_ms=NOW, idle_ms=900_000, limit=4000)
    assert all(isinstance(item, PendingTask) for item in pending)
    exported = 0
    started = time.perf_counter()
    async for _ in store.records("bench"):
        exported += 1
    figures["export_records_per_second"] = round(exported / (time.perf_counter() - started))
    emit("reads", stored=exported, tasks_in_4000_actions=tasks, late_tasks=len(pending), **figures)


def bare_commits(path: Path) -> None:
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
    emit("bare_commit", rows_per_group=GROUP, ms_per_group=round(seconds / times * 1000, 2))


class opened:  # noqa: N801  reads as a verb in `async with`
    """A fresh store, opened and closed."""

    def __init__(self, path: Path) -> None:
        self._store = open_store(f"sqlite://{path}", SystemClock())

    async def __aenter__(self) -> Store:
        await self._store.open()
        return self._store

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=256_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("SWARM_BENCH_DIR")) as folder:
        asyncio.run(run(arguments.records, Path(folder)))


if __name__ == "__main__":
    main()
