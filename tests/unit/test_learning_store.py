"""The learning store over a store that holds sessions and counts."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from worker.errors import NotFound
from worker.learning.counts import CountKey, Counts
from worker.learning.merging import TimeDecay
from worker.learning.snapshots import LearningSnapshot
from worker.store.port import Session, Store
from worker.store.snapshots import LearningStore, SessionGroup
from worker.wire.records import Failure, LearnStatsRecord, Outcome, Success, Unknown


def session(name: str, at: int, outcome: Outcome | None = None, **fields: Any) -> Session:
    stats = {"episode_transitions": {"success_transitions": [["a", "b", 4]], "success_episodes": 1}}
    record = LearnStatsRecord(
        session_id=name,
        stats_json=msgspec.Raw(msgspec.json.encode(stats)),
        outcome=outcome or Success(1),
        total_ticks=1,
        total_actions=1,
        **fields,
    )
    return Session(scenario="S", batch_no=at, received_at_ms=at, record=record)


class Fake:
    """Sessions of scenario S, and counts of any."""

    def __init__(self, sessions: list[Session], counts: dict[str, Counts] | None = None) -> None:
        self._sessions = sessions
        self._counts = counts or {}

    async def scenarios(self) -> list[str]:
        return list(self._counts)

    async def counts(self, scenario: str) -> Counts:
        return self._counts.get(scenario, Counts())

    async def sessions(
        self,
        scenario: str,
        *,
        latest: int | None = None,
        since_ms: int = 0,
        until_ms: int = 10**15,
        group_id: str | None = None,
        session_id: str | None = None,
    ) -> list[Session]:
        found = [
            one
            for one in self._sessions
            if one.scenario == scenario
            and since_ms <= one.received_at_ms <= until_ms
            and (group_id is None or one.record.group_id == group_id)
            and session_id in (None, one.record.session_id)
        ]
        return sorted(found, key=lambda one: -one.received_at_ms)[:latest]


def learning_store(*sessions: Session, counts: dict[str, Counts] | None = None) -> LearningStore:
    return LearningStore(cast("Store", Fake(list(sessions), counts)))


async def test_sessions_are_listed_newest_first_and_loaded_by_id() -> None:
    store = learning_store(session("s1", 1), session("s2", 2))
    assert await store.list_sessions("S") == ["s2", "s1"]
    assert (await store.load_session("S", "s1")).metadata.session_id == "s1"


async def test_a_session_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="no ended session 's9'"):
        await learning_store(session("s1", 1)).load_session("S", "s9")


def ids(snapshots: list[LearningSnapshot]) -> list[str | None]:
    return [one.metadata.session_id for one in snapshots]


async def test_queries_by_time_and_number() -> None:
    store = learning_store(*(session(f"s{at}", at) for at in (1, 2, 3, 4)))
    assert ids(await store.query_range("S", 2, 3)) == ["s3", "s2"]
    assert ids(await store.query_since("S", 3)) == ["s4", "s3"]
    assert ids(await store.query_latest("S", 1)) == ["s4"]


async def test_merging_takes_the_newest_sessions_and_a_strategy() -> None:
    store = learning_store(session("s1", 1), session("s2", 2), session("s3", 3))
    assert (await store.merge("S")).episode_transitions.success_transitions == {("a", "b"): 12}
    assert (await store.merge("S", latest=2)).metadata.session_count == 2
    decayed = await store.merge("S", TimeDecay(half_life_sessions=1))
    assert decayed.episode_transitions.success_transitions == {("a", "b"): 4 + 2 + 1}


async def test_aggregates_come_from_the_counts() -> None:
    """Each scenario from its own best source, all of them together in the global one."""
    counts = {
        "S": Counts(
            {CountKey("log", "action.visits", ("a",)): 3, CountKey("stats", "contextual.visits", ("x", "a")): 9}
        ),
        "T": Counts(
            {CountKey("stats", "contextual.visits", ("b", "a")): 2, CountKey("stats", "sessions.success", ()): 1}
        ),
    }
    store = learning_store(session("s1", 7), counts=counts)
    scenario = await store.load_scenario("S")
    assert scenario.action_stats["a"].visits == 3
    assert scenario.metadata.created_at == 7
    assert (await store.load_global()).action_stats["a"].visits == 5
    assert (await store.load_global()).metadata.scenario_name is None


async def test_a_scenario_without_counts_is_not_found_and_the_global_one_is_empty() -> None:
    """Contract fact: missing is "not found", not a failure."""
    with pytest.raises(NotFound):
        await learning_store().load_scenario("S")
    assert (await learning_store().load_global()).action_stats == {}


async def test_session_groups_gather_phase_sessions_and_success() -> None:
    store = learning_store(
        session("s1", 5, group_id="g5", phase="bootstrap"),
        session("s2", 6, Failure("no"), group_id="g5", phase="bootstrap"),
        session("s3", 7, Unknown(), group_id="g5", phase="bootstrap"),
        session("s4", 9, Unknown(), group_id="g9"),
        session("s5", 10),
    )
    groups = await store.session_groups("S")
    assert [group.id for group in groups] == ["g9", "g5"]
    assert groups[0].success_rate is None
    assert groups[1] == SessionGroup(
        id=groups[1].id,
        scenario="S",
        phase="bootstrap",
        session_ids=["s1", "s2", "s3"],
        created_at=5,
        success_rate=0.5,
    )
    assert await store.session_group("S", "g5") == groups[1]
    with pytest.raises(NotFound, match="'g1'"):
        await store.session_group("S", "g1")
