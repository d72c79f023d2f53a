"""Statements, bulk writes and bodies of stored records."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import replace

from worker.clock import ManualClock
from worker.errors import ConfigurationError
from worker.settings import load_settings
from worker.store import open_store
from worker.store.record_rows import ACTION, TYPES, record_from
from worker.store.sql import load_statements
from worker.store.sqlite import SqliteStore
from worker.store.sqlite.bulk import Bulk
from worker.store.sqlite.migrate import FOLDER, migrate
from worker.wire.records import ActionRecord


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
    record, nulls = record_from(ACTION, "t", b'[4,1,2,"look",3]')
    assert (record, nulls) == (replace(ActionRecord("t", 1, 2, "look"), event_id=3), 4)
