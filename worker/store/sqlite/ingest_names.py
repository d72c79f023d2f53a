"""What a group of batches names: its scenarios, tasks and sessions, looked up or numbered all at once."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Struct, field

from worker.store.port import IncomingBatch
from worker.store.sqlite.bulk import Bulk
from worker.store.sqlite.numbers import SQL, Numbers
from worker.wire.records import ActionRecord, LearnStatsRecord, LlmCallRecord, Record

_INSERT_SESSION = Bulk(SQL["insert_session"])

_task_and_session = attrgetter("task_id", "session_id")


class Task(Struct):
    """A task that the group names."""

    number: int
    task_id: str
    actions: int  # before this group
    session_no: int | None  # the ended session it belongs to
    new: bool = False
    added: int = 0
    changed_upto: int = 0
    last_received_ms: int = 0
    terminal: bool = False


class Session(Struct):
    """A session that the group names."""

    number: int
    position: int | None  # of its learn stats


class Scope(Struct):
    """All that the group has to do with one scenario."""

    number: int
    name: str
    tasks: dict[str, Task] = {}
    sessions: dict[str, Session] = {}
    counts: Counter[str] = field(default_factory=Counter)
    received: list[int] = []  # of batches with fresh records
    last_batch_no: int = 0


class Fresh(Struct):
    """A batch that is new to the log."""

    place: int  # in the group
    incoming: IncomingBatch
    scope: Scope
    batch_no: int
    #: How many of its actions are new, by task and session named.
    added: dict[tuple[str, str | None], int] = {}
    duplicates: int = 0
    conflicts: int = 0


def find_names(
    connection: sqlite3.Connection, numbers: Numbers, scopes: Sequence[Scope], batches: Sequence[Fresh]
) -> None:
    """Fill the scopes with every task and session that the batches name, and count the batches' actions by them."""
    tasks: dict[str, set[str]] = {scope.name: set() for scope in scopes}
    sessions: dict[str, set[str]] = {scope.name: set() for scope in scopes}
    for fresh in batches:
        named, ended = tasks[fresh.scope.name], sessions[fresh.scope.name]
        records = fresh.incoming.batch.records
        fresh.added = _actions_by_names(records)
        for task_id, session_id in fresh.added:
            named.add(task_id)
            if session_id is not None:
                ended.add(session_id)
        if sum(fresh.added.values()) == len(records):
            continue
        for record in records:
            if isinstance(record, LlmCallRecord) and record.task_id is not None:
                named.add(record.task_id)
            elif isinstance(record, LearnStatsRecord):
                ended.add(record.session_id)
                named.update(record.task_ids or ())
    for scope in scopes:
        _find_tasks(connection, numbers, scope, tasks[scope.name])
        _find_sessions(connection, numbers, scope, sessions[scope.name])


def _actions_by_names(records: Sequence[Record]) -> dict[tuple[str, str | None], int]:
    actions = [record for record in records if type(record) is ActionRecord]
    if len(actions) == 1:  # a Counter costs 4 us, and small messages come by the ten thousand
        return {(actions[0].task_id, actions[0].session_id): 1}
    return Counter(map(_task_and_session, actions))  # without a step of Python per record


def _find_tasks(connection: sqlite3.Connection, numbers: Numbers, scope: Scope, wanted: set[str]) -> None:
    for task_id, number, actions, session_no in _find(connection, "find_tasks", scope, wanted):
        scope.tasks[task_id] = Task(number, task_id, actions, session_no)
    for task_id in sorted(wanted - scope.tasks.keys()):
        numbers.task_no += 1
        scope.tasks[task_id] = Task(numbers.task_no, task_id, 0, None, new=True)


def _find_sessions(connection: sqlite3.Connection, numbers: Numbers, scope: Scope, wanted: set[str]) -> None:
    for session_id, number, position in _find(connection, "find_sessions", scope, wanted):
        scope.sessions[session_id] = Session(number, position)
    new = []
    for session_id in sorted(wanted - scope.sessions.keys()):
        numbers.session_no += 1
        scope.sessions[session_id] = Session(numbers.session_no, None)
        new.append((numbers.session_no, scope.number, session_id))
    _INSERT_SESSION.run(connection, new)


def _find(connection: sqlite3.Connection, statement: str, scope: Scope, wanted: Iterable[str]) -> list[Any]:
    names = list(wanted)
    if not names:
        return []
    parameters = (scope.number, msgspec.json.encode(names).decode())
    found: list[Any] = msgspec.json.decode(connection.execute(SQL[statement], parameters).fetchone()[0])
    return found
