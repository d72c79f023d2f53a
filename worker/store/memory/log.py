"""The log of records in memory, with the quarantine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import repeat

from msgspec.structs import replace

from worker.episodes.task import UNNAMED, PlacedAction
from worker.errors import DataRefused
from worker.store.memory.scenario_log import RecordKey, ScenarioLog
from worker.store.memory.state import Role, State
from worker.store.port import (
    Duplicate,
    Incoming,
    IncomingBatch,
    IncomingReject,
    PendingGraph,
    PendingSession,
    Quarantined,
    QuarantineEntry,
    QuarantineRoom,
    Stored,
    StoredRecord,
    Verdict,
)
from worker.store.quarantine_rows import conflict_detail, keep, message_of, room_of
from worker.store.record_rows import kind_named, same_content, type_of
from worker.wire.reasons import Reason
from worker.wire.records import (
    INT64_MAX,
    ActionRecord,
    BatchIdentity,
    DependencyGraphRecord,
    LearnStatsRecord,
    LlmCallRecord,
    Record,
)


class RecordLog(Role):
    """`worker.store.port.RecordLog` in memory."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self._batch_no = 0
        self._quarantine: dict[int, QuarantineEntry] = {}
        self._entry_id = 0
        self._moved = 0

    async def ingest(self, group: Sequence[Incoming]) -> list[Verdict]:
        """Store a group. What can be refused is refused before anything is stored."""
        self._state.require_open()
        for incoming in group:
            if not -INT64_MAX <= incoming.received_at_ms <= INT64_MAX:
                raise DataRefused(f"received_at_ms {incoming.received_at_ms} is beyond 64 bits")
        return [
            self._quarantined(incoming) if isinstance(incoming, IncomingReject) else self._stored(incoming)
            for incoming in group
        ]

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
        self._state.require_open()
        kind = None if type_ is None else kind_named(type_)
        left = limit
        for stored in list(self._state.log(scenario).records) if scenario in self._state.scenarios else ():
            if left == 0:
                return
            record = stored.record
            if stored.batch_no <= after or (kind is not None and type(record) is not type_of(kind)):
                continue
            if task_id is not None and (
                not isinstance(record, ActionRecord | LlmCallRecord) or record.task_id != task_id
            ):
                continue
            left = None if left is None else left - 1
            yield stored

    async def actions_of_tasks(
        self, scenario: str, task_ids: Sequence[str], *, most: int
    ) -> dict[str, list[PlacedAction]]:
        """Actions by task, until there are `most`."""
        self._state.require_open()
        known = self._state.log(scenario).tasks if scenario in self._state.scenarios else {}
        found: dict[str, list[PlacedAction]] = {}
        read = 0
        for task_id in task_ids:
            found[task_id] = list(known[task_id].actions) if task_id in known else []
            read += len(found[task_id])
            if read >= most:
                break
        return found

    # ------------------------------------------------------------ quarantine

    async def quarantine_list(
        self,
        scenario: str | None = None,
        *,
        reason: str | None = None,
        limit: int = 100,
        after: int = 0,
        pending_only: bool = False,
    ) -> list[QuarantineEntry]:
        """Entries above `after`, oldest first."""
        self._state.require_open()
        found = [
            replace(entry)
            for entry in self._quarantine.values()
            if entry.entry_id > after
            and scenario in (None, entry.scenario)
            and reason in (None, entry.reason)
            and not (pending_only and entry.replayed_at_ms is not None)
        ]
        return found[:limit]

    async def quarantine_waiting(
        self, scenario: str | None = None, *, reason: str | None = None, limit: int | None = None
    ) -> list[int]:
        """Least tried first, then oldest."""
        self._state.require_open()
        waiting = [
            (entry.replays, entry.entry_id)
            for entry in self._quarantine.values()
            if scenario in (None, entry.scenario) and reason in (None, entry.reason) and entry.replayed_at_ms is None
        ]
        return [entry_id for _, entry_id in sorted(waiting)[:limit]]

    async def quarantine_get(self, entry_id: int) -> QuarantineEntry | None:
        """The entry of this number."""
        self._state.require_open()
        entry = self._quarantine.get(entry_id)
        return None if entry is None else replace(entry)

    async def quarantine_mark_replayed(self, entry_ids: Sequence[int], now_ms: int) -> None:
        """Note that these were sent through again."""
        self._state.require_open()
        for entry_id in entry_ids:
            if entry_id in self._quarantine:
                self._quarantine[entry_id].replayed_at_ms = now_ms

    async def quarantine_mark_refused(self, entry_ids: Sequence[int]) -> None:
        """Count a replay that changed nothing."""
        self._state.require_open()
        for entry_id in entry_ids:
            if entry_id in self._quarantine:
                self._quarantine[entry_id].replays += 1

    async def quarantine_room(self) -> QuarantineRoom:
        """Added up."""
        self._state.require_open()
        used = sum(room_of(entry.body, entry.detail, entry.headers) for entry in self._quarantine.values())
        return QuarantineRoom(len(self._quarantine), used, self._moved)

    async def quarantine_move_out(self, entry_ids: Sequence[int]) -> None:
        """Forget them."""
        self._state.require_open()
        gone = [self._quarantine.pop(entry_id, None) for entry_id in entry_ids]
        self._moved += sum(entry is not None for entry in gone)

    def _quarantined(self, reject: IncomingReject) -> Quarantined:
        kept = keep(reject.body)
        reason = str(reject.reason)
        for entry in self._quarantine.values():
            if (entry.scenario, entry.reason, entry.sha256) == (reject.scenario, reason, kept.sha256):
                entry.seen += 1
                entry.replayed_at_ms = None
                return Quarantined(reject.reason)
        self._entry_id += 1
        self._quarantine[self._entry_id] = QuarantineEntry(
            entry_id=self._entry_id,
            scenario=reject.scenario,
            reason=reason,
            detail=reject.detail,
            received_at_ms=reject.received_at_ms,
            size=kept.size,
            sha256=kept.sha256,
            body=kept.body,
            truncated=kept.truncated,
            headers=dict(reject.headers),
            seen=1,
        )
        self._state.facts(reject.scenario).quarantined += 1
        return Quarantined(reject.reason)

    # ------------------------------------------------------------ batches and records

    def _stored(self, incoming: IncomingBatch) -> Verdict:
        facts, log, batch = self._state.facts(incoming.scenario), self._state.log(incoming.scenario), incoming.batch
        key = _batch_key(batch.identity)
        if key in log.batches:
            batch_no, content_hash = log.batches[key]
            if content_hash == batch.content_hash:
                facts.duplicate_batches += 1
                return Duplicate()
            detail = f"batch {batch_no} has the same identity and another content"
            return self._quarantined(_reject(incoming, Reason.KEY_CONFLICT, detail, incoming.body))
        self._batch_no += 1
        log.batches[key] = (self._batch_no, batch.content_hash)
        fresh = duplicates = conflicts = 0
        producer = batch.identity.producer_id or UNNAMED
        for index, (record, nulls) in enumerate(zip(batch.records, batch.nulls or repeat(0))):  # noqa: B905  no end
            stored = StoredRecord(
                incoming.scenario, self._batch_no, index, incoming.received_at_ms, record, nulls, producer
            )
            identity = _record_key(record)
            known = None if identity is None else log.by_key.get(identity)
            if known is None:
                if identity is not None:
                    log.by_key[identity] = stored
                log.records.append(stored)
                self._derive(incoming, stored)
                fresh += 1
            elif same_content(record, known.record):
                duplicates += 1
            else:
                conflicts += 1
                detail = conflict_detail(record, known.batch_no, known.index)
                self._quarantined(_reject(incoming, Reason.RECORD_CONFLICT, detail, message_of(record)))
        facts.batches += 1
        facts.records += fresh
        facts.duplicate_records += duplicates
        facts.unknown_fields += batch.unknown_fields
        facts.last_batch_no = self._batch_no
        if fresh:
            at = incoming.received_at_ms
            facts.first_record_at_ms = at if facts.first_record_at_ms is None else min(facts.first_record_at_ms, at)
            facts.last_record_at_ms = at if facts.last_record_at_ms is None else max(facts.last_record_at_ms, at)
        return Stored(self._batch_no, fresh, duplicates, conflicts)

    def _derive(self, incoming: IncomingBatch, stored: StoredRecord) -> None:
        log, record = self._state.log(incoming.scenario), stored.record
        match record:
            case ActionRecord():
                self._add_action(incoming, stored, record)
            case LearnStatsRecord():
                self._end_session(log, stored, record)
            case DependencyGraphRecord():
                log.graphs.append(
                    PendingGraph(
                        scenario=stored.scenario,
                        batch_no=stored.batch_no,
                        index=stored.index,
                        received_at_ms=stored.received_at_ms,
                        record=record,
                    )
                )

    def _add_action(self, incoming: IncomingBatch, stored: StoredRecord, record: ActionRecord) -> None:
        log = self._state.log(incoming.scenario)
        task = log.task(record.task_id)
        identity = incoming.batch.identity
        sender = identity.producer_id or identity.batch_id or ""
        place = (sender, identity.producer_epoch, identity.batch_seq or 0, stored.index)
        if not task.actions:
            self._state.facts(incoming.scenario).open_tasks += 1
        task.actions.append(PlacedAction(record, stored.batch_no, stored.received_at_ms, place, stored.producer))
        task.changed_upto = stored.batch_no
        task.last_received_ms = max(task.last_received_ms, stored.received_at_ms)
        task.terminal = task.terminal or record.task_id in incoming.terminal_tasks
        if record.session_id is not None and task.session_id is None:
            log.tasks_of_session[record.session_id].add(record.task_id)
            if record.session_id in log.sessions:
                task.session_id = record.session_id

    def _end_session(self, log: ScenarioLog, stored: StoredRecord, record: LearnStatsRecord) -> None:
        log.sessions[record.session_id] = PendingSession(
            scenario=stored.scenario,
            batch_no=stored.batch_no,
            received_at_ms=stored.received_at_ms,
            record=record,
            producer=stored.producer,
        )
        self._state.facts(stored.scenario).sessions += 1
        log.tasks_of_session[record.session_id].update(record.task_ids or ())
        for task_id in log.tasks_of_session[record.session_id]:
            task = log.task(task_id)
            if task.session_id is None:
                task.session_id = record.session_id
                if task.actions:
                    task.changed_upto = stored.batch_no


def _batch_key(identity: BatchIdentity) -> tuple[str | int, ...]:
    if identity.producer_id is not None:
        return ("seq", identity.producer_id, identity.producer_epoch, identity.batch_seq or 0)
    return ("id", identity.batch_id or "")


def _record_key(record: Record) -> RecordKey | None:
    if isinstance(record, ActionRecord) and record.event_id is not None:
        return ("action", record.task_id, record.event_id)
    if isinstance(record, LearnStatsRecord):
        return ("session", record.session_id)
    return None if record.record_id is None else ("record", record.record_id)


def _reject(incoming: IncomingBatch, reason: Reason, detail: str, body: bytes) -> IncomingReject:
    return IncomingReject(
        scenario=incoming.scenario,
        reason=reason,
        detail=detail,
        body=body,
        received_at_ms=incoming.received_at_ms,
    )
