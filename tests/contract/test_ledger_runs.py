"""Contract of `RunLedger`, on every store: runs. Their leases are in test_ledger_leases.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, TypeAlias

import pytest
from msgspec.structs import replace

from worker.errors import DataRefused, LeaseLost, NotFound
from worker.store.port import Model, ModelKind, OutboxEvent, Run, RunState, Store, TriggerState, trigger_key

Reopen: TypeAlias = Callable[[Store], AbstractAsyncContextManager[Store]]

NOW = 1_700_000_000_000
TTL = 15_000


def queued(run_id: str = "r1", *, scenario: str = "S", **fields: Any) -> Run:
    """A run as a trigger asks for it."""
    given: dict[str, Any] = {"window_lo": 1, "window_hi": 10, "trigger": {"kind": "count", "values": {"n": 100}}}
    return Run(
        run_id=run_id, scenario=scenario, kind="offline", state="queued", requested_at_ms=NOW, **{**given, **fields}
    )


def ended(run: Run, state: RunState = "trained", **fields: Any) -> Run:
    """The end of a run that its owner asks for."""
    return replace(run, state=state, **{"ended_at_ms": NOW + 2_000, "progress": 1.0, **fields})


def learnt(
    model_id: str = "m1", *, scenario: str = "S", version: int = 1, run_id: str = "r1", kind: ModelKind = "offline"
) -> Model:
    """What a run learnt."""
    return Model(
        model_id=model_id,
        scenario=scenario,
        version=version,
        kind=kind,
        run_id=run_id,
        created_at_ms=NOW,
        uri=f"file:///models/{scenario}/{version}",
        sha256="ab" * 32,
        lineage={"window": [1, 10], "parent": None, "seed": 7},
        metrics={"success_rate": 0.5},
        gate_verdict="blessed",
        gate_reasons=["no regression"],
    )


def told(event_id: str = "e1", scenario: str = "S") -> OutboxEvent:
    """An event that tells of a run."""
    return OutboxEvent(
        event_id=event_id,
        type="learning.trained",
        scenario=scenario,
        routing_key=f"learning.trained.{scenario}",
        body=b"{}",
        created_at_ms=NOW,
    )


async def lease(store: Store, owner: str = "a", *, now_ms: int = NOW) -> int:
    """Take the lease, which must be free for this owner."""
    epoch = await store.acquire_lease("train.S", owner, now_ms=now_ms, ttl_ms=TTL)
    assert epoch is not None
    return epoch


async def start(store: Store, run_id: str, owner: str, epoch: int, *, now_ms: int = NOW) -> Run:
    """Start a run under the lease."""
    return await store.start_run(run_id, owner=owner, lease="train.S", epoch=epoch, now_ms=now_ms)


async def running(store: Store, run_id: str = "r1", owner: str = "a", **fields: Any) -> Run:
    """A run that `owner` has started under the first epoch."""
    await store.create_run(queued(run_id, **fields))
    return await start(store, run_id, owner, await lease(store, owner))


async def finish(
    store: Store,
    run: Run,
    model: Model | None = None,
    state: TriggerState | None = None,
    events: Sequence[OutboxEvent] = (),
) -> None:
    """End a run under the lease."""
    await store.finish_run(run, lease="train.S", model=model, trigger_state=state, events=events)


async def everything(store: Store) -> tuple[object, ...]:
    """All that an end of a run can change."""
    return (
        await store.runs("S"),
        await store.models("S"),
        await store.aliases("S"),
        await store.trigger_state("S"),
        await store.events(),
    )


# ---------------------------------------------------------------- creating and starting


async def test_a_run_comes_back_as_it_was_stored(store: Store, reopen: Reopen) -> None:
    run = queued(apply=True, nonce="c1", trigger={"kind": "manual", "values": {}, "by": "ops", "odd": [1, None, "ü"]})
    assert await store.create_run(run) == run
    async with reopen(store) as again:
        assert await again.run("r1") == run


async def test_a_later_change_of_the_struct_changes_nothing_stored(store: Store) -> None:
    run = queued()
    await store.create_run(run)
    run.trigger["kind"] = "changed"
    run.state = "failed"
    assert await store.run("r1") == queued()


async def test_a_run_with_the_same_id_is_created_once(store: Store) -> None:
    first = await store.create_run(queued())
    assert await store.create_run(queued(window_hi=99, trigger={"kind": "other"})) == first
    assert await store.runs() == [first]


async def test_a_run_for_the_same_window_is_created_once(store: Store) -> None:
    first = await store.create_run(queued("r1"))
    assert await store.create_run(queued("r2", window_lo=5)) == first
    assert await store.run("r2") is None


@pytest.mark.parametrize("other", [{"window_hi": 11}, {"nonce": "c1"}, {"scenario": "T"}])
async def test_another_window_nonce_or_scenario_is_another_run(store: Store, other: dict[str, Any]) -> None:
    await store.create_run(queued("r1"))
    assert (await store.create_run(queued("r2", **other))).run_id == "r2"


@pytest.mark.parametrize("state", ["running", "trained", "failed", "skipped"])
async def test_only_a_queued_run_is_created(store: Store, state: RunState) -> None:
    with pytest.raises(DataRefused, match="r1"):
        await store.create_run(replace(queued(), state=state))
    assert await store.runs() == []


async def test_a_trigger_that_is_no_json_is_refused_with_the_field(store: Store) -> None:
    with pytest.raises(DataRefused, match="trigger"):
        await store.create_run(queued(trigger={"values": {1, 2}}))


async def test_starting_makes_a_run_its_owners(store: Store) -> None:
    run = await running(store)
    assert (run.state, run.owner, run.epoch, run.attempts) == ("running", "a", 1, 1)
    assert run.started_at_ms == NOW
    assert await store.run("r1") == run


async def test_starting_what_one_runs_already_changes_nothing(store: Store) -> None:
    """So that the same call may be made again after an answer that was lost."""
    run = await running(store)
    assert await start(store, "r1", "a", 1, now_ms=NOW + 500) == run


async def test_a_run_needs_the_lease_to_start(store: Store) -> None:
    await store.create_run(queued())
    with pytest.raises(LeaseLost, match=r"train\.S"):
        await start(store, "r1", "a", 1)
    epoch = await lease(store, "a")
    with pytest.raises(LeaseLost):
        await start(store, "r1", "b", epoch)
    with pytest.raises(LeaseLost):
        await start(store, "r1", "a", epoch + 1)
    assert await store.run("r1") == queued()


async def test_an_unknown_run_is_not_found(store: Store) -> None:
    epoch = await lease(store)
    with pytest.raises(NotFound, match="nowhere"):
        await start(store, "nowhere", "a", epoch)
    with pytest.raises(NotFound):
        await store.progress_run("nowhere", epoch, 0.5, "")
    with pytest.raises(NotFound):
        await finish(store, ended(queued("nowhere")))
    with pytest.raises(NotFound):
        await store.requeue_run("nowhere", epoch=epoch, reason="shutdown")
    assert await store.run("nowhere") is None


async def test_one_run_of_a_scenario_runs_at_a_time(store: Store) -> None:
    await running(store, "r1")
    await store.create_run(queued("r2", window_hi=20))
    with pytest.raises(DataRefused, match="r1"):
        await start(store, "r2", "a", 1)
    assert (await store.run("r2") or queued()).state == "queued"
    await finish(store, ended(queued("r1", epoch=1), "skipped"))
    assert (await start(store, "r2", "a", 1)).state == "running"


async def test_runs_of_two_scenarios_run_beside_each_other(store: Store) -> None:
    await running(store, "r1", scenario="S")
    assert (await running(store, "r2", scenario="T")).state == "running"


async def test_a_run_that_has_ended_never_starts_again(store: Store) -> None:
    run = await running(store)
    await finish(store, ended(run, "failed", reason="timeout"))
    with pytest.raises(DataRefused, match="failed"):
        await start(store, "r1", "a", 1)


# ---------------------------------------------------------------- progress, interruption, take-over


async def test_progress_is_kept(store: Store) -> None:
    await running(store)
    await store.progress_run("r1", 1, 0.25, "counting")
    run = await store.run("r1")
    assert run is not None
    assert (run.progress, run.progress_text) == (0.25, "counting")


async def test_an_interrupted_run_waits_again_and_can_start_again(store: Store) -> None:
    run = await running(store)
    await store.progress_run("r1", 1, 0.25, "counting")
    await store.requeue_run("r1", epoch=1, reason="shutdown")
    waiting = await store.run("r1")
    assert waiting == replace(run, state="queued", owner=None, started_at_ms=None, reason="shutdown")
    again = await start(store, "r1", "a", 1, now_ms=NOW + 5)
    assert (again.attempts, again.reason, again.progress, again.started_at_ms) == (2, None, 0.0, NOW + 5)


async def test_a_successor_takes_a_running_run_over_and_fences_the_zombie(store: Store) -> None:
    """The scripted freeze: A stalls, B takes lease and run over, A wakes up and can change nothing, B ends the run."""
    zombie = await running(store, owner="a")
    later = NOW + TTL + 1
    epoch = await lease(store, "b", now_ms=later)
    taken = await start(store, "r1", "b", epoch, now_ms=later)
    assert (taken.owner, taken.epoch, taken.attempts, taken.started_at_ms) == ("b", 2, 2, later)
    before = await everything(store)
    with pytest.raises(LeaseLost):
        await finish(store, ended(zombie), learnt(), TriggerState(scenario="S", trained_upto=10), [told()])
    with pytest.raises(LeaseLost):
        await start(store, "r1", "a", 1)
    with pytest.raises(LeaseLost):
        await store.progress_run("r1", 1, 0.9, "zombie")
    with pytest.raises(LeaseLost):
        await store.requeue_run("r1", epoch=1, reason="zombie")
    assert await everything(store) == before
    await finish(store, ended(taken, ended_at_ms=later + 5), learnt(), None, [told()])
    assert [run.state for run in await store.runs("S")] == ["trained"]
    assert (await store.facts("S")).trainings_completed == 1


async def test_a_zombie_is_refused_before_its_successor_touched_the_run(store: Store) -> None:
    """The lease alone decides, though the run still bears the zombie's epoch."""
    zombie = await running(store, owner="a")
    await lease(store, "b", now_ms=NOW + TTL + 1)
    before = await everything(store)
    with pytest.raises(LeaseLost):
        await finish(store, ended(zombie), learnt(), None, [told()])
    with pytest.raises(LeaseLost):
        await store.progress_run("r1", 1, 0.9, "zombie")
    with pytest.raises(LeaseLost):
        await store.requeue_run("r1", epoch=1, reason="zombie")
    assert await everything(store) == before


