"""The SQLite store under damage and faults: what is lost is nothing, what is raised says what to do."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.unit.sqlite_building import damage, put, records, store_at
from worker.errors import DataRefused, StoreCorrupt, StoreUnavailable
from worker.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store goes, in a folder that is not there yet."""
    return tmp_path / "data" / "swarm.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """An open store."""
    opened = store_at(path)
    await opened.open()
    yield opened
    await opened.close()


async def test_what_is_no_database_is_corrupt(path: Path) -> None:
    damage(path, lambda content: content.extend(b"no database at all " * 100))
    store = store_at(path)
    with pytest.raises(StoreCorrupt, match="backup"):
        await store.open()
    await store.close()


async def test_a_damaged_page_is_found_at_the_start(path: Path) -> None:
    store = store_at(path)
    await store.open()
    for number in range(50):
        await put(store, number, size=2_000)
    await store.close()

    def overwrite(content: bytearray) -> None:
        middle = len(content) // 2 // 4096 * 4096
        content[middle : middle + 64] = b"\xff" * 64

    damage(path, overwrite)
    again = store_at(path)
    with pytest.raises(StoreCorrupt, match="restore a backup"):
        await again.open()
    await again.close()


@pytest.mark.parametrize("name", ["swarm.db", "swarm.db-wal"])
async def test_a_file_that_is_gone_takes_no_more_commits(store: SqliteStore, path: Path, name: str) -> None:
    """SQLite would go on writing where nobody looks again; put back, the store goes on."""
    await put(store, 1)
    file, aside = path.with_name(name), path.with_name("aside")
    file.rename(aside)
    with pytest.raises(StoreUnavailable, match="moved, replaced or removed"):
        await put(store, 2)
    aside.rename(file)
    await put(store, 3)
    assert await records(store) == 2


async def test_a_file_in_the_place_of_the_store_is_not_written_to(store: SqliteStore, path: Path) -> None:
    """Nor is the old one any more: a backup that was put there under a running worker."""
    await put(store, 1)
    damage(path.with_name("aside"), lambda content: content.extend(b"a backup"))
    path.with_name("aside").rename(path)
    with pytest.raises(StoreUnavailable, match="restart the worker"):
        await put(store, 2)


async def test_a_store_that_lost_its_log_saves_all_of_it_when_it_is_closed(store: SqliteStore, path: Path) -> None:
    await put(store, 1)
    path.with_name("swarm.db-wal").unlink()
    with pytest.raises(StoreUnavailable, match="SIGTERM"):
        await put(store, 2)
    await store.close()
    again = store_at(path)
    await again.open()
    assert await records(again) == 1
    await again.close()


async def test_a_full_store_keeps_what_it_has_and_goes_on_when_there_is_room(store: SqliteStore) -> None:
    await put(store, 1)

    def limit_pages(pages: int) -> Callable[[sqlite3.Connection], None]:
        return lambda connection: connection.execute(f"PRAGMA max_page_count={pages}").close()

    await store._database.write(limit_pages(1))  # not below what is there
    with pytest.raises(StoreUnavailable, match="disk is full; free space"):
        await put(store, 2, size=60_000)
    assert await records(store) == 1
    await store._database.write(limit_pages(1_000_000))
    await put(store, 2, size=60_000)
    assert await records(store) == 2


def test_a_disk_that_refuses_bytes_costs_nothing_that_was_stored(path: Path) -> None:
    """A real limit on file size, in a process of its own: writes fail, what was committed is there, room helps."""
    program = Path(__file__).with_name("full_disk_program.py")
    done = subprocess.run(
        [sys.executable, str(program), str(path)], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"StoreUnavailable stored (\d+) of \1, then 1 more\n", done.stdout), done.stdout


async def test_a_store_locked_by_another_program_is_unavailable_until_it_is_free(
    store: SqliteStore, path: Path
) -> None:
    await store._database.write(lambda connection: connection.execute("PRAGMA busy_timeout=50").close())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another process holds"):
        await put(store, 1)
    with pytest.raises(StoreUnavailable):
        await store.probe()
    other.execute("ROLLBACK")
    other.close()
    await store.probe()
    await put(store, 1)
    assert await records(store) == 1


async def test_data_that_breaks_a_rule_of_the_schema_is_refused(store: SqliteStore) -> None:
    """Refused, not unavailable: trying again would not help. The transaction leaves nothing."""
    for statement, value in (
        ("INSERT INTO scenario (scenario_no, name) VALUES (1, ?)", None),
        ("INSERT INTO scenario (scenario_no, name) VALUES (1, ?)", "a\ud800"),
        ("INSERT INTO scenario (name, records) VALUES ('a', ?)", 2**63),
        ("INSERT INTO scenario (name, records) VALUES ('a', ?)", "many"),
    ):

        def write(connection: sqlite3.Connection, statement: str = statement, value: object = value) -> None:
            connection.execute("INSERT INTO scenario (name) VALUES ('half')")
            connection.execute(statement, (value,))

        with pytest.raises(DataRefused):
            await store._database.write(write)
    assert await store.scenarios() == []


async def test_a_fault_of_our_own_is_not_called_the_stores(store: SqliteStore) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await store._database.write(lambda connection: connection.execute("SELECT * FROM missing"))
    with pytest.raises(sqlite3.ProgrammingError):
        await store._database.read(lambda connection: connection.execute("SELECT ?"))
    await put(store, 1)


async def test_numbers_given_in_a_transaction_that_failed_are_given_again(store: SqliteStore) -> None:
    """What is remembered of scenarios, producers and tasks is forgotten with the rollback."""
    await put(store, 1)

    def fail(connection: sqlite3.Connection) -> None:
        store._numbers.scenario(connection, "ghost")
        store._numbers.batch_no += 7
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store._database.write(fail)
    await put(store, 2)
    assert (await store.facts("S")).last_batch_no == 2
    assert await store.scenarios() == ["S"]
