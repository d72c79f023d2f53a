"""What the roles of the SQLite store share: the database and the numbers of scenarios and tasks."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from worker.store.port import DamagedRow
from worker.store.sqlite.damage import Found, insert_damage
from worker.store.sqlite.database import Database


class Role:
    """One part of the store's port, over the one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def damage(self) -> Sequence[DamagedRow]:
        """Every row found damaged so far."""
        return self._database.damage.rows

    async def _note_damage(self, found: Sequence[Found]) -> bool:
        """Set aside what these rows belong to, and tell; whether any of them is new."""
        new = self._database.damage.unknown(found)
        if new and not self._database.read_only:
            now_ms = self._database.clock.now_ms()
            await self._database.write(lambda connection: insert_damage(connection, new, now_ms))
        self._database.damage.add(new)
        return bool(new)


def scenario_number(connection: sqlite3.Connection, name: str) -> int:
    """The number of a scenario, given to it now where it is new. Inside a write only."""
    row = connection.execute("SELECT scenario_no FROM scenario WHERE name = ?", (name,)).fetchone()
    if row is None:
        row = connection.execute("INSERT INTO scenario (name) VALUES (?) RETURNING scenario_no", (name,)).fetchone()
    return int(row[0])
