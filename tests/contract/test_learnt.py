"""Contract of what is read of projections: episodes, counts, sessions, graphs, facts; on every store."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.contract.projection_building import (
    NOW,
    Reopen,
    action,
    all_episodes,
    counts,
    episode,
    graph,
    incoming,
    project_all,
    projected,
    ready,
    ready_tasks,
    stats,
)
from worker.learning.counts import CountKey
from worker.store.port import (
    EpisodeFilter,
    PendingTask,
    RollingOutcomes,
    Store,
)
from worker.wire.records import (
    Failure,
    Outcome,
    Success,
    Timeout,
    Unknown,
)

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


async def test_a_rebuild_remembers_the_rules_it_was_made_for(store: Store) -> None:
    """Naming none leaves what was remembered."""
    assert await store.projected_under("S") is None
    await store.rebuild("S", under="rules 1")
    await store.rebuild("S")
    assert await store.projected_under("S") == "rules 1"
    await store.rebuild("S", under="rules 2")
    assert (await store.projected_under("S"), await store.projected_under("T")) == ("rules 2", None)


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