async def test_a_successor_ends_a_run_only_after_it_took_it_over(store: Store) -> None:
    """What it holds is the lease; the run is the zombie's until it is started again."""
    run = await running(store, owner="a")
    epoch = await lease(store, "b", now_ms=NOW + TTL + 1)
    before = await everything(store)
    with pytest.raises(LeaseLost):
        await finish(store, ended(replace(run, epoch=epoch)), learnt(), None, [told()])
    with pytest.raises(LeaseLost):
        await store.requeue_run("r1", epoch=epoch, reason="not ours")
    assert await everything(store) == before


async def test_a_queued_run_has_no_progress_and_no_end(store: Store) -> None:
    await store.create_run(queued())
    await lease(store)
    with pytest.raises(LeaseLost):
        await store.progress_run("r1", 0, 0.5, "")
    with pytest.raises(LeaseLost):
        await finish(store, ended(queued()))
    assert await store.run("r1") == queued()


# ---------------------------------------------------------------- ending


async def test_an_end_writes_run_model_candidate_watermark_events_and_counter_together(
    store: Store, reopen: Reopen
) -> None:
    run = ended(await running(store), model_id="m1", progress_text="done")
    state = TriggerState(scenario="S", trained_upto=10, trained_episodes=4, last_success_at_ms=NOW)
    await finish(store, run, learnt(), state, [told("e1"), told("e2")])
    async with reopen(store) as again:
        assert await again.run("r1") == run
        assert await again.models("S") == [learnt()]
        assert await again.model("m1") == learnt()
        assert await again.aliases("S") == {"candidate": "m1"}
        assert await again.trigger_state("S") == state
        assert [event.event_id for event in await again.unsent_events(10)] == ["e1", "e2"]
        assert (await again.facts("S")).trainings_completed == 1


