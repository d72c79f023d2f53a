"""One scenario in memory: its log and what was made of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TypeAlias

from msgspec import Struct, field

from worker.episodes.episode import Episode
from worker.episodes.task import PlacedAction
from worker.learning.counts import CountBucket, Counts
from worker.store.port import PendingGraph, PendingSession, StoredRecord
from worker.store.port.projections import HUGE_TASK

#: Identity of a record: ("action", task_id, event_id), ("session", session_id) or ("record", record_id).
RecordKey: TypeAlias = tuple[str | int, ...]


class MemoryTask(Struct):
    """A task as soon as somebody names it."""

    task_id: str
    actions: list[PlacedAction] = []
    changed_upto: int = 0  # highest batch_no of its actions and its session, 0: no actions yet
    last_received_ms: int = 0
    terminal: bool = False
    session_id: str | None = None  # the ended session it belongs to; never changes once set
    projected_upto: int = 0  # 0: never
    projected_idle: bool = False
    open_tail: bool = False

    def due(self, quiet_since: int, now_ms: int) -> bool:
        """Whether it may be projected now."""
        if self.changed_upto > self.projected_upto:
            huge = self.projected_upto > 0 and len(self.actions) > HUGE_TASK
            if huge and now_ms - len(self.actions) <= self.last_received_ms <= now_ms:
                return False
            closed = self.terminal or self.session_id is not None or self.projected_upto > 0
            return closed or self.last_received_ms <= quiet_since
        return self.open_tail and not self.projected_idle and self.last_received_ms <= quiet_since


class ScenarioLog(Struct):
    """Everything of one scenario but its counters."""

    batches: dict[tuple[str | int, ...], tuple[int, bytes]] = {}  # identity to number and content hash
    records: list[StoredRecord] = []
    by_key: dict[RecordKey, StoredRecord] = {}
    tasks: dict[str, MemoryTask] = {}
    sessions: dict[str, PendingSession] = {}  # ended ones
    tasks_of_session: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    graphs: list[PendingGraph] = []
    #: Items that were projected: sessions by id, graphs by batch_no and index.
    counted_sessions: set[str] = set()
    projected_graphs: set[tuple[int, int]] = set()
    #: Episodes by what they were made of: a task's id or a graph's batch_no and index.
    episodes: dict[str | tuple[int, int], list[Episode]] = {}
    counts: dict[CountBucket, Counts] = field(default_factory=lambda: defaultdict(Counter))
    projected_under: str | None = None  # the rules that the projections go by

    def task(self, task_id: str) -> MemoryTask:
        """The task of this id, made now where it is new."""
        return self.tasks.setdefault(task_id, MemoryTask(task_id))
