"""What a training reads of the aggregates: bounded, weighted by producer, the same of every store."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

from msgspec import Raw

from tests.contract.projection_building import (
    NOW,
    action,
    episode,
    incoming,
    project_all,
    projected,
    ready,
    ready_tasks,
    stats,
)
from worker.learning.bounds import FAMILIES, Family, bounded_rows
from worker.learning.counts import BucketedCounts, CountBucket, CountKey, CountRow, Counts
from worker.learning.shares import WHOLE, ProducerTotals
from worker.store.port import IncomingBatch, Store
from worker.wire.records import Batch, BatchIdentity, LearnStatsRecord, Success

NODES = ("node-1", "node-2", "-")


def some_counts(seed: int) -> BucketedCounts:
    """Counts of several producers and days, of more names than are taken."""
    chance = random.Random(seed)
    buckets: BucketedCounts = {}
    for day in range(3):
        for holdout in (False, True):
            for producer in NODES:
                counts: Counts = Counter()
                for _ in range(60):
                    names = tuple(chance.choices('abcdeé"', k=2))
                    counts[CountKey("log", "transition.visits", names)] += chance.randint(1, 9)
                    counts[CountKey("log", "transition.success", names)] += chance.randint(0, 3)
                    counts[CountKey("stats", "ngram.success", (*names, "x"))] += chance.randint(1, 3)
                    counts[CountKey("log", "action.kpi_micro", names[:1])] -= chance.randint(0, 10**9)
                    counts[CountKey("log", "action.visits", names[:1])] += 1
                counts[CountKey("log", "episodes.success", ())] = chance.randint(1, 50)
                buckets[CountBucket(day, holdout, producer)] = Counter({key: n for key, n in counts.items() if n})
    return buckets


async def stored_counts(store: Store, buckets: BucketedCounts) -> None:
    """Put them into the store by way of one item a bucket, as the projector does."""
    for number, (bucket, counts) in enumerate(buckets.items()):
        await store.ingest([incoming(stats(f"s{number}"), seq=number)])
        (item,) = await ready(store)
        await store.project([projected(item, change={bucket: counts})])


async def test_every_store_hands_over_what_the_rule_says(store: Store) -> None:
    """The best supported names of each family, the rest summed, a capped producer weighed down; seeded."""
    buckets = some_counts(7)
    await stored_counts(store, buckets)
    families = (Family("transition", 5, ("transition.visits",)), Family("ngram", 3, ("ngram.failure", "ngram.success")),
                Family("action", 100, ("action.visits",)), Family("episodes", None))  # fmt: skip
    for weights in ({}, {"node-2": WHOLE // 3}, {"-": 17, "node-1": WHOLE // 2}):
        for holdout in (False, True):
            got: list[CountRow] = []
            await store.learnable_counts("S", got.extend, holdout=holdout, weights=weights, families=families)
            expected: list[CountRow] = []
            mine = [(bucket, counts) for bucket, counts in buckets.items() if bucket.holdout == holdout]
            bounded_rows(mine, expected.extend, weights=weights, families=families)
            assert sorted(got) == sorted(expected)
            names = {row[2] for row in got if row[1] == "transition.visits"}
            assert len(names) == 6
            assert () in names
            assert ("log", "transition.left_out", (), 44) in got or weights or not holdout


async def test_whole_weights_and_wide_bounds_give_the_plain_sums(store: Store) -> None:
    """Nothing is lost on the way."""
    buckets = some_counts(8)
    await stored_counts(store, buckets)
    rows: list[CountRow] = []
    for holdout in (False, True):
        await store.learnable_counts("S", rows.extend, holdout=holdout, weights={}, families=FAMILIES)
    sums: Counter[CountKey] = Counter()
    for source, measure, names, number in rows:
        sums[CountKey(source, measure, names)] += number
    assert sums == await store.counts("S")
    await store.learnable_counts("unknown", rows.extend, holdout=False, weights={}, families=FAMILIES)


async def test_it_is_told_who_brought_what(store: Store) -> None:
    """Of the log where it saw any action. A producer's every epoch is the same producer."""
    await stored_counts(store, some_counts(9))
    totals = await store.producers("S")
    assert set(totals) == set(NODES)
    counts = await store.counts("S")
    assert sum(one.episodes for one in totals.values()) == counts[CountKey("log", "episodes.success", ())]
    assert sum(one.actions for one in totals.values()) == sum(
        n for key, n in counts.items() if key.measure == "action.visits"
    )
    assert await store.producers("unknown") == {}


