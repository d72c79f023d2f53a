"""What is ready to be projected, read in one snapshot: sessions, graphs, tasks with all of their actions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from worker.episodes.task import PlacedAction, TaskView
from worker.store.port import Pending, PendingGraph, PendingSession, PendingTask
from worker.store.port.projections import HUGE_TASK
from worker.store.record_rows import ACTION, GRAPH, LEARN_STATS, action_from
from worker.store.sql import load_statements
from worker.store.sqlite.check_sums import Row, RowDamaged, read_actions, read_row
from worker.store.sqlite.damage import Found, found_at
from worker.store.sqlite.ingest import PLACE_BITS, PLACE_MASK
from worker.wire.records import Record

SQL = load_statements(Path(__file__).parent / "sql" / "projections.sql")

#: Of a batch: when it was received, its producer; then producer or batch id, epoch, sequence.
Place: TypeAlias = tuple[int, str, str, int, int]
#: Where a candidate stands in the log, how many actions it has, and the item, or of a task its row.
_Candidate: TypeAlias = tuple[tuple[int, int], int, Any]


def read_pending(
    connection: sqlite3.Connection,
    *,
    now_ms: int,
    idle_ms: int,
    limit: int,
    scenarios: Sequence[str] | None,
    damaged: list[Found],
) -> list[Pending]:
    """See the port. At least one item where any is ready and sound, however many actions it has.

    Rows that are damaged are added to `damaged`; what they belong to is not among the items.
    """
    quiet_since = now_ms - idle_ms
    served = None if scenarios is None else msgspec.json.encode(list(scenarios)).decode()
    due_now = merge(
        _tasks(connection.execute(SQL["tasks_due_now"], {"served": served, "now_ms": now_ms, "huge": HUGE_TASK})),
        _sessions(connection.execute(SQL["pending_sessions"], (limit, served)), damaged),
        _graphs(connection.execute(SQL["pending_graphs"], (limit, served)), damaged),
        key=itemgetter(0),
    )
    candidates = chain(due_now, _tasks(connection.execute(SQL["tasks_due_idle"], (quiet_since, served))))
    items: list[Pending] = []
    tasks: list[Any] = []
    for item in _up_to(limit, candidates):
        if isinstance(item, tuple):
            tasks.append(item)
        else:
            items.append(item)
    return items + _with_actions(connection, tasks, quiet_since, damaged)


def checked(scenario: str, row: Row, damaged: list[Found]) -> Record | None:
    """The record of a row; None, and one more in `damaged`, where it is not what was stored."""
    try:
        return read_row(row)[0]
    except RowDamaged as why:
        damaged.append(found_at(scenario, row, why))
        return None


def _sessions(rows: Iterable[Any], damaged: list[Found]) -> Iterator[_Candidate]:
    for scenario, position, received_at_ms, producer, *columns in rows:
        record: Any = checked(scenario, Row(position, LEARN_STATS, None, None, *columns), damaged)
        if record is not None:
            batch_no = position >> PLACE_BITS
            item = PendingSession(
                scenario=scenario, batch_no=batch_no, received_at_ms=received_at_ms, record=record, producer=producer
            )
            yield (batch_no, 1), 1, item


def _graphs(rows: Iterable[Any], damaged: list[Found]) -> Iterator[_Candidate]:
    for columns in rows:
        graph = pending_graph(columns, damaged)
        if graph is not None:
            yield (graph.batch_no, 1), 1, graph


def pending_graph(columns: tuple[Any, ...], damaged: list[Found]) -> PendingGraph | None:
    """A graph record as it is offered to the projector and to training; None as in `checked`.

    The columns are those of the statement `pending_graphs`.
    """
    scenario, position, received_at_ms, *rest = columns
    record: Any = checked(scenario, Row(position, GRAPH, None, None, *rest), damaged)
    if record is None:
        return None
    return PendingGraph(
        scenario=scenario,
        batch_no=position >> PLACE_BITS,
        index=position & PLACE_MASK,
        received_at_ms=received_at_ms,
        record=record,
    )


def _tasks(rows: Iterable[Any]) -> Iterator[_Candidate]:
    # Before the sessions of the same batch: whoever sees a session counted sees the episodes of its tasks.
    return (((row[4], 0), row[3], row) for row in rows)


def _up_to(limit: int, candidates: Iterable[_Candidate]) -> Iterator[Any]:
    """Candidates until their actions are `limit` or more; at least one."""
    read = 0
    for _, size, item in candidates:
        yield item
        read += size
        if read >= limit:
            return


def placed_actions(
    connection: sqlite3.Connection, tasks: Sequence[tuple[int, str, str, int]], damaged: list[Found]
) -> dict[int, list[PlacedAction]]:
    """The actions of tasks, given as number, scenario, id and how many there are; by number, without damaged tasks."""
    rows = dict(_read(connection, "actions_of_tasks", [number for number, *_ in tasks]))
    decoded: dict[int, tuple[str, list[tuple[int, list[Any]]]]] = {}
    for number, scenario, task_id, count in tasks:
        found_actions = read_actions(number, rows[number], count)
        if found_actions is None:
            damaged += _damage_of_task(connection, number, scenario, task_id, count)
        else:
            decoded[number] = (task_id, found_actions)
    numbers = {position >> PLACE_BITS for _, placed in decoded.values() for position, _ in placed}
    found = _read(connection, "places_of_batches", sorted(numbers))[0][0]
    places: dict[int, Place] = {batch_no: tuple(place) for batch_no, *place in msgspec.json.decode(found)}
    return {
        number: [_placed(task_id, position, values, places) for position, values in placed]
        for number, (task_id, placed) in decoded.items()
    }


def _with_actions(
    connection: sqlite3.Connection, tasks: list[Any], quiet_since: int, damaged: list[Found]
) -> list[PendingTask]:
    actions = placed_actions(connection, [task[:4] for task in tasks], damaged)
    scenario_of = {task[6]: task[1] for task in tasks}
    sessions: dict[int, tuple[int, Any]] = {
        session_no: (
            position >> PLACE_BITS,
            checked(scenario_of[session_no], Row(position, LEARN_STATS, None, None, *columns), damaged),
        )
        for session_no, position, *columns in _read(connection, "sessions_by_number", sorted({*scenario_of} - {None}))
    }
    items = []
    for (
        number,
        scenario,
        task_id,
        _,
        changed_upto,
        last_received_ms,
        session_no,
        projected_upto,
        projected_idle,
    ) in tasks:
        session_batch_no, session = sessions.get(session_no, (None, None))
        if number not in actions or (session_no is not None and session is None):
            continue
        view = TaskView(
            scenario=scenario,
            task_id=task_id,
            actions=actions[number],
            session=session,
            idle=last_received_ms <= quiet_since,
        )
        items.append(
            PendingTask(
                task=view,
                upto=changed_upto,
                session_batch_no=session_batch_no,
                projected_upto=projected_upto or None,
                projected_idle=bool(projected_idle),
            )
        )
    return items


def _placed(task_id: str, position: int, values: list[Any], places: dict[int, Place]) -> PlacedAction:
    batch_no = position >> PLACE_BITS
    received_at_ms, producer, sender, epoch, batch_seq = places[batch_no]
    place = (sender, epoch, batch_seq, position & PLACE_MASK)
    return PlacedAction(action_from(task_id, values), batch_no, received_at_ms, place, producer)


def _read(connection: sqlite3.Connection, statement: str, numbers: list[int]) -> list[Any]:
    return connection.execute(SQL[statement], (msgspec.json.encode(numbers).decode(),)).fetchall()


def _damage_of_task(
    connection: sqlite3.Connection, number: int, scenario: str, task_id: str, actions: int
) -> list[Found]:
    """Which rows of a task are damaged; the task's own row where each of its records is sound but one is not there."""
    damaged: list[Found] = []
    sound = 0
    for position, kind, *columns in connection.execute(SQL["rows_of_task"], (number,)):
        checked(scenario, Row(position, kind, number, task_id, *columns), damaged)
        sound += kind == ACTION
    if not damaged:
        detail = f"it has {actions} actions, and {sound} are there"
        damaged.append(
            Found(table="task", row=number, detail=detail, scenario=scenario, task_no=number, task_id=task_id)
        )
    return damaged
