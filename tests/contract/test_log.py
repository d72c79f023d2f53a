"""Contract of `RecordLog`, on every store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from tests.contract.log_building import NOW, Reopen, action, everything, incoming, llm, quarantined, reject, stats
from worker.episodes.task import UNNAMED
from worker.errors import DataRefused, NotFound, StoreUnavailable
from worker.store.port import (
    Duplicate,
    Quarantined,
    Store,
    Stored,
)
from worker.wire.codec import decode_batch, record_to_json
from worker.wire.reasons import Reason
from worker.wire.records import (
    ActionRecord,
    Batch,
    DependencyGraphRecord,
    LearnStatsRecord,
    LlmCallRecord,
    Record,
    StrategyAdviceRecord,
    Timeout,
)

# ---------------------------------------------------------------- batches


async def test_a_batch_is_stored_with_its_place_in_the_log(store: Store) -> None:
    assert await store.ingest([incoming(action(0), action(1), seq=1), incoming(action(2), seq=2, at_ms=NOW + 5)]) == [
        Stored(1, 2, 0),
        Stored(2, 1, 0),
    ]
    places = [(s.batch_no, s.index, s.received_at_ms, s.record) for s in await everything(store)]
    assert places == [(1, 0, NOW, action(0)), (1, 1, NOW, action(1)), (2, 0, NOW + 5, action(2))]


async def test_an_empty_group_changes_nothing(store: Store) -> None:
    assert await store.ingest([]) == []
    assert await store.scenarios() == []


@pytest.mark.parametrize("road", [{"seq": 7}, {"batch_id": "b-1"}])
async def test_the_same_batch_again_is_a_duplicate(store: Store, road: dict[str, Any]) -> None:
    """In a later group and inside one group alike."""
    batch = incoming(action(0), **road)
    assert await store.ingest([batch, batch]) == [Stored(1, 1, 0), Duplicate()]
    assert await store.ingest([batch]) == [Duplicate()]
    facts = await store.facts("S")
    assert (facts.batches, facts.records, facts.duplicate_batches, facts.duplicate_records) == (1, 1, 2, 0)


@pytest.mark.parametrize("road", [{"seq": 7}, {"batch_id": "b-1"}])
async def test_another_content_under_the_same_identity_is_quarantined_as_key_conflict(
    store: Store, road: dict[str, Any]
) -> None:
    """Never overwritten, never dropped; its neighbours are stored and the numbers have no gap."""
    other = incoming(action(1), **road)
    group = [incoming(action(0), **road), other, incoming(action(2), seq=99)]
    assert await store.ingest(group) == [Stored(1, 1, 0), Quarantined(Reason.KEY_CONFLICT), Stored(2, 1, 0)]
    assert [s.record for s in await everything(store)] == [action(0), action(2)]
    [entry] = await quarantined(store)
    assert (entry.reason, entry.body, entry.scenario) == ("key_conflict", other.body, "S")


async def test_an_identity_belongs_to_its_scenario_producer_and_epoch(store: Store) -> None:
    group = [
        incoming(action(0), seq=1),
        incoming(action(1), seq=1, producer="node-2"),
        incoming(action(2), seq=1, epoch=1),
        incoming(action(0), seq=1, scenario="T"),
        incoming(action(3), batch_id="1"),
        incoming(action(3), batch_id="1", scenario="T"),
    ]
    assert await store.ingest(group) == [Stored(number, 1, 0) for number in range(1, 7)]
    assert await store.scenarios() == ["S", "T"]


async def test_identities_survive_a_restart(store: Store, reopen: Reopen) -> None:
    """And so do the numbers of batches, tasks and sessions."""
    group = [incoming(action(0, session_id="s"), seq=1), incoming(llm(record_id="r"), stats(), batch_id="b")]
    await store.ingest(group)
    async with reopen(store) as again:
        assert await again.ingest(group) == [Duplicate(), Duplicate()]
        recut = incoming(action(0, session_id="s"), llm(record_id="r"), stats(), action(0, "other"), seq=2)
        assert await again.ingest([recut]) == [Stored(3, 1, 3)]
        assert len(await everything(again)) == 4


async def test_data_the_store_refuses_leaves_nothing_behind(store: Store) -> None:
    """The whole group is refused; without the culprit it goes in, under the numbers it would have had."""
    good, bad = incoming(action(0), seq=1, scenario="new"), incoming(action(1), seq=2, at_ms=2**63)
    with pytest.raises(DataRefused):
        await store.ingest([good, reject(), bad])
    assert (await store.scenarios(), await quarantined(store)) == ([], [])
    assert await store.ingest([good]) == [Stored(1, 1, 0)]
    assert len(await everything(store, "new")) == 1


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.ingest([incoming(action(0), seq=1)])
    with pytest.raises(StoreUnavailable):
        await store.facts("S")


# ---------------------------------------------------------------- records


async def test_records_of_recut_batches_count_once(store: Store) -> None:
    """Actions by task and event id, sessions by their id, others by `record_id`."""
    first: list[Record] = [
        action(0),
        action(1),
        action(0, "u"),
        stats(),
        llm(record_id="r"),
        action(None, record_id="a"),
    ]
    again: list[Record] = [
        action(1),
        llm(record_id="r"),
        action(2),
        stats(),
        action(None, record_id="a"),
        action(0, "u"),
    ]
    assert await store.ingest([incoming(*first, seq=1)]) == [Stored(1, 6, 0)]
    assert await store.ingest([incoming(*again, seq=2)]) == [Stored(2, 1, 5)]
    facts = await store.facts("S")
    assert (facts.records, facts.duplicate_records, facts.sessions) == (7, 5, 1)
    assert [s.record for s in await everything(store)] == [*first, action(2)]


async def test_records_repeated_inside_one_group_count_once(store: Store) -> None:
    group = [incoming(action(0), action(0), stats(), stats(), seq=1), incoming(llm(record_id="r"), action(0), seq=2)]
    group.append(incoming(llm(record_id="r"), seq=3))
    assert await store.ingest(group) == [Stored(1, 2, 2), Stored(2, 1, 1), Stored(3, 0, 1)]
    assert len(await everything(store)) == 3


async def test_a_record_identity_belongs_to_its_scenario(store: Store) -> None:
    records: tuple[Record, ...] = (action(0), stats(), llm(record_id="r"))
    await store.ingest([incoming(*records, seq=1), incoming(*records, seq=1, scenario="T")])
    assert [len(await everything(store, name)) for name in ("S", "T")] == [3, 3]


async def test_records_without_identity_are_told_apart_by_their_place(store: Store) -> None:
    """Two equal calls in one batch are two calls."""
    assert await store.ingest([incoming(llm(), llm(), action(None), action(None), seq=1)]) == [Stored(1, 4, 0)]
    assert len(await everything(store)) == 4


async def test_a_conflicting_record_is_quarantined_alone(store: Store) -> None:
    """Its neighbours are stored, what was there stays."""
    await store.ingest([incoming(action(0), stats(), llm(record_id="r"), seq=1)])
    changed: list[Record] = [action(0, action="jump"), stats(total_ticks=9), llm("other", record_id="r")]
    assert await store.ingest([incoming(action(1), *changed, action(2), seq=2)]) == [Stored(2, 2, 0, 3)]
    stored = [s.record for s in await everything(store)]
    assert stored == [action(0), stats(), llm(record_id="r"), action(1), action(2)]
    entries = await quarantined(store)
    assert {entry.reason for entry in entries} == {"record_conflict"}
    bodies = {decode_record(entry.body) for entry in entries}
    assert bodies == {record_to_json(record) for record in changed}
    assert (await store.facts("S")).quarantined == 3
    assert (await store.facts("S")).records == 5


def decode_record(body: bytes) -> bytes:
    """What stands in a quarantined record's body, which is a message of its own."""
    batch = decode_batch(body, scenario="S", content_type="application/json", content_encoding=None)
    assert isinstance(batch, Batch)
    [record] = batch.records
    return record_to_json(record)


