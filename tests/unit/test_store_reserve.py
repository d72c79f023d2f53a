"""The reserve: room for what is small when the disk is full, taken back when there is room again."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.unit.sqlite_building import put, records, store_at
from worker.errors import StoreUnavailable
from worker.store.sqlite import SqliteStore, reserve


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store goes."""
    return tmp_path / "swarm.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """An open store."""
    opened = store_at(path)
    await opened.open()
    yield opened
    await opened.close()


def kept(path: Path) -> int:
    """Bytes of the reserve on the disk."""
    file = path.with_name("swarm.db.reserve")
    return file.stat().st_blocks * 512 if file.exists() else 0


def pages(most: int) -> Callable[[sqlite3.Connection], None]:
    """A limit of the file's size, which SQLite reports as a full disk."""
    return lambda connection: connection.execute(f"PRAGMA max_page_count={most}").close()


async def test_it_is_really_taken_and_given_back_when_the_store_is_closed(path: Path) -> None:
    store = store_at(path)
    await store.open()
    assert kept(path) >= reserve.RESERVE_BYTES
    other = store_at(path)
    with pytest.raises(Exception, match="in use"):
        await other.open()
    await other.close()
    assert kept(path) >= reserve.RESERVE_BYTES, "who did not get the store must not touch its reserve"
    await store.close()
    assert kept(path) == 0


async def test_on_a_full_disk_records_wait_and_what_is_small_goes_on(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(store, 1)
    monkeypatch.setattr(reserve, "ROOM_TO_GO_ON", 1 << 62)  # nobody frees anything
    await store._database.write(pages(1))  # not below what is there
    with pytest.raises(StoreUnavailable, match="disk is full"):
        await put(store, 2, size=60_000)
    assert kept(path) == 0
    await store._database.write(pages(1_000_000))  # the room that the reserve gave
    with pytest.raises(StoreUnavailable, match="but for a reserve of 16 MB; free space"):
        await put(store, 2)
    with pytest.raises(StoreUnavailable, match="reserve"):
        await store.probe()
    assert await store.acquire_lease("train", "me", now_ms=1, ttl_ms=1) == 1
    monkeypatch.undo()
    await put(store, 2)
    assert kept(path) >= reserve.RESERVE_BYTES
    assert await records(store) == 2


async def test_a_store_opens_where_there_is_no_room_for_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "RESERVE_BYTES", 1 << 60)
    monkeypatch.setattr(reserve, "ROOM_TO_GO_ON", 1 << 62)
    store = store_at(path)
    await store.open()
    assert kept(path) == 0
    with pytest.raises(StoreUnavailable, match="SQLITE_FULL"):
        await put(store, 1)
    assert (await store.facts("S")).records == 0
    await store.close()
