"""How the ledger's roles ask: statements by name, rows as structs, events in the caller's own transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from worker.store.ledger_rows import from_row, to_row
from worker.store.port import OutboxEvent
from worker.store.sql import load_statements

S = TypeVar("S", bound=Struct)

SQL = load_statements(Path(__file__).parent / "sql" / "ledger.sql")


def select(connection: sqlite3.Connection, type_: type[S], statement: str, **parameters: object) -> list[S]:
    """The rows of a named statement, as structs."""
    cursor = connection.execute(SQL[statement], parameters)
    columns = [column[0] for column in cursor.description]
    return [from_row(type_, dict(zip(columns, row, strict=True))) for row in cursor]


def select_one(connection: sqlite3.Connection, type_: type[S], statement: str, **parameters: object) -> S | None:
    """The first row of a named statement, or None."""
    found = select(connection, type_, statement, **parameters)
    return found[0] if found else None


def value(connection: sqlite3.Connection, statement: str, **parameters: object) -> Any:
    """The first column of the first row, or None. Every row is fetched: COMMIT waits for no open statement."""
    rows = connection.execute(SQL[statement], parameters).fetchall()
    return rows[0][0] if rows else None


def change(connection: sqlite3.Connection, statement: str, **parameters: object) -> int:
    """Rows changed by a named statement."""
    return connection.execute(SQL[statement], parameters).rowcount


def add_events(connection: sqlite3.Connection, events: Iterable[OutboxEvent]) -> None:
    """Queue events behind those that are there; one that is there already stays as it is."""
    connection.executemany(SQL["insert_event"], [to_row(event) for event in events])