async def test_a_conflict_inside_one_group_is_found(store: Store) -> None:
    group = [incoming(action(0), stats(), llm(record_id="r"), seq=1)]
    group.append(incoming(action(0, tick=8), stats(total_actions=0), llm("q", record_id="r"), seq=2))
    assert await store.ingest(group) == [Stored(1, 3, 0), Stored(2, 0, 0, 3)]


async def test_what_says_the_same_is_no_conflict(store: Store) -> None:
    """1 and 1.0, null and absent: another spelling of the same record."""
    await store.ingest([incoming(action(0, kpi=1), seq=1)])
    again = incoming(action(0, kpi=1.0), seq=2)
    again.batch.nulls = [1 << 7]
    assert await store.ingest([again]) == [Stored(2, 0, 1)]


FULL: list[Record] = [
    ActionRecord(
        task_id="t/ü \u0001\U0001f600", tick=2**63 - 1, worker_id=0, action="l'ook\"; DROP TABLE record --",
        event_id=2**63 - 1, session_id="s", group_id="g", target="%s {} \\ \n", success=False, error="e\u2028",
        duration_ms=0, timestamp_ms=NOW, kpi=1.0, discoveries=0, output="x" * 65_536, cost=1, selection_logic="UCB1",
        from_guidance=True, previous_action="p", lora="l", propensity=5e-324, candidates=["a", ""], policy_version="v",
        record_id="r",
    ),
    ActionRecord(task_id="t", tick=0, worker_id=0, action="a", kpi=-0.1, candidates=[], success=True, propensity=1),
    LlmCallRecord("decide", "p", "", "m", "e", 0, "l", NOW, 3, "err", "t", "s", "rec"),
    DependencyGraphRecord("p", "r", ["a"], [], ["b"], "m", "e", 1, NOW, "l", "err", "s", "rec2"),
    StrategyAdviceRecord(
        timestamp_ms=NOW, tick=1, advisor="adv", current_strategy="c", recommended="r", should_change=True,
        confidence=1,
        reason="why", frontier_count=2, total_visits=3, failure_rate=0.5, latency_ms=4, success=False, error="err",
        session_id="s", record_id="rec3",
    ),
    LearnStatsRecord(
        "s", Raw(b'{"a" : [1.0, 1e3, "\\u00fc"], "b":null}'), Timeout(0.5), 1, 2, NOW, "S", "Release", "g",
        ["t", "u"], "r",
    ),
    LearnStatsRecord("s2", Raw(b'"{\\"a\\": 1}"'), Timeout(), 1, 2),
]  # fmt: skip


