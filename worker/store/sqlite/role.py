"""What the roles of the SQLite store share: the database and the numbers of scenarios and tasks."""

from __future__ import annotations

import sqlite3

from worker.store.sqlite.database import Database


class Role:
    """One part of the store's port, over the one database."""

    def __init__(self, database: Database) -> None:
        self._database = database


def scenario_number(connection: sqlite3.Connection, name: str) -> int:
    """The number of a scenario, given to it now where it is new. Inside a write only."""
    row = connection.execute("SELECT scenario_no FROM scenario WHERE name = ?", (name,)).fetchone()
    if row is None:
        row = connection.execute("INSERT INTO scenario (name) VALUES (?) RETURNING scenario_no", (name,)).fetchone()
    return int(row[0])
