"""The SQLite store as a file: its lock, modes, durability, migrations, damage and faults."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from worker.clock import ManualClock
from worker.errors import ConfigurationError, DataRefused, StoreCorrupt, StoreUnavailable
from worker.settings import load_settings
from worker.store import open_store
from worker.store.port import IncomingBatch
from worker.store.record_rows import ACTION, TYPES, record_from
from worker.store.sql import load_statements
from worker.store.sqlite import SqliteStore
from worker.store.sqlite.bulk import Bulk
from worker.store.sqlite.connection import APPLICATION_ID
from worker.store.sqlite.database import Database
from worker.store.sqlite.migrate import FOLDER, migrate, migrations, schema_version
from worker.wire.records import ActionRecord, Batch, BatchIdentity


def store_at(path: Path, *, read_only: bool = False) -> SqliteStore:
    """A store on this file, not opened yet."""
    return SqliteStore(Database(path, ManualClock(), read_only=read_only))


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


# ---------------------------------------------------------------- the lock and the files


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
    assert modes == dict.fromkeys(("swarm.db", "swarm.db-wal", "swarm.db-shm", "swarm.db.lock"), 0o600)
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
    assert sqlite3.connect(path).execute("SELECT count(*) FROM theirs").fetchone() == (0,)


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


# ---------------------------------------------------------------- damage and faults


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
    assert store._database.stats.rollbacks == 1


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
    with pytest.raises(StoreUnavailable, match="cannot be created"):
        await store.backup(Path("/proc/none/copy.db"))


async def test_the_store_describes_itself(store: SqliteStore, path: Path) -> None:
    told = await store.describe()
    assert told["bytes"] > 0
    expected = {"kind": "sqlite", "path": str(path), "schema": len(migrations()), "journal_mode": "wal"}
    assert expected.items() <= told.items()


# ---------------------------------------------------------------- statements and bodies


def test_a_url_names_the_store() -> None:
    clock = ManualClock()
    for url in ("sqlite:///var/lib/a%20b.db", "sqlite:////var/lib/a%20b.db"):
        store = open_store(url, clock)
        assert isinstance(store, SqliteStore)
        assert store._database.path == Path("/var/lib/a b.db")
    for url in ("redis://localhost/0", "swarm.db", "sqlite://", "sqlite://host/file", ""):
        with pytest.raises(ConfigurationError, match="SWARM_STORE_URL"):
            open_store(url, clock)


def test_the_default_url_leads_into_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative or strange as its name may be."""
    monkeypatch.chdir(tmp_path)
    for folder in (Path("data"), tmp_path / "what? 50% #1"):
        store = open_store(load_settings(data_dir=folder).effective_store_url, ManualClock())
        assert isinstance(store, SqliteStore)
        assert store._database.path == folder.absolute() / "swarm.db"


def test_statements_are_found_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.sql"
    file.write_text("-- head\n-- one --\n-- why\nSELECT 1;\n\n-- two --\nSELECT\n2;\n")
    assert load_statements(file) == {"one": "-- why\nSELECT 1", "two": "SELECT\n2"}
    file.write_text("-- one --\nSELECT 1;\n-- one --\nSELECT 2;\n")
    with pytest.raises(ValueError, match="'one'"):
        load_statements(file)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1_023, 1_024, 5_000])
def test_many_rows_are_written_by_few_statements(count: int) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
    connection.execute("INSERT INTO t VALUES (0, 'there')")
    steps: list[str] = []
    connection.set_trace_callback(steps.append)
    bulk = Bulk("INSERT INTO t (a, b) VALUES (?, ?) ON CONFLICT DO NOTHING")
    rows = [(n, str(n)) for n in range(count)]
    assert bulk.run(connection, rows) == max(0, count - 1)
    assert connection.execute("SELECT a FROM t ORDER BY a").fetchall() == [(n,) for n in range(max(1, count))]
    assert len([step for step in steps if step.startswith("INSERT")]) <= count // 1_024 + 10
    connection.close()


def test_no_statement_reads_a_big_table_whole() -> None:
    """What is asked while a million records are stored must go by an index."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    big = re.compile(
        r"SCAN (record|task|batch|session|session_task|episode|record_identity|graph)\b"
        r"(?! USING INDEX (\w+_pending|task_due_now))"  # these hold only what is to be done
    )
    found = []
    for file in sorted((FOLDER.parent / "sql").glob("*.sql")):
        for name, statement in load_statements(file).items():
            named = re.findall(r":(\w+)", statement)
            numbered = len(set(re.findall(r"\?\d+", statement))) or statement.count("?")
            values = dict.fromkeys(named) if named else [None] * numbered
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            found += [(name, step[3]) for step in plan if big.search(step[3]) or "AUTOMATIC" in step[3]]
    connection.close()
    assert found == []


FIELDS = """
task_id/tick/worker_id/action/event_id/session_id/group_id/target/success/error/duration_ms/timestamp_ms/kpi/\
discoveries/output/cost/selection_logic/from_guidance/previous_action/lora/propensity/candidates/policy_version/record_id
call_type/prompt/response/model/endpoint/latency_ms/lora/timestamp_ms/worker_id/error/task_id/session_id/record_id
prompt/response/available_actions/discover_order/not_discover_order/model/endpoint/latency_ms/timestamp_ms/lora/error/\
session_id/record_id
timestamp_ms/tick/advisor/current_strategy/recommended/should_change/confidence/reason/frontier_count/total_visits/\
failure_rate/latency_ms/success/error/session_id/record_id
session_id/stats_json/outcome/total_ticks/total_actions/timestamp_ms/scenario/phase/group_id/task_ids/record_id
"""


def test_the_fields_of_stored_records_only_grow_at_the_end() -> None:
    """Bodies are read by place. A field moved or removed would misread every stored record of its type."""
    fields = " ".join("/".join(type_.__struct_fields__) for type_ in TYPES)
    assert fields.split(" ") == FIELDS.split()


def test_a_body_stored_before_a_field_was_added_takes_its_default() -> None:
    record, nulls = record_from(ACTION, "t", '[4,1,2,"look",3]')
    assert (record, nulls) == (replace(ActionRecord("t", 1, 2, "look"), event_id=3), 4)
