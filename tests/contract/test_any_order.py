"""Whatever the order, duplication and cutting of batches: the same records, facts, pending items and projections."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias
from zlib import crc32

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from worker.clock import ManualClock
from worker.episodes.projection import learn_models
from worker.episodes.rules import Rules
from worker.learning.counts import CountRow
from worker.learning.shares import WHOLE
from worker.projector.projector import Projector
from worker.store.port import EpisodeFilter, IncomingBatch, PendingSession, PendingTask, Store
from worker.wire.codec import record_to_json
from worker.wire.records import (
    ActionRecord,
    Batch,
    BatchIdentity,
    DependencyGraphRecord,
    Failure,
    LearnStatsRecord,
    LlmCallRecord,
    Outcome,
    Record,
    Success,
    Unknown,
)

NewStore: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]

NOW = 1_700_000_000_000
IDLE = 60_000
RULES = Rules(holdout=0.5)
MODELS = learn_models(("worker_decision_sequence", "worker_task", "dependency_graph", "dpo"), RULES)
#: The fixture of stores makes a fresh one per example.
EXAMPLES = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

RESULTS: list[Outcome] = [Success(1), Failure("no"), Unknown()]
outcomes = st.sampled_from(RESULTS)


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """Distinct records of some tasks, each task in at most one session, known from its actions, its stats or both."""
    records: list[Record] = []
    for session in range(draw(st.integers(0, 3))):
        listed = []
        for task in range(draw(st.integers(0, 3))):
            task_id = f"t{session}.{task}"
            if by_stats := draw(st.booleans()):
                listed.append(task_id)
            named = draw(st.booleans()) or not by_stats
            for event_id in range(draw(st.integers(0, 5))):
                name = draw(st.sampled_from(["look", "go", "done", "llm_call"]))
                success = draw(st.sampled_from([None, True, False]))
                session_id = f"s{session}" if named else None
                stamp = draw(st.sampled_from([None, NOW + event_id]))
                records.append(
                    ActionRecord(
                        task_id, event_id, event_id % 2, name, event_id, session_id, success=success, timestamp_ms=stamp
                    )
                )
        if draw(st.booleans()):
            outcome = draw(outcomes)
            records.append(
                LearnStatsRecord(f"s{session}", Raw(b"{}"), outcome, 1, 2, NOW + session, task_ids=listed or None)
            )
    for at in range(draw(st.integers(0, 2))):
        records.append(LlmCallRecord("decide", "p", "r", "m", "e", 1, task_id="t0.0", record_id=f"llm{at}"))
        records.append(
            DependencyGraphRecord(
                "p", "r", ["look", "go"], ["look"], ["go"], "m", "e", 1, NOW + at, record_id=f"dg{at}"
            )
        )
    return records


def deliveries(records: Sequence[Record], seed: int) -> list[list[IncomingBatch]]:
    """The records in some order, cut into batches and groups somehow, some batches and many records more than once."""
    chance = random.Random(seed)
    line = [*records, *chance.choices(records, k=len(records) // 2)] if records else []
    chance.shuffle(line)
    batches: list[IncomingBatch] = []
    while line:
        size = chance.randint(1, 6)
        # All copies of a task's records come from one node: whoever sends what another has sent is a duplicate.
        node = _node(line[0])
        part = [record for record in line[:size] if _node(record) == node]
        line = [record for record in line[:size] if _node(record) != node] + line[size:]
        ends = {r.task_id for r in part if isinstance(r, ActionRecord) and RULES.is_terminal(r.action)}
        body = msgspec.json.encode(part)
        # Numbered from the seed, so that what another order gave is another batch.
        identity = BatchIdentity(node, seed, len(batches), None)
        batch = Batch(identity, hashlib.sha256(body).digest(), list(part), None, 0)
        batches.append(
            IncomingBatch(scenario="S", batch=batch, body=body, received_at_ms=NOW, terminal_tasks=frozenset(ends))
        )
    batches += chance.choices(batches, k=len(batches) // 3) if batches else []
    chance.shuffle(batches)
    groups = []
    while batches:
        size = chance.randint(1, 4)
        groups.append(batches[:size])
        batches = batches[size:]
    return groups


def _node(record: Record) -> str:
    """The node that sends it: a task's records have one, sessions and graphs have theirs."""
    name = record.task_id if isinstance(record, ActionRecord) else record_to_json(record).decode()
    return f"node-{crc32(name.encode()) % 3}"


