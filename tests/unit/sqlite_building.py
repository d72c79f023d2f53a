"""SQLite stores on files of a test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from worker.clock import ManualClock
from worker.store.port import IncomingBatch
from worker.store.sqlite import SqliteStore
from worker.store.sqlite.database import Database
from worker.wire.records import ActionRecord, Batch, BatchIdentity


def store_at(path: Path, *, read_only: bool = False) -> SqliteStore:
    """A store on this file, not opened yet."""
    return SqliteStore(Database(path, ManualClock(), read_only=read_only))


async def put(store: SqliteStore, number: int, *, size: int = 1) -> None:
    """Store one batch."""
    record = ActionRecord(f"t{number}", 1, 1, "look", number, output="x" * size)
    batch = Batch(BatchIdentity("node", 0, number, None), b"h" * 32, [record], None, 0)
    await store.ingest([IncomingBatch(scenario="S", batch=batch, body=b"", received_at_ms=1)])


async def records(store: SqliteStore) -> int:
    """How many are stored."""
    return (await store.facts("S")).records


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change the file's bytes behind SQLite's back."""
    path.parent.mkdir(exist_ok=True)
    content = bytearray(path.read_bytes() if path.exists() else b"")
    change(content)
    path.write_bytes(content)
