"""One group on its way into the log: identities, records, tasks, sessions and counters, in few statements.

Statements are counted, not rows: each step of SQLite gives up the interpreter's lock, and beside a busy event loop it
is the getting back that costs. A group without conflicts takes about twenty steps, whether of 64 records or of 6,400.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import repeat
from typing import Any, TypeAlias
from zlib import adler32

import msgspec

from worker import crash
from worker.store.port import Duplicate, Incoming, IncomingBatch, IncomingReject, Quarantined, Stored, Verdict
from worker.store.quarantine_rows import conflict_detail, message_of
from worker.store.record_rows import ACTION, KINDS, action_body, other_body, same_content
from worker.store.sqlite.bulk import Bulk
from worker.store.sqlite.check_sums import Row, RowDamaged, check_sum, read_row
from worker.store.sqlite.ingest_names import Fresh, Scope, Session, Task, find_names
from worker.store.sqlite.numbers import SQL, Numbers
from worker.store.sqlite.quarantine import insert_quarantine
from worker.wire.reasons import Reason
from worker.wire.records import ActionRecord, DependencyGraphRecord, LearnStatsRecord, LlmCallRecord, Record
from worker.wire.times import happened_at

#: A record's place in the log is `batch_no << PLACE_BITS | index`; a batch holds at most 10,000 records.
PLACE_BITS = 14
PLACE_MASK = (1 << PLACE_BITS) - 1

_INSERT_BATCH = Bulk(SQL["insert_batch"])
_INSERT_RECORD = Bulk(SQL["insert_record"])
_INSERT_IDENTITY = Bulk(SQL["insert_identity"])
_TOUCH_TASK = Bulk(SQL["touch_task"])
_LINK_TASK = Bulk(SQL["link_task"])

#: position, kind, task_no, sequence, body, check sum
RecordRow: TypeAlias = tuple[int, int, int | None, int | None, str, int]


class GroupIngest:
    """Stores one group. Made for one transaction, then thrown away."""

    def __init__(self, connection: sqlite3.Connection, numbers: Numbers, group: Sequence[Incoming]) -> None:
        self._connection = connection
        self._numbers = numbers
        self._group = group
        self._scopes: dict[str, Scope] = {}
        self._verdicts: list[Verdict | None] = [None] * len(group)
        self._fresh: list[Fresh] = []
        self._rows: list[RecordRow] = []
        self._identities: list[tuple[int, str, int]] = []
        self._links: set[tuple[int, int]] = set()
        self._ended: list[tuple[Session, int, LearnStatsRecord]] = []

    def run(self) -> list[Verdict]:
        """One verdict each, in order."""
        crash.point("begin")
        self._numbers.load(self._connection)
        self._store_batches()
        if self._fresh:
            find_names(self._connection, self._numbers, [*self._scopes.values()], self._fresh)
            self._make_rows()
            self._store_rows()
            crash.point("mid_insert")
            self._store_tasks()
        for fresh in self._fresh:
            new = len(fresh.incoming.batch.records) - fresh.duplicates - fresh.conflicts
            self._verdicts[fresh.place] = Stored(fresh.batch_no, new, fresh.duplicates, fresh.conflicts)
            counts = fresh.scope.counts
            counts["batches"] += 1
            counts["records"] += new
            counts["duplicate_records"] += fresh.duplicates
            counts["unknown_fields"] += fresh.incoming.batch.unknown_fields
            fresh.scope.last_batch_no = fresh.batch_no
            if new:
                fresh.scope.received.append(fresh.incoming.received_at_ms)
        self._store_counts()
        crash.point("pre_commit")
        return [verdict for verdict in self._verdicts if verdict is not None]

    def _scope(self, name: str) -> Scope:
        scope = self._scopes.get(name)
        if scope is None:
            scope = self._scopes[name] = Scope(self._numbers.scenario(self._connection, name), name)
        return scope

    # ------------------------------------------------------------ batches

    def _store_batches(self) -> None:
        """Give a number to each batch that is new; judge the others."""
        candidates: list[tuple[int, IncomingBatch, Scope]] = []
        for place, incoming in enumerate(self._group):
            scope = self._scope(incoming.scenario)
            if isinstance(incoming, IncomingReject):
                self._verdicts[place] = self._quarantine(scope, incoming)
            else:
                candidates.append((place, incoming, scope))
        if not candidates:
            return
        first = self._numbers.batch_no + 1
        rows = [self._batch_row(first + at, *candidate[1:]) for at, candidate in enumerate(candidates)]
        if _INSERT_BATCH.run(self._connection, rows) == len(rows):
            self._numbers.batch_no += len(rows)
            for row, (place, incoming, scope) in zip(rows, candidates, strict=True):
                self._fresh.append(Fresh(place, incoming, scope, row[0]))
            return
        # Some were stored before. One by one, so that the numbers of the others have no gap.
        self._connection.execute(SQL["delete_batches_from"], (first,))
        for row, (place, incoming, scope) in zip(rows, candidates, strict=True):
            batch_no = self._numbers.batch_no + 1
            if self._connection.execute(SQL["insert_batch"], (batch_no, *row[1:])).rowcount:
                self._numbers.batch_no = batch_no
                self._fresh.append(Fresh(place, incoming, scope, batch_no))
            else:
                self._verdicts[place] = self._judge_known(row, incoming, scope)

    def _batch_row(self, batch_no: int, incoming: IncomingBatch, scope: Scope) -> tuple[Any, ...]:
        identity = incoming.batch.identity
        producer_no = None
        if identity.producer_id is not None:
            producer_no = self._numbers.producer(
                self._connection, scope.number, identity.producer_id, identity.producer_epoch
            )
        return (
            batch_no,
            scope.number,
            producer_no,
            identity.batch_seq,
            identity.batch_id,
            incoming.batch.content_hash,
            incoming.received_at_ms,
            len(incoming.batch.records),
        )

    def _judge_known(self, row: tuple[Any, ...], incoming: IncomingBatch, scope: Scope) -> Verdict:
        _, _, producer_no, batch_seq, batch_id, content_hash, *_ = row
        if producer_no is not None:
            known = self._connection.execute(SQL["find_batch_by_seq"], (producer_no, batch_seq)).fetchone()
        else:
            known = self._connection.execute(SQL["find_batch_by_id"], (scope.number, batch_id)).fetchone()
        if known[1] == content_hash:
            scope.counts["duplicate_batches"] += 1
            return Duplicate()
        return self._quarantine(
            scope,
            IncomingReject(
                scenario=scope.name,
                reason=Reason.KEY_CONFLICT,
                detail=f"batch {known[0]} has the same identity and another content",
                body=incoming.body,
                received_at_ms=incoming.received_at_ms,
            ),
        )

    def _quarantine(self, scope: Scope, reject: IncomingReject) -> Quarantined:
        scope.counts["quarantined"] += insert_quarantine(self._connection, scope.number, reject)
        return Quarantined(reject.reason)

    # ------------------------------------------------------------ records

    def _make_rows(self) -> None:
        add = self._rows.append
        for fresh in self._fresh:
            batch, tasks = fresh.incoming.batch, fresh.scope.tasks
            position = fresh.batch_no << PLACE_BITS
            for record, nulls in zip(batch.records, batch.nulls or repeat(0)):  # noqa: B905  repeat has no end
                if type(record) is ActionRecord:
                    event_id = record.event_id
                    sequence = -position if event_id is None else event_id
                    number, body = tasks[record.task_id].number, action_body(record, nulls)
                    add((position, ACTION, number, sequence, body.decode(), adler32(body, position ^ number)))
                    if event_id is None and record.record_id is not None:
                        self._identities.append((fresh.scope.number, record.record_id, position))
                else:
                    self._make_other_row(fresh, position, record, nulls)
                position += 1

    def _make_other_row(self, fresh: Fresh, position: int, record: Record, nulls: int) -> None:
        scope = fresh.scope
        task_no = sequence = None
        if isinstance(record, LearnStatsRecord):
            session = scope.sessions[record.session_id]
            if session.position is not None:
                self._refuse(fresh, record, session.position)
                return
            session.position = position
            self._ended.append((session, position, record))
            scope.counts["sessions"] += 1
            for task_id in record.task_ids or ():
                self._links.add((session.number, scope.tasks[task_id].number))
        else:
            if record.record_id is not None:
                self._identities.append((scope.number, record.record_id, position))
            if isinstance(record, LlmCallRecord) and record.task_id is not None:
                task_no, sequence = scope.tasks[record.task_id].number, -position
        kind, body = KINDS[type(record)], other_body(record, nulls)
        self._rows.append((position, kind, task_no, sequence, body.decode(), check_sum(position, kind, task_no, body)))

    def _store_rows(self) -> None:
        connection = self._connection
        refused = self._refused_identities()
        rows = [row for row in self._rows if row[0] not in refused] if refused else self._rows
        if _INSERT_RECORD.run(connection, rows) < len(rows):
            positions = msgspec.json.encode([row[0] for row in rows]).decode()
            missing = set(msgspec.json.decode(connection.execute(SQL["missing_records"], (positions,)).fetchone()[0]))
            for position, _, task_no, sequence, *_ in rows:
                if position in missing:
                    known = connection.execute(SQL["find_action"], (task_no, sequence)).fetchone()
                    refused[position] = known[0]
        for position, known in refused.items():
            fresh, record = self._in_group(position)
            self._refuse(fresh, record, known)
            if isinstance(record, ActionRecord):
                fresh.added[record.task_id, record.session_id] -= 1
        for fresh in self._fresh:
            if sum(fresh.added.values()) < len(fresh.incoming.batch.records):
                self._store_graphs(fresh, refused)

    def _refused_identities(self) -> dict[int, int]:
        """Records whose `record_id` is taken, with the position of the one that took it."""
        if _INSERT_IDENTITY.run(self._connection, self._identities) == len(self._identities):
            return {}
        refused = {}
        for scenario_no, record_id, position in self._identities:
            known = self._connection.execute(SQL["find_identity"], (scenario_no, record_id)).fetchone()[0]
            if known != position:
                refused[position] = known
        return refused

    def _store_graphs(self, fresh: Fresh, refused: dict[int, int]) -> None:
        for position, record in enumerate(fresh.incoming.batch.records, fresh.batch_no << PLACE_BITS):
            if isinstance(record, DependencyGraphRecord) and position not in refused:
                ended_at_ms = happened_at(record.timestamp_ms, fresh.incoming.received_at_ms)
                self._connection.execute(SQL["insert_graph"], (position, fresh.scope.number, ended_at_ms))

    def _in_group(self, position: int) -> tuple[Fresh, Record]:
        fresh = self._fresh[(position >> PLACE_BITS) - self._fresh[0].batch_no]
        return fresh, fresh.incoming.batch.records[position & PLACE_MASK]

    def _refuse(self, fresh: Fresh, record: Record, known_position: int) -> None:
        """Count a record whose identity is taken as a duplicate, or quarantine it where it says something else."""
        if known_position >> PLACE_BITS >= self._fresh[0].batch_no:
            known: Record | None = self._in_group(known_position)[1]
        else:
            known = self._stored(known_position)
        if known is not None and same_content(record, known):
            fresh.duplicates += 1
            return
        fresh.conflicts += 1
        reject = IncomingReject(
            scenario=fresh.scope.name,
            reason=Reason.RECORD_CONFLICT,
            detail=conflict_detail(record, known_position >> PLACE_BITS, known_position & PLACE_MASK),
            body=message_of(record),
            received_at_ms=fresh.incoming.received_at_ms,
        )
        self._quarantine(fresh.scope, reject)

    def _stored(self, position: int) -> Record | None:
        """A record of before; None where it is damaged, so that nobody can say whether another one is its copy."""
        try:
            return read_row(Row(*self._connection.execute(SQL["get_record"], (position,)).fetchone()))[0]
        except RowDamaged:
            return None

    # ------------------------------------------------------------ tasks and sessions

    def _store_tasks(self) -> None:
        """Note what became of each task, link it to its session, close those whose session ended."""
        connection = self._connection
        for fresh in self._fresh:
            for (task_id, session_id), added in fresh.added.items():
                if added:
                    self._touch(fresh, fresh.scope.tasks[task_id], added, session_id)
        for scope in self._scopes.values():
            touched = [task for task in scope.tasks.values() if task.added or task.new]
            scope.counts["open_tasks"] += sum(task.added > 0 and task.actions == 0 for task in touched)
            _TOUCH_TASK.run(connection, [_task_row(scope, task) for task in touched])
        _LINK_TASK.run(connection, sorted(self._links))
        for session, position, record in self._ended:
            fresh = self._in_group(position)[0]
            ended_at_ms = happened_at(record.timestamp_ms, fresh.incoming.received_at_ms)
            row = (position, ended_at_ms, record.group_id, record.phase, session.number)
            connection.execute(SQL["end_session"], row)
            connection.execute(SQL["close_tasks_of_session"], (session.number, fresh.batch_no))

    def _touch(self, fresh: Fresh, task: Task, added: int, session_id: str | None) -> None:
        task.added += added
        task.changed_upto = fresh.batch_no
        task.last_received_ms = max(task.last_received_ms, fresh.incoming.received_at_ms)
        task.terminal = task.terminal or task.task_id in fresh.incoming.terminal_tasks
        if session_id is None or task.session_no is not None:
            return
        session = fresh.scope.sessions[session_id]
        self._links.add((session.number, task.number))
        # One that ended before this group; those that ended in it close their tasks themselves.
        if session.position is not None and session.position >> PLACE_BITS < self._fresh[0].batch_no:
            task.session_no = session.number

    def _store_counts(self) -> None:
        for scope in self._scopes.values():
            parameters = {name: scope.counts[name] for name in _COUNTED} | {
                "scenario_no": scope.number,
                "last_batch_no": scope.last_batch_no,
                "first_at_ms": min(scope.received, default=None),
                "last_at_ms": max(scope.received, default=None),
            }
            self._connection.execute(SQL["count_ingest"], parameters)


_COUNTED = (
    "records",
    "batches",
    "duplicate_batches",
    "duplicate_records",
    "unknown_fields",
    "quarantined",
    "sessions",
    "open_tasks",
)


def _task_row(scope: Scope, task: Task) -> tuple[Any, ...]:
    return (
        task.number,
        scope.number,
        task.task_id,
        task.added,
        task.changed_upto,
        task.last_received_ms,
        int(task.terminal),
        task.session_no,
    )
