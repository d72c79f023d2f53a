"""The worker's SQLite file and directories, looked at with SELECTs of our own, not with the worker's code (I3, I7)."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from tests.integration.worker_process import WorkerProcess

#: Columns that name a row: no two rows may share them (I3).
_UNIQUE = {
    "batch": "scenario_no, producer_no, batch_seq, batch_id",
    "record": "CASE WHEN kind = 0 THEN task_no ELSE -position END, sequence",
    "session": "scenario_no, session_id",
    "task": "scenario_no, task_id",
    "episode": "scenario_no, origin, learn_model, episode_id",
    "training_run": "scenario, kind, window_hi, nonce",
    "model": "scenario, version",
    "outbox": "event_id",
    "command": "command_id",
}
#: A scenario's own count of records against the log itself.
_COUNTED = """
    SELECT s.name, s.records, (
        SELECT count(*) FROM record r JOIN batch b ON b.batch_no = r.position >> 14 WHERE b.scenario_no = s.scenario_no
    ) AS there FROM scenario s WHERE s.records <> there
"""


def opened(worker: WorkerProcess) -> closing[sqlite3.Connection]:
    """The worker's SQLite file on a connection of our own, closed when left."""
    return closing(sqlite3.connect(worker.data_dir / "swarm.db", isolation_level=None, timeout=5))


def damage(store: sqlite3.Connection) -> list[Any]:
    """What SQLite itself finds wrong, and a WAL that does not truncate; of a worker that has ended."""
    found: list[Any] = [row for row in store.execute("PRAGMA quick_check") if row != ("ok",)]
    found += store.execute("PRAGMA foreign_key_check").fetchall()
    # Nobody else holds a transaction: this one begins at once.
    store.execute("PRAGMA busy_timeout = 0")
    store.execute("BEGIN EXCLUSIVE")
    store.execute("ROLLBACK")
    busy, pages, _ = store.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy or pages:
        found.append(f"the WAL does not truncate: busy {busy}, {pages} pages")
    return found


def doubles(store: sqlite3.Connection) -> list[str]:
    """Tables with two rows of one identity, and counters that are not what was counted."""
    found = [
        table
        for table, key in _UNIQUE.items()
        if store.execute(f"SELECT 1 FROM {table} GROUP BY {key} HAVING count(*) > 1 LIMIT 1").fetchone()
    ]
    return found + [f"{name} counts {said} records and has {there}" for name, said, there in store.execute(_COUNTED)]


def leftovers(worker: WorkerProcess) -> list[str]:
    """Directories that no run and no model owns, of a worker that has ended."""
    with opened(worker) as store:
        models = {(row[0], str(row[1])) for row in store.execute("SELECT scenario, version FROM model")}
    found = [str(path) for part in ("tmp", "runs") for path in (worker.data_dir / part).glob("*")]
    found += [
        str(path)
        for path in (worker.data_dir / "models").glob("*/*")
        if path.is_dir() and path.name.isdecimal() and (path.parent.name, path.name) not in models
    ]
    return found
