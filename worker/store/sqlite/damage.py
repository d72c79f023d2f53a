"""What the store found damaged: remembered in its file, so that it is set aside after a restart too."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import structlog
from msgspec import Struct

from worker.errors import StoreCorrupt
from worker.store.port import DamagedRow
from worker.store.sql import load_statements
from worker.store.sqlite.check_sums import Row, RowDamaged

log = structlog.get_logger(__name__)

SQL = load_statements(Path(__file__).parent / "sql" / "damage.sql")

#: With more damaged rows than this there is no store to go on with.
MOST_DAMAGED = 10_000


class Found(Struct, frozen=True, kw_only=True):
    """A damaged row, as whoever reads it knows it."""

    table: str = "record"
    row: int
    detail: str
    scenario: str
    task_no: int | None = None
    task_id: str | None = None


def found_at(scenario: str, row: Row, why: RowDamaged) -> Found:
    """A damaged record."""
    return Found(row=row.position, detail=str(why), scenario=scenario, task_no=row.task_no, task_id=row.task_id)


class DamageBook:
    """The damaged rows by table and row; what is new is told once to the log."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], DamagedRow] = {}

    @property
    def rows(self) -> Sequence[DamagedRow]:
        """All of them, in the order found."""
        return [*self._rows.values()]

    def load(self, connection: sqlite3.Connection) -> None:
        """What earlier lives of the worker found."""
        self._rows.clear()
        for table, row, scenario, task_id, detail in connection.execute(SQL["all_damage"]):
            self._rows[table, row] = DamagedRow(scenario=scenario, table=table, row=row, task_id=task_id, detail=detail)

    def forget(self, scenario: str) -> None:
        """A rebuild looks at everything of the scenario again."""
        self._rows = {place: row for place, row in self._rows.items() if row.scenario != scenario}

    def unknown(self, found: Sequence[Found]) -> list[Found]:
        """Those of `found` that are new."""
        return [one for one in found if (one.table, one.row) not in self._rows]

    def add(self, found: Sequence[Found]) -> None:
        """Remember and tell; `StoreCorrupt` where it is too much to go on."""
        for one in self.unknown(found):
            row = DamagedRow(
                scenario=one.scenario, table=one.table, row=one.row, task_id=one.task_id, detail=one.detail
            )
            self._rows[one.table, one.row] = row
            log.error("row_damaged", reason=str(row))
        if len(self._rows) > MOST_DAMAGED:
            raise StoreCorrupt(
                f"the store has over {MOST_DAMAGED} damaged rows; restore a backup (`swarm-worker backup` makes them)"
            )


def insert_damage(connection: sqlite3.Connection, found: Sequence[Found], now_ms: int) -> None:
    """Set aside, in one transaction, what these rows belong to."""
    for one in found:
        parameters = {
            "table": one.table, "row": one.row, "scenario": one.scenario, "task_no": one.task_no,
            "detail": one.detail, "now_ms": now_ms,
        }  # fmt: skip
        connection.execute(SQL["insert_damage"], parameters)