async def test_an_end_that_is_refused_halfway_leaves_no_trace(store: Store) -> None:
    """The model's version is taken; run, watermark, events and counter must be as before."""
    await finish(store, ended(await running(store, "r1")), learnt("m1"), None, [told("e1")])
    run = await running(store, "r2", window_hi=20)
    before = await everything(store)
    with pytest.raises(DataRefused, match="the next is 2"):
        await finish(
            store,
            ended(run),
            learnt("m2", version=1, run_id="r2"),
            TriggerState(scenario="S", failures=9),
            [told("e2")],
        )
    assert await everything(store) == before
    assert (await store.facts("S")).trainings_completed == 1


@pytest.mark.parametrize(
    "foreign",
    [
        "model of another run", "model of another scenario", "model of another kind", "trigger of another scenario",
        "trigger of another kind",
    ],
)  # fmt: skip
async def test_an_end_writes_nothing_about_another_run_or_scenario(store: Store, foreign: str) -> None:
    run = await running(store)
    before = await everything(store)
    model = learnt(run_id="r9") if foreign == "model of another run" else learnt()
    if foreign == "model of another scenario":
        model = learnt(scenario="T")
    if foreign == "model of another kind":
        model = learnt(kind="lora")
    triggers = {"trigger of another scenario": "T", "trigger of another kind": trigger_key("S", "lora")}
    state = TriggerState(scenario=triggers.get(foreign, "S"))
    with pytest.raises(DataRefused, match="r1"):
        await finish(store, ended(run), model, state, [told()])
    assert await everything(store) == before