async def test_every_field_comes_back_as_it_was_sent(store: Store, reopen: Reopen) -> None:
    """1 stays 1 and 1.0 stays 1.0, explicit nulls are known, `stats_json` is the very text."""
    batch = incoming(*FULL, seq=1)
    batch.batch.nulls = [0, 1 << 8 | 1 << 23, 0, 0, 0, 0, 1 << 6]
    await store.ingest([batch])
    async with reopen(store) as again:
        found = await everything(again)
    assert [s.nulls for s in found] == batch.batch.nulls
    as_sent = [record_to_json(record, nulls) for record, nulls in zip(FULL, batch.batch.nulls, strict=True)]
    assert [record_to_json(s.record, s.nulls) for s in found] == as_sent


async def test_records_are_found_by_type_task_and_place(store: Store) -> None:
    first: list[Record] = [action(0), llm(task_id="t"), stats(), action(0, "u")]
    second: list[Record] = [action(1), llm(task_id="u"), llm()]
    await store.ingest([incoming(*first, seq=1), incoming(action(9), seq=1, scenario="T"), incoming(*second, seq=2)])
    assert [s.record for s in await everything(store)] == [*first, *second]
    assert [s.record for s in await everything(store, after=1)] == second
    assert [s.record for s in await everything(store, limit=3)] == first[:3]
    assert [s.record for s in await everything(store, type_="action")] == [action(0), action(0, "u"), action(1)]
    assert [s.record for s in await everything(store, type_="llm", after=2)] == [llm(task_id="u"), llm()]
    assert [s.record for s in await everything(store, task_id="t")] == [action(0), llm(task_id="t"), action(1)]
    assert [s.record for s in await everything(store, task_id="t", type_="action", limit=1)] == [action(0)]
    assert await everything(store, task_id="nobody") == await everything(store, "nowhere") == []
    assert await store.scenarios() == ["S", "T"]
    with pytest.raises(NotFound, match="action, llm"):
        await everything(store, type_="actions")


