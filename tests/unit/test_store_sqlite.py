"""The SQLite store as a file: its lock, modes, durability, versions, readers beside it and backups."""

from __future__ import annotations

import os
import resource
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.sqlite_building import put, records, store_at
from worker.errors import ConfigurationError, StoreUnavailable
from worker.store.sqlite import SqliteStore
from worker.store.sqlite.connection import APPLICATION_ID
from worker.store.sqlite.migrate import FOLDER, migrate, migrations, schema_version

# ---------------------------------------------------------------- the lock and the files


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


async def test_a_second_worker_on_the_same_file_is_told_who_holds_it(store: SqliteStore, path: Path) -> None:
    second = store_at(path)
    with pytest.raises(ConfigurationError, match=rf"swarm\.db is in use by pid {os.getpid()} on .*SWARM_STORE_URL"):
        await second.open()
    await second.close()
    await put(store, 1)


async def test_a_closed_store_can_be_opened_again(path: Path) -> None:
    for number in range(3):
        store = store_at(path)
        await store.open()
        await put(store, number)
        assert await records(store) == number + 1
        await store.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["swarm.db", "swarm.db.lock"]


async def test_a_lock_that_is_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    """Who can write into the directory must not choose what the worker opens."""
    path.parent.mkdir()
    (tmp_path / "victim").write_text("precious")
    (path.parent / "swarm.db.lock").symlink_to(tmp_path / "victim")
    store = store_at(path)
    with pytest.raises(StoreUnavailable, match="symbolic link"):
        await store.open()
    await store.close()
    assert (tmp_path / "victim").read_text() == "precious"


async def test_only_its_user_may_read_the_store(store: SqliteStore, path: Path) -> None:
    await put(store, 1)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ("swarm.db", "swarm.db-wal", "swarm.db-shm", "swarm.db.lock", "swarm.db.reserve"), 0o600
    )
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_commits_are_durable(store: SqliteStore) -> None:
    """WAL with full sync on the connection that writes."""

    def pragmas(connection: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "trusted_schema")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await store._database.write(pragmas) == ["wal", 2, 1, 0]


# ---------------------------------------------------------------- versions and foreign files


async def test_a_newer_store_is_refused(path: Path) -> None:
    store = store_at(path)
    await store.open()
    newer = len(migrations()) + 1
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={newer}")
    connection.close()
    for read_only in (False, True):
        again = store_at(path, read_only=read_only)
        with pytest.raises(ConfigurationError, match=f"schema {newer}.*newer worker"):
            await again.open()
        await again.close()


async def test_who_only_reads_does_not_migrate(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript(f"CREATE TABLE probe (n); PRAGMA application_id={APPLICATION_ID}")
    connection.close()
    store = store_at(path, read_only=True)
    with pytest.raises(ConfigurationError, match="start the worker of this version once"):
        await store.open()
    await store.close()


async def test_the_file_of_another_program_is_refused(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (n)")
    connection.close()
    store = store_at(path)
    with pytest.raises(ConfigurationError, match="another program"):
        await store.open()
    await store.close()
    with closing(sqlite3.connect(path)) as theirs:
        assert theirs.execute("SELECT count(*) FROM theirs").fetchone() == (0,)


def test_a_migration_is_carried_out_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "0001_good.sql").write_text("CREATE TABLE good (n);")
    (tmp_path / "0002_bad.sql").write_text("CREATE TABLE half (n); CREATE TABLE good (n);")
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, tmp_path)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema")]
    assert (tables, schema_version(connection), connection.in_transaction) == (["good"], 1, False)
    (tmp_path / "0002_bad.sql").write_text("CREATE TABLE half (n);")
    assert migrate(connection, tmp_path) == [2]
    assert migrate(connection, tmp_path) == []
    connection.close()


def test_migrations_are_numbered_without_a_gap(tmp_path: Path) -> None:
    (tmp_path / "0002_late.sql").write_text("")
    with pytest.raises(ValueError, match="not numbered"):
        migrations(tmp_path)
    assert [number for number, _ in migrations(FOLDER)] == list(range(1, len(migrations()) + 1))


# ---------------------------------------------------------------- beside a running worker


async def test_a_reader_beside_the_worker_sees_what_is_committed(store: SqliteStore, path: Path) -> None:
    """Without the lock, and without a way to write."""
    await put(store, 1)
    beside = store_at(path, read_only=True)
    await beside.open()
    assert await records(beside) == 1
    await put(store, 2)
    assert await records(beside) == 2
    with pytest.raises(ConfigurationError, match="read-only"):
        await put(beside, 3)
    with pytest.raises(StoreUnavailable, match="read-only"):
        await beside._database.read(lambda connection: connection.execute("DELETE FROM record"))
    await beside.close()
    await put(store, 3)


async def test_a_reader_needs_no_worker_but_a_store(path: Path, tmp_path: Path) -> None:
    missing = store_at(tmp_path / "none.db", read_only=True)
    with pytest.raises(ConfigurationError, match="no store at"):
        await missing.open()
    await missing.close()
    assert not (tmp_path / "none.db").exists()
    store = store_at(path)
    await store.open()
    await put(store, 1)
    await store.close()
    alone = store_at(path, read_only=True)
    await alone.open()
    assert await records(alone) == 1
    await alone.close()


async def test_a_backup_made_beside_the_worker_can_be_opened(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    for number in range(20):
        await put(store, number, size=20_000)
    beside = store_at(path, read_only=True)
    await beside.open()
    await beside.backup(tmp_path / "copy.db")
    await beside.close()
    await put(store, 99)
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    restored = store_at(tmp_path / "copy.db")
    await restored.open()
    assert await records(restored) == 20
    await put(restored, 99)
    await restored.close()
    assert not (tmp_path / "copy.db.partial").exists()


async def test_a_backup_never_overwrites(store: SqliteStore, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ConfigurationError, match="exists"):
        await store.backup(tmp_path / "precious")


async def test_a_backup_that_cannot_be_written_blames_the_copy_and_leaves_nothing(
    store: SqliteStore, tmp_path: Path
) -> None:
    """It said that the store was not available, and to make the directory of SWARM_STORE_URL writable."""
    target = Path("/proc/copy.db")
    with pytest.raises(ConfigurationError, match=rf"the copy {target} cannot be written \(.*\); name a file"):
        await store.backup(target)
    for number in range(20):
        await put(store, number, size=20_000)
    (tmp_path / "there").mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ConfigurationError, match=r"there/copy.db cannot be written \(SQLITE_.*\); free space"):
            await store.backup(tmp_path / "there" / "copy.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "there").iterdir()) == []


async def test_a_backup_makes_no_directory(store: SqliteStore, tmp_path: Path) -> None:
    """A mistyped path became one, and the backup lay where nobody looked for it."""
    (tmp_path / "a file").touch()
    for target in (tmp_path / "nodir" / "deep" / "copy.db", tmp_path / "a file" / "copy.db"):
        with pytest.raises(ConfigurationError, match=f"there is no directory {target.parent}; make it"):
            await store.backup(target)
    assert not (tmp_path / "nodir").exists()


async def test_the_store_describes_itself(store: SqliteStore, path: Path) -> None:
    told = await store.describe()
    assert told["bytes"] > 0
    expected = {"kind": "sqlite", "path": str(path), "schema": len(migrations()), "journal_mode": "wal"}
    assert expected.items() <= told.items()
