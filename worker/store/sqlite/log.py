"""The log of records: in through `ingest`, out in pages, in the order they were stored."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from worker import crash
from worker.episodes.task import PlacedAction
from worker.store.port import Incoming, StoredRecord, Verdict
from worker.store.record_rows import ACTION, kind_named
from worker.store.sql import load_statements
from worker.store.sqlite.check_sums import Row, RowDamaged, read_row
from worker.store.sqlite.damage import Found, found_at
from worker.store.sqlite.database import Database
from worker.store.sqlite.ingest import PLACE_BITS, PLACE_MASK, GroupIngest
from worker.store.sqlite.numbers import Numbers
from worker.store.sqlite.pending import placed_actions
from worker.store.sqlite.role import Role

SQL = load_statements(Path(__file__).parent / "sql" / "log.sql")

#: Records read at a time. Between pages no transaction is open, so a slow reader does not let the log file grow.
PAGE = 2_000


class RecordLog(Role):
    """`worker.store.port.RecordLog` on SQLite, but for the quarantine."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._numbers = Numbers()
        database.on_rollback.append(self._numbers.forget)

    async def ingest(self, group: Sequence[Incoming]) -> list[Verdict]:
        """Store a group in one transaction."""
        verdicts = await self._database.write(
            lambda connection: GroupIngest(connection, self._numbers, group).run(), bulk=True
        )
        crash.point("post_commit")
        return verdicts

    async def records(
        self,
        scenario: str,
        *,
        type_: str | None = None,
        task_id: str | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> AsyncIterator[StoredRecord]:
        """Records in the order of the log. `task_id` gives a task's actions and its LLM calls."""
        kind = None if type_ is None else kind_named(type_)
        if task_id is not None:
            statement = "page_of_task"
        else:
            statement = "page_of_all" if kind is None or kind == ACTION else "page_of_others"
        start, left = (after + 1) << PLACE_BITS, limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            parameters = {"kind": kind, "task_id": task_id, "from": start, "limit": size}
            rows = await self._database.read(_page(scenario, statement, parameters))
            for batch_no, received_at_ms, producer, *columns in rows:
                row = Row(*columns)
                try:
                    record, nulls = read_row(row)
                except RowDamaged as why:
                    await self._note_damage([found_at(scenario, row, why)])
                else:
                    index = row.position & PLACE_MASK
                    yield StoredRecord(scenario, batch_no, index, received_at_ms, record, nulls, producer)
            if len(rows) < size:
                return
            start = rows[-1][3] + 1
            left = None if left is None else left - size

    async def actions_of_tasks(
        self, scenario: str, task_ids: Sequence[str], *, most: int
    ) -> dict[str, list[PlacedAction]]:
        """Actions by task, until there are `most`; a task costs one step of SQLite, not one an action."""
        damaged: list[Found] = []
        found = await self._database.read(lambda db: _actions_of_tasks(db, scenario, task_ids, most, damaged))
        await self._note_damage(damaged)
        return found


def _page(scenario: str, statement: str, parameters: dict[str, Any]) -> Any:
    def read(connection: sqlite3.Connection) -> list[Any]:
        found = connection.execute(SQL["scenario_no"], (scenario,)).fetchone()
        if found is None:
            return []
        return connection.execute(SQL[statement], parameters | {"scenario_no": found[0]}).fetchall()

    return read


def _actions_of_tasks(
    connection: sqlite3.Connection, scenario: str, task_ids: Sequence[str], most: int, damaged: list[Found]
) -> dict[str, list[PlacedAction]]:
    number = connection.execute(SQL["scenario_no"], (scenario,)).fetchone()
    if number is None:
        return {task_id: [] for task_id in task_ids}
    wanted = {"scenario_no": number[0], "task_ids": msgspec.json.encode(list(task_ids)).decode()}
    found: dict[str, list[PlacedAction]] = {}
    tasks: list[tuple[int, str, str, int]] = []
    read = 0
    for task_no, task_id, actions in connection.execute(SQL["tasks_named"], wanted).fetchall():
        found[task_id] = []
        if task_no is not None:
            tasks.append((task_no, scenario, task_id, actions))
            read += actions
        if read >= most:
            break
    placed = placed_actions(connection, tasks, damaged)
    for task_no, _, task_id, _ in tasks:
        found[task_id] = sorted(placed.get(task_no, ()), key=_in_the_log)
    return found


def _in_the_log(action: PlacedAction) -> tuple[int, int]:
    return action.batch_no, action.place[-1]