async def test_records_name_the_producer_that_sent_them(store: Store) -> None:
    """However they are found; one that did not say who it is has the name that no producer can have."""
    await store.ingest([incoming(action(0), seq=1, producer="p"), incoming(action(1), batch_id="b", producer="p")])
    await store.ingest([incoming(stats("s1"), seq=1, producer="q")])
    assert [(s.record, s.producer) for s in await everything(store)] == [
        (action(0), "p"),
        (action(1), UNNAMED),
        (stats("s1"), "q"),
    ]
    assert [s.producer async for s in store.records("S", task_id=action(0).task_id)] == ["p", UNNAMED]
    assert [s.producer async for s in store.records("S", type_="learn_stats")] == ["q"]


async def test_the_actions_of_several_tasks_come_in_one_read(store: Store) -> None:
    """In the order of the log, with who sent them; of as many tasks as it takes for the actions that are asked for."""
    await store.ingest([incoming(action(3, "t"), action(4, "u"), llm(task_id="t"), seq=1, producer="p", at_ms=NOW + 9)])
    await store.ingest([incoming(action(1, "t"), action(9, "v"), batch_id="b", at_ms=NOW)])
    found = await store.actions_of_tasks("S", ["v", "nobody", "t"], most=100)
    assert {
        task_id: [(one.record, one.batch_no, one.place[-1], one.received_at_ms, one.producer) for one in actions]
        for task_id, actions in found.items()
    } == {
        "v": [(action(9, "v"), 2, 1, NOW, UNNAMED)],
        "nobody": [],
        "t": [(action(3, "t"), 1, 0, NOW + 9, "p"), (action(1, "t"), 2, 0, NOW, UNNAMED)],
    }
    for most, tasks in ((1, ["t"]), (2, ["t"]), (3, ["t", "u"]), (4, ["t", "u", "v"])):
        assert [*await store.actions_of_tasks("S", ["t", "u", "v"], most=most)] == tasks
    assert await store.actions_of_tasks("nowhere", ["t"], most=1) == {"t": []}
    assert await store.actions_of_tasks("S", [], most=1) == {}


async def test_many_records_come_back_whole_and_in_order(store: Store) -> None:
    """Over more than one page, with another scenario's batches in between."""
    group = []
    for seq in range(50):
        group.append(incoming(*(action(n, f"t{seq % 7}") for n in range(seq * 100, seq * 100 + 100)), seq=seq))
        group.append(incoming(llm(str(seq)), seq=seq, scenario="T"))
    await store.ingest(group)
    for limit in (None, 2_000, 3_500):
        found = await everything(store, limit=limit)
        expected: Sequence[int] = range(5_000 if limit is None else limit)
        assert [s.record.event_id for s in found if isinstance(s.record, ActionRecord)] == [*expected]
    assert len(await everything(store, "T")) == 50


# ---------------------------------------------------------------- facts


async def test_facts_are_those_of_what_is_stored(store: Store, reopen: Reopen) -> None:
    await store.ingest(
        [
            incoming(action(0), action(1), stats(), seq=1, at_ms=NOW + 10, unknown_fields=3),
            incoming(action(0), seq=2, at_ms=NOW + 99),
            incoming(action(0, "u"), seq=3, at_ms=NOW + 5),
            reject(),
        ]
    )
    async with reopen(store) as again:
        facts = await again.facts("S")
    assert (facts.records, facts.batches, facts.sessions, facts.open_tasks, facts.quarantined) == (4, 3, 1, 2, 1)
    assert (facts.duplicate_records, facts.unknown_fields, facts.last_batch_no) == (1, 3, 3)
    assert (facts.first_record_at_ms, facts.last_record_at_ms) == (NOW + 5, NOW + 10)


async def test_an_unknown_scenario_has_empty_facts(store: Store) -> None:
    facts = await store.facts("nobody")
    assert facts == replace(facts, scenario="nobody", records=0, open_tasks=0, first_record_at_ms=None)
    assert await store.scenarios() == []


async def test_facts_once_read_do_not_change(store: Store) -> None:
    await store.ingest([incoming(action(0), seq=1)])
    facts = await store.facts("S")
    await store.ingest([incoming(action(1), seq=2)])
    assert facts.records == 1