@pytest.mark.parametrize("state", ["failed", "skipped"])
async def test_a_run_without_success_counts_as_no_training(store: Store, state: Literal["failed", "skipped"]) -> None:
    run = ended(await running(store), state, reason="no data", progress=0.1)
    await finish(store, run, None, TriggerState(scenario="S", failures=1, not_before_ms=NOW + 30_000), [told()])
    assert await store.run("r1") == run
    assert (await store.facts("S")).trainings_completed == 0
    assert (await store.trigger_state("S")).failures == 1


async def test_a_run_ends_once(store: Store) -> None:
    run = ended(await running(store))
    await finish(store, run, None, None, [told("e1")])
    with pytest.raises(LeaseLost, match="trained"):
        await finish(store, ended(run, "failed"), None, None, [told("e2")])
    assert [event.event_id for event in await store.events()] == ["e1"]
    assert (await store.facts("S")).trainings_completed == 1


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_an_end_that_is_none_is_refused(store: Store, state: RunState) -> None:
    run = await running(store)
    with pytest.raises(DataRefused, match="no end"):
        await finish(store, ended(run, state))
    with pytest.raises(DataRefused, match="no end"):
        await finish(store, ended(run, ended_at_ms=None))


async def test_a_clock_that_stepped_back_makes_no_negative_duration(store: Store) -> None:
    await store.create_run(queued())
    epoch = await lease(store, now_ms=NOW)
    started = await start(store, "r1", "a", epoch, now_ms=NOW - 60_000)
    assert started.started_at_ms == NOW
    await finish(store, ended(started, ended_at_ms=NOW - 120_000))
    run = await store.run("r1")
    assert run is not None
    assert (run.started_at_ms, run.ended_at_ms) == (NOW, NOW)


# ---------------------------------------------------------------- listing


async def test_runs_are_listed_newest_first_by_scenario_and_state(store: Store) -> None:
    for number in range(1, 4):
        await store.create_run(queued(f"r{number}", window_hi=number))
    await store.create_run(queued("other", scenario="T"))
    await start(store, "r2", "a", await lease(store))
    assert [run.run_id for run in await store.runs()] == ["other", "r3", "r2", "r1"]
    assert [run.run_id for run in await store.runs("S", limit=2)] == ["r3", "r2"]
    assert [run.run_id for run in await store.runs("S", states=["queued"])] == ["r3", "r1"]
    assert [run.run_id for run in await store.runs(states=["queued", "running"], limit=3)] == ["other", "r3", "r2"]
    assert await store.runs("S", states=["trained"]) == []


# ---------------------------------------------------------------- forgetting


async def test_runs_that_left_no_model_are_forgotten_after_their_time_and_no_others(
    store: Store, reopen: Reopen
) -> None:
    epoch = await lease(store)
    states: list[RunState] = ["failed", "skipped", "trained", "failed"]
    for number, state in enumerate(states, start=1):
        name = f"r{number}"
        await store.create_run(queued(name, window_hi=number))
        run = await start(store, name, "a", epoch)
        model = learnt(run_id=name) if state == "trained" else None
        await finish(store, ended(run, state, ended_at_ms=NOW + number), model)
    await store.create_run(queued("waiting", window_hi=9))
    assert await store.forget_fruitless_runs(NOW + 4, 1) == 1
    assert await store.forget_fruitless_runs(NOW + 4, 10) == 1
    async with reopen(store) as again:
        assert [run.run_id for run in await again.runs()] == ["waiting", "r4", "r3"]
        assert await again.forget_fruitless_runs(NOW + 4, 10) == 0
