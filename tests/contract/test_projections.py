"""Contract of `Projections`: when an item is ready, and what projecting it changes, on every store."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.contract.projection_building import (
    IDLE,
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
from worker.store.port import (
    PendingGraph,
    PendingSession,
    PendingTask,
    Store,
)
from worker.store.port.projections import HUGE_TASK

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
        PendingSession(scenario="S", batch_no=1, received_at_ms=NOW + 4, record=stats(), producer="node-1"),
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


async def test_only_what_the_asked_scenarios_left_is_pending(store: Store) -> None:
    """A scenario that is no longer served has no rules to be projected by."""
    await store.ingest(
        [
            incoming(action(0), stats(), graph(), seq=1, scenario="gone", ends=["t"]),
            incoming(action(0), stats(), graph(), seq=1, scenario="here", ends=["t"]),
            incoming(action(0, task_id="idle"), seq=2, scenario="gone"),
        ]
    )
    items = await store.pending(now_ms=NOW + IDLE, idle_ms=IDLE, limit=100, scenarios=["here", "unknown"])
    assert {item.task.scenario if isinstance(item, PendingTask) else item.scenario for item in items} == {"here"}
    assert len(items) == 3
    assert len(await store.pending(now_ms=NOW + IDLE, idle_ms=IDLE, limit=100)) == 7
    assert await store.pending(now_ms=NOW, idle_ms=IDLE, limit=100, scenarios=[]) == []


async def test_a_huge_task_is_not_projected_anew_for_each_late_record(store: Store) -> None:
    """Each time all of it is read and cut again: it waits until none comes for a millisecond an action."""
    many = [action(n) for n in range(HUGE_TASK)]
    await store.ingest([incoming(*many, seq=1, ends=["t"])])
    assert len(await ready(store)) == 1
    await project_all(store)
    size = HUGE_TASK + 1
    await store.ingest([incoming(action(size), seq=2, at_ms=NOW + 5)])
    assert await ready(store, now_ms=NOW + 5) == []
    assert await ready(store, now_ms=NOW + 5 + size) == []
    assert len(await ready(store, now_ms=NOW + 6 + size)) == 1
    assert len(await ready(store, now_ms=NOW)) == 1  # the clock was set back
    await store.rebuild("S")
    assert len(await ready(store, now_ms=NOW + 5)) == 1
