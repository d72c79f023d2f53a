"""Contract of `Projections` and of what `Facts` tells of them, on every store."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import msgspec
import pytest
from msgspec import Raw

from worker.episodes.episode import Episode
from worker.learning.counts import BucketedCounts, CountBucket, CountKey
from worker.store.port import (
    EpisodeFilter,
    IncomingBatch,
    Pending,
    PendingGraph,
    PendingSession,
    PendingTask,
    Projection,
    RollingOutcomes,
    Store,
)
from worker.wire.records import (
    ActionRecord,
    Batch,
    BatchIdentity,
    DependencyGraphRecord,
    Failure,
    LearnStatsRecord,
    Outcome,
    Record,
    Success,
    Timeout,
    Unknown,
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


# ---------------------------------------------------------------- when a task is ready


async def test_an_open_task_waits_until_it_is_closed(store: Store) -> None:
    """By a terminal action, whichever batch brings it."""
    await store.ingest([incoming(action(0), seq=1)])
    assert await ready(store) == []
    await store.ingest([incoming(action(1), action(0, "u"), seq=2, ends=["t"])])
    [item] = await ready_tasks(store)
    assert (item.task.task_id, item.upto, item.projected_upto, item.projected_idle) == ("t", 2, None, False)
    assert (item.task.scenario, item.task.session, item.session_batch_no, item.task.idle) == ("S", None, None, False)


async def test_a_pending_task_has_all_of_its_actions_with_their_places(store: Store) -> None:
    group = [
        incoming(action(5), action(0, "u"), action(3), seq=7),
        incoming(action(4), seq=8, at_ms=NOW + 3, ends=["t"]),
    ]
    await store.ingest(group)
    [item] = await ready_tasks(store)
    placed = sorted(item.task.actions, key=lambda placed: placed.place)
    assert [(p.record, p.batch_no, p.received_at_ms, p.place) for p in placed] == [
        (action(5), 1, NOW, ("node-1", 2, 7, 0)),
        (action(3), 1, NOW, ("node-1", 2, 7, 2)),
        (action(4), 2, NOW + 3, ("node-1", 2, 8, 0)),
    ]


async def test_a_quiet_task_is_closed_after_the_idle_timeout(store: Store) -> None:
    await store.ingest([incoming(action(0), seq=1)])
    await store.ingest([incoming(action(1), seq=2, at_ms=NOW + 10)])
    assert await ready_tasks(store, now_ms=NOW + 9 + IDLE) == []
    [item] = await ready_tasks(store, now_ms=NOW + 10 + IDLE)
    assert item.task.idle


@pytest.mark.parametrize("stats_first", [False, True])
@pytest.mark.parametrize("listed", [False, True])
async def test_the_end_of_its_session_closes_a_task(
    store: Store, reopen: Reopen, *, stats_first: bool, listed: bool
) -> None:
    """Whether the action names the session or the stats list the task, and whichever comes first."""
    record = action(0, session_id=None if listed else "s")
    end = stats("s", ["t"] if listed else None)
    await store.ingest([incoming(end if stats_first else record, seq=1)])
    async with reopen(store) as again:
        assert await ready_tasks(again) == []
        await again.ingest([incoming(record if stats_first else end, seq=2)])
        [item] = await ready_tasks(again)
    assert (item.task.session, item.session_batch_no, item.upto) == (end, 1 if stats_first else 2, 2)
    assert [placed.record for placed in item.task.actions] == [record]


async def test_a_task_and_its_session_may_come_in_one_batch(store: Store) -> None:
    await store.ingest([incoming(action(0, session_id="s"), stats("s"), action(0, "u"), seq=1)])
    [item] = await ready_tasks(store)
    assert (item.task.task_id, item.task.session, item.upto) == ("t", stats("s"), 1)


async def test_a_session_of_another_scenario_closes_nothing(store: Store) -> None:
    await store.ingest([incoming(action(0, session_id="s"), seq=1), incoming(stats("s", ["t"]), seq=1, scenario="T")])
    assert await ready_tasks(store) == []


async def test_a_session_may_close_many_tasks_and_a_task_name_many_sessions(store: Store) -> None:
    """The first session that ends is the one it belongs to from then on."""
    named = [action(0, session_id="a"), action(1, session_id="b"), action(0, "u", session_id="b")]
    await store.ingest([incoming(*named, seq=1), incoming(stats("b"), seq=2), incoming(stats("a"), seq=3)])
    found = [
        (item.task.task_id, item.task.session, item.session_batch_no, item.upto) for item in await ready_tasks(store)
    ]
    assert found == [("t", stats("b"), 2, 2), ("u", stats("b"), 2, 2)]


# ---------------------------------------------------------------- projecting


async def test_what_was_projected_is_pending_no_more(store: Store, reopen: Reopen) -> None:
    await store.ingest([incoming(action(0), stats(), graph(), seq=1, ends=["t"])])
    items = await ready(store)
    assert {type(item) for item in items} == {PendingTask, PendingSession, PendingGraph}
    await store.project([projected(item) for item in items])
    assert await ready(store, now_ms=NOW + 2 * IDLE) == []
    async with reopen(store) as again:
        assert await ready(again, now_ms=NOW + 2 * IDLE) == []


async def test_pending_sessions_and_graphs_carry_record_and_place(store: Store) -> None:
    await store.ingest([incoming(action(0), stats(), graph(), seq=1, at_ms=NOW + 4)])
    assert await ready(store) == [
        PendingSession(scenario="S", batch_no=1, received_at_ms=NOW + 4, record=stats()),
        PendingGraph(scenario="S", batch_no=1, index=2, received_at_ms=NOW + 4, record=graph()),
    ]


async def test_a_late_record_makes_a_projected_task_ready_at_once(store: Store) -> None:
    """With what was projected of it, so that the difference can be taken; a duplicate does not."""
    await store.ingest([incoming(action(0), seq=1, ends=["t"])])
    await project_all(store, now_ms=NOW + IDLE)
    await store.ingest([incoming(action(0), seq=2)])
    assert await ready(store) == []
    await store.ingest([incoming(action(1), seq=3, at_ms=NOW + IDLE)])
    [item] = await ready_tasks(store, now_ms=NOW + IDLE)
    assert (item.upto, item.projected_upto, item.projected_idle, item.task.idle) == (3, 1, True, False)
    assert len(item.task.actions) == 2


async def test_a_session_that_ends_late_makes_its_projected_tasks_ready(store: Store) -> None:
    await store.ingest([incoming(action(0, session_id="s"), seq=1, ends=["t"])])
    await project_all(store)
    await store.ingest([incoming(stats("s"), seq=2)])
    [item] = await ready_tasks(store)
    assert (item.upto, item.projected_upto, item.session_batch_no) == (2, 1, 2)


async def test_an_open_tail_comes_once_more_when_it_is_idle(store: Store) -> None:
    await store.ingest([incoming(action(0), action(1), seq=1, ends=["t"])])
    [item] = await ready_tasks(store)
    await store.project([projected(item, open_tail=True)])
    assert await ready(store, now_ms=NOW + IDLE - 1) == []
    [item] = await ready_tasks(store, now_ms=NOW + IDLE)
    assert (item.upto, item.projected_upto, item.projected_idle, item.task.idle) == (1, 1, False, True)
    await store.project([projected(item)])
    assert await ready(store, now_ms=NOW + 5 * IDLE) == []


async def test_an_item_that_changed_since_it_was_read_stays_pending(store: Store) -> None:
    await store.ingest([incoming(action(0), seq=1, ends=["t"])])
    [item] = await ready_tasks(store)
    await store.ingest([incoming(action(1), seq=2)])
    await store.project([projected(item)])
    [item] = await ready_tasks(store)
    assert (item.upto, item.projected_upto) == (2, 1)


async def test_the_same_item_projected_twice_counts_once(store: Store) -> None:
    """A second projector, or the same one after a lost answer, adds nothing."""
    await store.ingest([incoming(action(0), stats(), graph(), seq=1, ends=["t"])])
    items = await ready(store)
    for _ in range(2):
        await store.project([projected(item, change=counts(n=1)) for item in (*items, *items)])
    assert sum((await store.counts("S")).values()) == 3


async def test_a_projection_of_before_a_rebuild_is_dropped(store: Store) -> None:
    """Its counts are a difference to what the rebuild took away."""
    await store.ingest([incoming(action(0), seq=1, ends=["t"])])
    await project_all(store)
    await store.ingest([incoming(action(1), seq=2)])
    [late] = await ready_tasks(store)
    await store.rebuild("S")
    await store.project([projected(late, episode(), change=counts(n=-1))])
    assert (await store.counts("S"), await all_episodes(store)) == (Counter(), [])
    [item] = await ready_tasks(store)
    assert item.projected_upto is None


async def test_the_limit_bounds_the_actions_read_but_never_starves(store: Store) -> None:
    for task in range(5):
        records = [action(n, f"t{task}") for n in range(10)]
        await store.ingest([incoming(*records, seq=task, ends=[f"t{task}"])])
    assert len(await ready(store, limit=1)) == 1
    assert len(await ready(store, limit=11)) == 2
    seen = set()
    while items := await ready(store, limit=15):
        seen |= {item.task.task_id for item in items if isinstance(item, PendingTask)}
        await store.project([projected(item) for item in items])
    assert len(seen) == 5


async def test_open_tasks_are_those_no_projection_has_taken(store: Store) -> None:
    await store.ingest([incoming(action(0), action(0, "u"), stats("s", ["later"]), seq=1, ends=["t"])])
    assert (await store.facts("S")).open_tasks == 2
    await project_all(store)
    await store.ingest([incoming(action(1), seq=2)])
    assert (await store.facts("S")).open_tasks == 1
    await project_all(store)
    assert (await store.facts("S")).open_tasks == 1


# ---------------------------------------------------------------- episodes and counts


async def test_episodes_of_a_task_are_replaced_as_a_whole(store: Store) -> None:
    await store.ingest([incoming(action(0), action(0, "u"), seq=1, ends=["t", "u"])])
    first, second = await ready_tasks(store)
    await store.project(
        [projected(first, episode("m:t:1:0"), episode("m:t:1:1")), projected(second, episode("m:u:1:0"))]
    )
    await store.ingest([incoming(action(1), seq=2)])
    [revised] = await ready_tasks(store)
    await store.project([projected(revised, episode("m:t:1:0", outcome=Failure("late")))])
    found = await all_episodes(store)
    assert [(e.episode_id, e.outcome) for e in found] == [("m:t:1:0", Failure("late")), ("m:u:1:0", Success(1.0))]
    assert (await store.facts("S")).episodes == 2


async def test_counts_add_subtract_and_vanish_at_zero(store: Store, reopen: Reopen) -> None:
    await store.ingest([incoming(action(0), action(0, "u"), seq=1, ends=["t", "u"])])
    first, second = await ready_tasks(store)
    big = 2**60
    await store.project(
        [projected(first, change=counts(x=2, y=big)), projected(second, change=counts(2, holdout=True, x=-1, y=big))]
    )
    await store.ingest([incoming(action(1), seq=2)])
    [revised] = await ready_tasks(store)
    await store.project([projected(revised, change=counts(y=-big) | counts(2, x=5))])
    async with reopen(store) as again:
        key = {name: CountKey("log", name, ("a", "b")) for name in "xy"}
        assert await again.counts("S") == {key["x"]: 6, key["y"]: big}
        assert await again.counts("S", holdout=False) == {key["x"]: 7}
        assert await again.counts("S", since_day=2) == {key["x"]: 4, key["y"]: big}
        assert await again.counts("nobody") == {}


async def test_counts_of_all_scenarios_are_their_sum(store: Store) -> None:
    await store.ingest([incoming(action(0), seq=1, ends=["t"]), incoming(action(0), seq=1, scenario="T", ends=["t"])])
    await store.project([projected(item, change=counts(x=1)) for item in await ready(store)])
    [(key, total)] = (await store.counts(None)).items()
    assert (total, (await store.counts("T"))[key]) == (2, 1)


FOUND = [
    episode("m:1", ended_at_ms=1, outcome=Success(0.2), task_id="t", worker_id=0, group_id="g", session_id="s"),
    episode("m:2", ended_at_ms=2, outcome=Failure("f"), task_id="t", worker_id=1, group_id="h", session_id="s"),
    episode("n:3", ended_at_ms=3, outcome=Timeout(0.5), learn_model="n", holdout=True, tags={"k": "v"}),
    episode("m:4", ended_at_ms=3, outcome=Unknown(), mean_kpi=0.5, start_tick=1, end_tick=9, duration_ms=7),
]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, ["m:1", "m:2", "m:4", "n:3"]),
        ({"newest_first": True}, ["n:3", "m:4", "m:2", "m:1"]),
        ({"newest_first": True, "limit": 2, "offset": 1}, ["m:4", "m:2"]),
        ({"offset": 3}, ["n:3"]),
        ({"limit": 0}, []),
        ({"learn_model": "n"}, ["n:3"]),
        ({"outcome": "failure"}, ["m:2"]),
        ({"outcome": "unknown"}, ["m:4"]),
        ({"min_score": 0.2}, ["m:1", "n:3"]),
        ({"group_id": "g"}, ["m:1"]),
        ({"session_id": "s"}, ["m:1", "m:2"]),
        ({"task_id": "t", "worker_id": 0}, ["m:1"]),
        ({"since_ms": 2, "until_ms": 3}, ["m:2", "m:4", "n:3"]),
        ({"until_ms": 2}, ["m:1", "m:2"]),
        ({"holdout": True}, ["n:3"]),
        ({"holdout": False}, ["m:1", "m:2", "m:4"]),
    ],
)
async def test_episodes_are_found_by_every_filter(store: Store, where: dict[str, Any], expected: list[str]) -> None:
    """Times are inclusive; the order is that of their ends, then of their ids."""
    await store.ingest([incoming(action(0), seq=1, ends=["t"])])
    [item] = await ready_tasks(store)
    await store.project([projected(item, *reversed(FOUND))])
    found = await all_episodes(store, **where)
    assert [e.episode_id for e in found] == expected
    assert all(e in FOUND for e in found)
    unbounded = {name: value for name, value in where.items() if name not in {"limit", "offset"}}
    fitting = await all_episodes(store, **unbounded)
    assert await store.count_episodes("S", EpisodeFilter(**where)) == len(fitting)
    assert await all_episodes(store, "nowhere", **where) == []


async def test_many_episodes_come_page_by_page(store: Store) -> None:
    await store.ingest([incoming(action(0), seq=1, ends=["t"])])
    [item] = await ready_tasks(store)
    made = [episode(f"m:{n:05}", ended_at_ms=n // 700) for n in range(2_500)]
    await store.project([projected(item, *made)])
    assert await all_episodes(store) == made
    assert await all_episodes(store, newest_first=True) == made[::-1]
    assert await all_episodes(store, offset=5, limit=2_100) == made[5:2_105]


@pytest.mark.parametrize("outcome", [Success(1), Success(0.5), Failure("x"), Timeout(None), Timeout(0.25), Unknown()])
async def test_an_episode_comes_back_as_it_was_made(store: Store, outcome: Outcome) -> None:
    made = episode(outcome=outcome, actions=["a", "ü"], strategy="UCB1", tags={"a": "b"}, mean_kpi=0.1, worker_id=3)
    await store.ingest([incoming(action(0), seq=1, ends=["t"])])
    [item] = await ready_tasks(store)
    await store.project([projected(item, made)])
    assert await all_episodes(store) == [made]


async def test_a_graph_may_become_an_episode(store: Store) -> None:
    await store.ingest([incoming(graph(), graph("q"), seq=1)])
    items = await ready(store)
    await store.project([projected(item, episode(f"m:{at}")) for at, item in enumerate(items)])
    assert [e.episode_id for e in await all_episodes(store)] == ["m:0", "m:1"]
    assert (await store.facts("S")).episodes == 2


async def test_rolling_outcomes_are_the_newest_known_ones(store: Store) -> None:
    """Unknown ones do not enter; a timeout scores what was reached by then."""
    await store.ingest([incoming(action(0), seq=1, ends=["t"])])
    [item] = await ready_tasks(store)
    assert await store.rolling_outcomes("S", learn_model="m", sample=5) is None
    outcomes = [Success(0.5), Failure("f"), Unknown(), Timeout(0.25), Success(0.75)]
    await store.project(
        [projected(item, *(episode(f"m:{n}", ended_at_ms=n, outcome=o) for n, o in enumerate(outcomes)))]
    )
    assert await store.rolling_outcomes("S", learn_model="m", sample=2) == RollingOutcomes(2, 0.5, 0.5)
    assert await store.rolling_outcomes("S", learn_model="m", sample=99) == RollingOutcomes(4, 0.5, 0.375)
    assert await store.rolling_outcomes("S", learn_model="n", sample=5) is None
    assert await store.rolling_outcomes("nobody", learn_model="m", sample=5) is None


async def test_a_rebuild_makes_the_whole_log_pending_again(store: Store) -> None:
    """Of this scenario only."""
    for name in ("S", "T"):
        await store.ingest([incoming(action(0), stats(), graph(), action(0, "open"), seq=1, scenario=name, ends=["t"])])
    before = await ready(store)
    await store.project([projected(item, episode(), change=counts(x=1)) for item in before])
    await store.rebuild("S")
    after = await ready(store)
    assert after == [item for item in before if (item.task if isinstance(item, PendingTask) else item).scenario == "S"]
    facts = {name: await store.facts(name) for name in ("S", "T")}
    assert {name: (f.episodes, f.open_tasks, f.records, f.sessions) for name, f in facts.items()} == {
        "S": (0, 2, 4, 1),
        "T": (2, 1, 4, 1),
    }
    assert (await store.counts("S"), await all_episodes(store, "S")) == (Counter(), [])
    assert sum((await store.counts("T")).values()) == 3
    await store.rebuild("nobody")


# ---------------------------------------------------------------- sessions and graphs


async def test_sessions_are_found_newest_first(store: Store) -> None:
    """By their own time where sent, so that a late one does not push out a newer one."""
    sent = [
        stats("a", timestamp_ms=NOW - 5, group_id="g", phase="release"),
        stats("b", timestamp_ms=NOW + 5, group_id="g"),
        stats("c", phase="release"),
    ]
    await store.ingest([incoming(*sent[1:], seq=1), incoming(sent[0], seq=2, at_ms=NOW + 9)])

    async def ids(**where: Any) -> str:
        return "".join(found.record.session_id for found in await store.sessions("S", **where))

    assert await ids() == "bca"
    assert await ids(latest=2) == "bc"
    assert await ids(since_ms=NOW) == "bc"
    assert await ids(until_ms=NOW) == "ca"
    assert await ids(group_id="g") == "ba"
    assert await ids(phase="release", latest=1) == "c"
    assert await store.sessions("nobody") == []
    [oldest] = await store.sessions("S", until_ms=NOW - 1)
    assert (oldest.scenario, oldest.batch_no, oldest.received_at_ms, oldest.record) == ("S", 2, NOW + 9, sent[0])


async def test_graphs_are_found_newest_first_projected_or_not(store: Store) -> None:
    await store.ingest([incoming(graph("b", NOW + 5), graph("c"), seq=1), incoming(graph("a", NOW - 5), seq=2)])
    await project_all(store)
    assert [found.record.prompt for found in await store.graphs("S", latest=9)] == ["b", "c", "a"]
    [newest] = await store.graphs("S", latest=1)
    assert (newest.scenario, newest.batch_no, newest.index, newest.received_at_ms) == ("S", 1, 0, NOW)
    assert await store.graphs("nobody", latest=9) == []