async def test_without_a_log_learn_stats_tell_who_brought_what(store: Store) -> None:
    """Actions after another one are all they know of."""
    key = CountKey("stats", "contextual.visits", ("a", "b"))
    episodes = CountKey("stats", "episodes.failure", ())
    ended = CountKey("stats", "sessions.success", ())
    await stored_counts(store, {CountBucket(1, False, "n"): Counter({key: 5, episodes: 2, ended: 1})})  # noqa: FBT003
    assert await store.producers("S") == {"n": ProducerTotals(episodes=2, actions=5, sessions=1)}


def ended(session_id: str, producer: str | None, seq: int, at_ms: int) -> IncomingBatch:
    """The end of a session, told by a producer."""
    record = LearnStatsRecord(session_id, Raw(b"{}"), Success(1.0), 1, 1, at_ms)
    identity = BatchIdentity(producer, 0, seq, None) if producer else BatchIdentity(None, 0, None, session_id)
    batch = Batch(identity, hashlib.sha256(session_id.encode()).digest(), [record], None, 0)
    return IncomingBatch(scenario="S", batch=batch, body=b"{}", received_at_ms=at_ms, terminal_tasks=frozenset())


async def test_no_producer_has_more_than_its_share_of_the_newest_sessions(store: Store) -> None:
    """A flood of sessions that came last; and each session is found by its id."""
    for n in range(3):
        await store.ingest([ended(f"a{n}", "node-1", n, NOW + n), ended(f"x{n}", None, n, NOW + 10 + n)])
    await store.ingest([ended(f"f{n}", "flood", n, NOW + 100 + n) for n in range(50)])
    await project_all(store)
    found = await store.sessions("S", latest=20, most_of_one=2)
    assert [one.record.session_id for one in found] == ["f49", "f48", "x2", "x1", "a2", "a1"]
    assert len(await store.sessions("S", latest=20)) == 20
    (one,) = await store.sessions("S", session_id="a1")
    assert one.record.session_id == "a1"
    assert await store.sessions("S", session_id="nobody") == []
    assert await store.sessions("unknown", session_id="a1", most_of_one=3) == []


async def test_facts_tell_sessions_that_are_counted_and_episodes_by_learn_model(store: Store) -> None:
    """What triggers go by, as it comes, when it is revised, and in a rebuild."""
    await store.ingest([incoming(action(0), stats(task_ids=["t"]), seq=1, ends=["t"])])
    facts = await store.facts("S")
    assert (facts.sessions, facts.counted_sessions, facts.episodes_by_model) == (1, 0, {})
    (task,) = await ready_tasks(store)
    (session,) = [item for item in await ready(store) if item != task]
    two = [episode("m:t:1:0"), episode("o:t:1:0", learn_model="o")]
    await store.project([projected(task, *two), projected(session)])
    facts = await store.facts("S")
    assert (facts.counted_sessions, facts.episodes, facts.episodes_by_model) == (1, 2, {"m": 1, "o": 1})
    await store.ingest([incoming(action(1), seq=2)])
    (again,) = await ready(store)
    await store.project([projected(again, episode("m:t:1:0"), episode("m:t:1:1"))])
    facts = await store.facts("S")
    assert (facts.episodes, facts.episodes_by_model) == (2, {"m": 2})
    await store.rebuild("S")
    facts = await store.facts("S")
    assert (facts.sessions, facts.counted_sessions, facts.episodes_by_model) == (1, 0, {})
