"""Records, pending items and what came of them for the contract tests of projections."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw

from worker.episodes.episode import Episode
from worker.learning.counts import BucketedCounts, CountBucket, CountKey
from worker.store.port import (
    EpisodeFilter,
    IncomingBatch,
    Pending,
    PendingTask,
    Projection,
    Store,
)
from worker.wire.records import (
    ActionRecord,
    Batch,
    BatchIdentity,
    DependencyGraphRecord,
    LearnStatsRecord,
    Record,
    Success,
)

Reopen: TypeAlias = Callable[[Store], AbstractAsyncContextManager[Store]]

NOW = 1_700_000_000_000
IDLE = 900_000


def incoming(
    *records: Record, seq: int, scenario: str = "S", at_ms: int = NOW, ends: Iterable[str] = ()
) -> IncomingBatch:
    """A batch; `ends` are the tasks that have a terminal action in it."""
    body = msgspec.json.encode(list(records))
    batch = Batch(BatchIdentity("node-1", 2, seq, None), hashlib.sha256(body).digest(), list(records), None, 0)
    return IncomingBatch(
        scenario=scenario, batch=batch, body=body, received_at_ms=at_ms, terminal_tasks=frozenset(ends)
    )


def action(event_id: int = 0, task_id: str = "t", *, session_id: str | None = None) -> ActionRecord:
    """An action of a task."""
    return ActionRecord(task_id, event_id, 1, "look", event_id, session_id)


def stats(session_id: str = "s", task_ids: list[str] | None = None, **fields: Any) -> LearnStatsRecord:
    """The end of a session."""
    return LearnStatsRecord(session_id, Raw(b"{}"), Success(1), 1, 1, task_ids=task_ids, **fields)


def graph(prompt: str = "p", timestamp_ms: int | None = None) -> DependencyGraphRecord:
    """An inferred graph."""
    return DependencyGraphRecord(prompt, "r", ["a"], ["a"], [], "m", "e", 1, timestamp_ms)


def episode(episode_id: str = "m:t:1:0", **fields: Any) -> Episode:
    """An episode as a learn model makes it."""
    given: dict[str, Any] = {"learn_model": "m", "outcome": Success(1.0), "actions": ["a"], "ended_at_ms": NOW}
    return Episode(episode_id=episode_id, **{**given, **fields})


def counts(day: int = 1, *, holdout: bool = False, **measures: int) -> BucketedCounts:
    """A change of the counts of one day."""
    return {CountBucket(day, holdout): Counter({CountKey("log", name, ("a", "b")): n for name, n in measures.items()})}


def projected(
    item: Pending, *episodes: Episode, change: BucketedCounts | None = None, open_tail: bool = False
) -> Projection:
    """What came of an item."""
    return Projection(of=item, episodes=list(episodes), counts=change or {}, open_tail=open_tail)


async def ready(store: Store, *, now_ms: int = NOW, limit: int = 1_000) -> list[Pending]:
    """What is pending."""
    return await store.pending(now_ms=now_ms, idle_ms=IDLE, limit=limit)


async def ready_tasks(store: Store, *, now_ms: int = NOW) -> list[PendingTask]:
    """The tasks of it, by id."""
    tasks = [item for item in await ready(store, now_ms=now_ms) if isinstance(item, PendingTask)]
    return sorted(tasks, key=lambda item: item.task.task_id)


async def project_all(store: Store, *, now_ms: int = NOW) -> None:
    """Project everything that is ready, without episodes."""
    await store.project([projected(item) for item in await ready(store, now_ms=now_ms)])


async def all_episodes(store: Store, scenario: str = "S", **where: Any) -> list[Episode]:
    """Episodes that fit."""
    found = store.episodes(scenario, EpisodeFilter(**where))
    return [episode async for episode in found]