async def exported(store: Store) -> list[bytes]:
    """The export as a set: sorted."""
    return sorted([record_to_json(stored.record, stored.nulls) async for stored in store.records("S")])


async def told(store: Store) -> dict[str, Any]:
    """The facts that are about records, and not about how they travelled."""
    facts = msgspec.structs.asdict(await store.facts("S"))
    travelled = {"batches", "duplicate_batches", "duplicate_records", "last_batch_no"}
    return {name: value for name, value in facts.items() if name not in travelled}


async def offered(store: Store, now_ms: int) -> list[Any]:
    """What is pending, without the places that depend on the way it came."""
    items: list[Any] = []
    for item in await store.pending(now_ms=now_ms, idle_ms=IDLE, limit=10_000):
        if isinstance(item, PendingTask):
            actions = sorted(record_to_json(placed.record) for placed in item.task.actions)
            session = item.task.session and record_to_json(item.task.session)
            items.append(("task", item.task.task_id, actions, session, item.task.idle, item.projected_upto))
        else:
            kind = "session" if isinstance(item, PendingSession) else "graph"
            items.append((kind, "", record_to_json(item.record)))
    return sorted(items, key=repr)


def projector(store: Store, clock: ManualClock) -> Projector:
    """The real one."""
    return Projector(
        store, clock, rules_of=lambda _: RULES, models_of=lambda _: MODELS, idle_ms=IDLE, busy=lambda: False
    )


async def learnt(store: Store) -> tuple[list[Any], dict[Any, int], Any, list[CountRow]]:
    """Episodes and counts; whose they are; and what a training with a cap on producers would take of them."""
    found: AsyncIterator[Any] = store.episodes("S", EpisodeFilter())
    totals = await store.producers("S")
    rows: list[CountRow] = []
    for holdout in (False, True):
        await store.learnable_counts("S", rows.extend, holdout=holdout, weights=dict.fromkeys(totals, WHOLE // 3))
    return [episode async for episode in found], dict(await store.counts("S")), totals, rows


@EXAMPLES
@given(records=logs(), seeds=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
async def test_the_same_records_give_the_same_log(
    new_store: NewStore, records: list[Record], seeds: tuple[int, int]
) -> None:
    """Export, facts and pending items, open and idle."""
    results = []
    for seed in seeds:
        async with new_store() as store:
            for group in deliveries(records, seed):
                await store.ingest(group)
            results.append(
                (await exported(store), await told(store), await offered(store, NOW), await offered(store, NOW + IDLE))
            )
            facts = await store.facts("S")
            assert facts.records == len(records)
            assert facts.quarantined == 0
    assert results[0] == results[1]
    assert results[0][0] == sorted(record_to_json(record) for record in records)


@EXAMPLES
@given(records=logs(), seeds=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)))
async def test_projecting_as_records_come_equals_a_rebuild(
    new_store: NewStore, clock: ManualClock, records: list[Record], seeds: tuple[int, int]
) -> None:
    """With the real projector between any two groups, tasks idle or not: nothing is counted twice or left behind."""
    results = []
    for seed in seeds:
        chance = random.Random(seed)
        async with new_store() as store:
            now = ManualClock(NOW)
            project = projector(store, now)
            for group in deliveries(records, seed):
                await store.ingest(group)
                if chance.random() < 0.5:
                    now.jump(chance.choice([0, IDLE / 1000]))
                    await project.project_pending()
            now.jump(2 * IDLE / 1000)
            await project.catch_up()
            results.append(await learnt(store))
            facts = await store.facts("S")
            assert (facts.open_tasks, facts.episodes) == (0, len(results[-1][0]))
            await store.rebuild("S")
            await project.catch_up()
            assert await learnt(store) == results[-1]
            assert project.stats.faults == 0
    assert results[0] == results[1]
