"""The write watch: readiness is about the store, also while no record comes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from worker.clock import ManualClock
from worker.store.memory import MemoryStore
from worker.store.sqlite import SqliteStore
from worker.store.sqlite.database import Database
from worker.store.watch import WriteWatch


async def test_a_store_that_takes_no_writes_is_seen_without_a_record_and_forgiven_when_it_does_again() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    watch = WriteWatch(store, clock, lambda: False, interval=0)
    await watch.look()
    assert watch.reason is not None
    await store.open()
    await watch.look()
    assert watch.reason is None


async def test_beside_ingest_nothing_is_probed() -> None:
    """The sink itself knows then, and says so; a word from before must not stand."""
    watch = WriteWatch(MemoryStore(ManualClock()), ManualClock(), lambda: True)
    watch.reason = "an old story"
    await watch.look()
    assert watch.reason is None


async def test_whoever_asks_often_does_not_write_often() -> None:
    clock = ManualClock()
    watch = WriteWatch(MemoryStore(clock), clock, lambda: False, interval=5.0)
    await watch.look()
    watch.reason = None
    await watch.look()
    assert watch.reason is None
    clock.advance(5)
    await watch.look()
    assert watch.reason is not None


async def test_a_real_file_that_another_process_holds_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.store.sqlite.connection._COMMON", ("PRAGMA busy_timeout=50",))
    store = SqliteStore(Database(tmp_path / "swarm.db", ManualClock()))
    await store.open()
    watch = WriteWatch(store, ManualClock(), lambda: False, interval=0)
    with closing(sqlite3.connect(tmp_path / "swarm.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await watch.look()
        assert watch.reason is not None
        assert "another process holds its write lock" in watch.reason
    await watch.look()
    assert watch.reason is None
    await store.close()
