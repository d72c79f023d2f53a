"""Small numbers for scenarios, producers, batches, tasks and sessions, given out in the writer's thread."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from worker.store.sql import load_statements
from worker.store.sqlite.role import scenario_number

SQL = load_statements(Path(__file__).parent / "sql" / "ingest.sql")

#: Producers remembered; a producer's every restart without its counter is a new epoch.
_REMEMBERED_PRODUCERS = 10_000


class Numbers:
    """What the next numbers are, and those given to scenarios and producers. To be forgotten at a rollback."""

    def __init__(self) -> None:
        self.batch_no = 0
        self.task_no = 0
        self.session_no = 0
        self._known = False
        self._scenarios: dict[str, int] = {}
        self._producers: dict[tuple[int, str, int], int] = {}

    def forget(self) -> None:
        """Trust nothing: a transaction that gave out numbers was rolled back."""
        self._known = False
        self._scenarios.clear()
        self._producers.clear()

    def load(self, connection: sqlite3.Connection) -> None:
        """Read the highest numbers, once after the start and after each rollback."""
        if not self._known:
            row = connection.execute(SQL["last_numbers"]).fetchone()
            self.batch_no, self.task_no, self.session_no = row
            self._known = True

    def scenario(self, connection: sqlite3.Connection, name: str) -> int:
        """The scenario's number."""
        number = self._scenarios.get(name)
        if number is None:
            number = self._scenarios[name] = scenario_number(connection, name)
        return number

    def producer(self, connection: sqlite3.Connection, scenario_no: int, producer_id: str, epoch: int) -> int:
        """The number of a producer's epoch."""
        key = (scenario_no, producer_id, epoch)
        number = self._producers.get(key)
        if number is None:
            row = connection.execute(SQL["find_producer"], key).fetchone()
            if row is None:
                row = connection.execute(SQL["insert_producer"], key).fetchone()
            if len(self._producers) >= _REMEMBERED_PRODUCERS:
                self._producers.clear()
            number = self._producers[key] = int(row[0])
        return number
