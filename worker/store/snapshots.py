"""The learning store: snapshots of sessions, scenarios and everything, read from the log's projections.

The original saved a session and merged it into the aggregates, with no lock and twice where a message came twice
(faults 23, 31). Here a session is in the log once and the aggregates are its projection, so there is nothing to save.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from worker.errors import NotFound
from worker.learning.evidence import best_source, snapshot_of_counts
from worker.learning.merging import MergeStrategy, merge_snapshots
from worker.learning.rates import rounded
from worker.learning.snapshots import LearningSnapshot, SessionGroupId, snapshot_of_session
from worker.store.port import Session, Store
from worker.wire.records import Success, Unknown
from worker.wire.times import happened_at


class SessionGroup(Struct, frozen=True, kw_only=True):
    """Sessions that were run for one phase."""

    id: SessionGroupId
    scenario: str
    phase: str | None  # None where its sessions disagree
    session_ids: list[str]  # oldest first
    created_at: int  # Unix ms of its first session
    #: Over the sessions with a known outcome; None without one.
    success_rate: float | None


class LearningStore:
    """Reads snapshots out of a store. Snapshots come newest first, as the sessions do."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def load_session(self, scenario: str, session_id: str) -> LearningSnapshot:
        """One session's snapshot; raises `NotFound`."""
        for session in await self._store.sessions(scenario, session_id=session_id):
            return _snapshot(session)
        raise NotFound(f"scenario {scenario} has no ended session {session_id!r}")

    async def list_sessions(self, scenario: str) -> list[str]:
        """The ids of the ended sessions, newest first."""
        return [session.record.session_id for session in await self._store.sessions(scenario)]

    async def query_range(self, scenario: str, from_ms: int, to_ms: int) -> list[LearningSnapshot]:
        """Snapshots of the sessions that ended in the range (Unix ms)."""
        return [_snapshot(one) for one in await self._store.sessions(scenario, since_ms=from_ms, until_ms=to_ms)]

    async def query_latest(self, scenario: str, limit: int) -> list[LearningSnapshot]:
        """Snapshots of the newest sessions."""
        return [_snapshot(one) for one in await self._store.sessions(scenario, latest=limit)]

    async def query_since(self, scenario: str, since_ms: int) -> list[LearningSnapshot]:
        """Snapshots of the sessions that ended since then (Unix ms)."""
        return [_snapshot(one) for one in await self._store.sessions(scenario, since_ms=since_ms)]

    async def load_scenario(self, scenario: str) -> LearningSnapshot:
        """The aggregate of everything in the scenario; raises `NotFound` where nothing was counted."""
        snapshot = await self._aggregate(scenario)
        if snapshot is None:
            raise NotFound(f"nothing was counted in scenario {scenario} yet")
        return snapshot

    async def load_global(self) -> LearningSnapshot:
        """The aggregate of all scenarios; empty where nothing was counted."""
        # One by one: each scenario has its own best source of counts.
        aggregates = [await self._aggregate(scenario) for scenario in sorted(await self._store.scenarios())]
        return merge_snapshots([snapshot for snapshot in aggregates if snapshot is not None])

    async def merge(
        self, scenario: str, strategy: MergeStrategy | None = None, *, latest: int | None = None
    ) -> LearningSnapshot:
        """The newest sessions (all, where `latest` is None) merged; None is Additive. Empty without sessions."""
        sessions = await self._store.sessions(scenario, latest=latest)
        return merge_snapshots([_snapshot(one) for one in reversed(sessions)], strategy)

    async def session_groups(self, scenario: str) -> list[SessionGroup]:
        """The groups that sessions name, the newest first."""
        members: dict[str, list[Session]] = {}
        for session in reversed(await self._store.sessions(scenario)):
            if session.record.group_id is not None:
                members.setdefault(session.record.group_id, []).append(session)
        groups = [_group(scenario, name, sessions) for name, sessions in members.items()]
        return sorted(groups, key=lambda group: (-group.created_at, group.id))

    async def session_group(self, scenario: str, group_id: str) -> SessionGroup:
        """One group; raises `NotFound`."""
        sessions = await self._store.sessions(scenario, group_id=group_id)
        if not sessions:
            raise NotFound(f"scenario {scenario} has no session of group {group_id!r}")
        return _group(scenario, group_id, sessions[::-1])

    async def _aggregate(self, scenario: str) -> LearningSnapshot | None:
        counts = await self._store.counts(scenario)
        source = best_source(counts)
        if source is None:
            return None
        newest = await self._store.sessions(scenario, latest=1)
        created_at = _ended_at(newest[0]) if newest else 0
        return snapshot_of_counts(counts, source, scenario=scenario, created_at=created_at)


def _snapshot(session: Session) -> LearningSnapshot:
    return snapshot_of_session(session.record, session.received_at_ms, session.scenario)


def _ended_at(session: Session) -> int:
    return happened_at(session.record.timestamp_ms, session.received_at_ms)


def _group(scenario: str, group_id: str, oldest_first: Sequence[Session]) -> SessionGroup:
    phases = {session.record.phase for session in oldest_first}
    known = [one for one in oldest_first if not isinstance(one.record.outcome, Unknown)]
    successes = sum(isinstance(session.record.outcome, Success) for session in known)
    return SessionGroup(
        id=SessionGroupId(group_id),
        scenario=scenario,
        phase=phases.pop() if len(phases) == 1 else None,
        session_ids=[session.record.session_id for session in oldest_first],
        created_at=min(_ended_at(session) for session in oldest_first),
        success_rate=rounded(successes / len(known)) if known else None,
    )
