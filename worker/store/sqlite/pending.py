"""What is ready to be projected, read in one snapshot: sessions, graphs, tasks with all of their actions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from worker.episodes.task import PlacedAction, TaskView
from worker.store.port import Pending, PendingGraph, PendingSession, PendingTask
from worker.store.record_rows import GRAPH, LEARN_STATS, action_from, record_from
from worker.store.sql import load_statements
from worker.store.sqlite.ingest import PLACE_BITS, PLACE_MASK
from worker.wire.records import LearnStatsRecord

SQL = load_statements(Path(__file__).parent / "sql" / "projections.sql")

#: Of a batch: when it was received, then producer or batch id, epoch, sequence.
Place: TypeAlias = tuple[int, str, int, int]


def read_pending(connection: sqlite3.Connection, *, now_ms: int, idle_ms: int, limit: int) -> list[Pending]:
    """See the port. At least one item where any is ready, however many actions it has."""
    items: list[Pending] = [*_sessions(connection, limit)]
    items += _graphs(connection, limit - len(items))
    quiet_since = now_ms - idle_ms
    chosen = list(_up_to(limit - len(items), _due_tasks(connection, quiet_since)))
    if not items and not chosen:
        chosen = list(_up_to(1, _due_tasks(connection, quiet_since)))
    return items + _with_actions(connection, chosen, quiet_since)


def _sessions(connection: sqlite3.Connection, limit: int) -> Iterator[PendingSession]:
    for scenario, position, received_at_ms, body in connection.execute(SQL["pending_sessions"], (limit,)):
        record, _ = record_from(LEARN_STATS, None, body)
        yield PendingSession(
            scenario=scenario, batch_no=position >> PLACE_BITS, received_at_ms=received_at_ms, record=_session(record)
        )


def _graphs(connection: sqlite3.Connection, limit: int) -> Iterator[PendingGraph]:
    for scenario, position, received_at_ms, body in connection.execute(SQL["pending_graphs"], (limit,)):
        yield pending_graph(scenario, position, received_at_ms, body)


def pending_graph(scenario: str, position: int, received_at_ms: int, body: str) -> PendingGraph:
    """A graph record as it is offered to the projector and to training."""
    record: Any = record_from(GRAPH, None, body)[0]
    return PendingGraph(
        scenario=scenario,
        batch_no=position >> PLACE_BITS,
        index=position & PLACE_MASK,
        received_at_ms=received_at_ms,
        record=record,
    )


def _due_tasks(connection: sqlite3.Connection, quiet_since: int) -> Iterator[Any]:
    yield from connection.execute(SQL["tasks_due_now"])
    yield from connection.execute(SQL["tasks_due_idle"], (quiet_since,))


def _up_to(limit: int, tasks: Iterable[Any]) -> Iterator[Any]:
    """Tasks until their actions are `limit` or more."""
    read = 0
    if limit <= 0:
        return
    for task in tasks:
        yield task
        read += task[3]
        if read >= limit:
            return


def _with_actions(connection: sqlite3.Connection, tasks: list[Any], quiet_since: int) -> list[PendingTask]:
    actions = dict(_read(connection, "actions_of_tasks", [task[0] for task in tasks]))
    decoded: dict[int, list[tuple[int, list[Any]]]] = {no: msgspec.json.decode(text) for no, text in actions.items()}
    numbers = {position >> PLACE_BITS for placed in decoded.values() for position, _ in placed}
    found = _read(connection, "places_of_batches", sorted(numbers))[0][0]
    places: dict[int, Place] = {batch_no: tuple(place) for batch_no, *place in msgspec.json.decode(found)}
    sessions = {
        session_no: (position >> PLACE_BITS, _session(record_from(LEARN_STATS, None, body)[0]))
        for session_no, position, body in _read(
            connection, "sessions_by_number", sorted({t[6] for t in tasks} - {None})
        )
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
        view = TaskView(
            scenario=scenario,
            task_id=task_id,
            actions=[_placed(task_id, position, values, places) for position, values in decoded[number]],
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
    received_at_ms, sender, epoch, batch_seq = places[batch_no]
    place = (sender, epoch, batch_seq, position & PLACE_MASK)
    return PlacedAction(action_from(task_id, values), batch_no, received_at_ms, place)


def _read(connection: sqlite3.Connection, statement: str, numbers: list[int]) -> list[Any]:
    return connection.execute(SQL[statement], (msgspec.json.encode(numbers).decode(),)).fetchall()


def _session(record: Any) -> LearnStatsRecord:
    assert isinstance(record, LearnStatsRecord)  # noqa: S101  the kind beside the body says so
    return record
