"""Whatever is asked of a ledger, in any order and with restarts between: stores answer the same and the rules hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from worker.clock import ManualClock
from worker.errors import WorkerError
from worker.store import open_store
from worker.store.port import Deployment, Model, OutboxEvent, Run, Store, StoredCommand, TriggerState

Step: TypeAlias = Callable[[Store], Awaitable[Any]]

NOW = 1_700_000_000_000
TTL = 15_000

scenarios = st.sampled_from(["S", "S", "S", "T"])
owners = st.sampled_from(["a", "b"])
epochs = st.integers(1, 4)
run_ids = st.sampled_from(["r1", "r2", "r3", "r4"])
model_ids = st.sampled_from(["m1", "m2"])
#: The clock jumps about by more than a lease's length.
times = st.integers(-3, 6).map(lambda steps: NOW + steps * 10_000)
event_lists = st.lists(
    st.builds(
        OutboxEvent,
        event_id=st.sampled_from(["e1", "e2", "e3", "e4"]),
        type=st.just("learning.trained"),
        scenario=scenarios,
        routing_key=st.just("k"),
        body=st.binary(max_size=4),
        created_at_ms=times,
    ),
    max_size=3,
)
runs = st.builds(
    Run,
    run_id=run_ids,
    scenario=scenarios,
    kind=st.just("offline"),
    state=st.just("queued"),
    trigger=st.dictionaries(st.text(max_size=3), st.none() | st.integers(0, 9), max_size=2),
    window_lo=st.just(1),
    window_hi=st.integers(1, 4),
    requested_at_ms=times,
)
models = st.builds(
    Model,
    model_id=model_ids,
    scenario=scenarios,
    version=st.integers(1, 2),
    kind=st.just("offline"),
    run_id=st.just("r1"),
    created_at_ms=times,
    uri=st.just("file:///m"),
    sha256=st.just("00"),
    lineage=st.just({}),
    metrics=st.just({}),
    gate_verdict=st.just("blessed"),
    gate_reasons=st.lists(st.text(max_size=3), max_size=2),
)
states = st.builds(TriggerState, scenario=scenarios, failures=st.integers(0, 9), paused=st.booleans())
deployments = st.builds(
    Deployment,
    deployment_id=st.sampled_from(["d1", "d2"]),
    scenario=scenarios,
    model_id=model_ids,
    previous_model_id=st.none() | model_ids,
    action=st.sampled_from(["apply", "rollback"]),
    applicator=st.just("noop"),
    target=st.just(""),
    state=st.sampled_from(["started", "verified", "failed"]),
    by=st.just("ops"),
    forced=st.booleans(),
    at_ms=times,
)
commands = st.builds(
    StoredCommand,
    command_id=st.sampled_from(["c1", "c2"]),
    command=st.just("status"),
    scenario=st.none() | scenarios,
    body=st.binary(max_size=4),
    received_at_ms=times,
)


def acquire(owner: str, now_ms: int) -> Step:
    """Somebody wants the lease."""
    return lambda store: store.acquire_lease("train", owner, now_ms=now_ms, ttl_ms=TTL)


def renew(owner: str, epoch: int, now_ms: int) -> Step:
    """Somebody prolongs it."""
    return lambda store: store.renew_lease("train", owner, epoch, now_ms=now_ms, ttl_ms=TTL)


def start(run_id: str, owner: str, epoch: int, now_ms: int) -> Step:
    """Somebody starts or takes over a run."""
    return lambda store: store.start_run(run_id, owner=owner, lease="train", epoch=epoch, now_ms=now_ms)


def finish(
    *, run_id: str, epoch: int, state: Any, now_ms: int, model: Any, trigger_state: Any, events: list[OutboxEvent]
) -> Step:
    """Somebody ends a run, rightly or not."""

    async def step(store: Store) -> None:
        stored = await store.run(run_id)
        if stored is not None:
            end = replace(stored, epoch=epoch, state=state, ended_at_ms=now_ms, model_id=model and model.model_id)
            await store.finish_run(end, lease="train", model=model, trigger_state=trigger_state, events=events)

    return step


def train(*, owner: str, run: Run, now_ms: int, model: Any, events: list[OutboxEvent], ends: bool) -> Step:
    """Somebody does all in its right order, as far as the lease and the other runs let it."""

    async def step(store: Store) -> object:
        run_id = (await store.create_run(run)).run_id
        epoch = await store.acquire_lease("train", owner, now_ms=now_ms, ttl_ms=TTL)
        if epoch is None:
            return None
        begun = await store.start_run(run_id, owner=owner, lease="train", epoch=epoch, now_ms=now_ms)
        if ends:
            next_one = model and replace(
                model, scenario=run.scenario, version=len(await store.models(run.scenario)) + 1
            )
            end = replace(begun, state="trained", ended_at_ms=now_ms)
            await store.finish_run(end, lease="train", model=next_one, trigger_state=None, events=events)
        return begun

    return step


trainings = st.builds(
    train, owner=owners, run=runs, now_ms=times, model=st.none() | models, events=event_lists, ends=st.booleans()
)
deploys = st.builds(
    lambda row, after, aliases, events: lambda store: store.deploy(row, after=after, aliases=aliases, events=events),
    deployments,
    st.sampled_from([None, None, "d1", "d2"]),
    st.dictionaries(st.sampled_from(["champion", "previous"]), st.none() | model_ids, max_size=2),
    event_lists,
)
steps = st.one_of(
    trainings,
    trainings,
    trainings,
    deploys,
    deploys,
    st.builds(acquire, owners, times),
    st.builds(renew, owners, epochs, times),
    st.builds(lambda owner, epoch: lambda store: store.release_lease("train", owner, epoch), owners, epochs),
    st.builds(lambda run: lambda store: store.create_run(run), runs),
    st.builds(start, run_ids, owners, epochs, times),
    st.builds(lambda run_id, epoch: lambda store: store.progress_run(run_id, epoch, 0.5, "half"), run_ids, epochs),
    st.builds(lambda run_id, epoch: lambda store: store.requeue_run(run_id, epoch=epoch, reason="x"), run_ids, epochs),
    st.builds(
        finish,
        run_id=run_ids,
        epoch=epochs,
        state=st.sampled_from(["trained", "trained", "failed", "running"]),
        now_ms=times,
        model=st.none() | models,
        trigger_state=st.none() | states,
        events=event_lists,
    ),
    st.builds(lambda state: lambda store: store.save_trigger_state(state), states),
    st.builds(lambda events: lambda store: store.add_events(events), event_lists),
    st.builds(lambda now_ms: lambda store: store.mark_sent(["e1"], now_ms), times),
    st.builds(lambda event_id: lambda store: store.mark_attempt(event_id), st.sampled_from(["e1", "e2"])),
    st.builds(lambda command: lambda store: store.accept_command(command), commands),
    st.builds(
        lambda command_id, now_ms: (
            lambda store: store.finish_command(command_id, status="done", result={"n": 1}, error=None, now_ms=now_ms)
        ),
        st.sampled_from(["c1", "c2"]),
        times,
    ),
)


async def answer(store: Store, step: Step) -> object:
    """What the store says, be it an error."""
    try:
        return await step(store)
    except WorkerError as error:
        return type(error), str(error)


async def everything(store: Store) -> dict[str, object]:
    """All that a ledger shows."""
    return {
        "runs": await store.runs(),
        "models": [await store.models(scenario) for scenario in ("S", "T")],
        "aliases": [await store.aliases(scenario) for scenario in ("S", "T")],
        "deployments": [await store.deployments(scenario) for scenario in ("S", "T")],
        "states": [await store.trigger_state(scenario) for scenario in ("S", "T")],
        "unsent": await store.unsent_events(100),
        "events": await store.events(),
        "commands": await store.unfinished_commands(),
        "counters": [
            (facts.trainings_completed, facts.models_applied)
            for facts in [await store.facts(scenario) for scenario in ("S", "T")]
        ],
    }


async def check_rules(store: Store) -> None:
    """What holds however the ledger came to be as it is."""
    stored = await store.runs()
    for scenario in ("S", "T"):
        of_scenario = [run for run in stored if run.scenario == scenario]
        assert sum(run.state == "running" for run in of_scenario) <= 1
        versions = [model.version for model in await store.models(scenario)]
        assert versions == list(range(len(versions), 0, -1))
        facts = await store.facts(scenario)
        assert facts.trainings_completed == sum(run.state == "trained" for run in of_scenario)
        assert facts.models_applied == sum(
            (row.action, row.state) == ("apply", "verified") for row in await store.deployments(scenario)
        )
    for run in stored:
        if run.started_at_ms is not None:
            assert run.requested_at_ms <= run.started_at_ms <= (run.ended_at_ms or run.started_at_ms)


@settings(max_examples=60, deadline=None)
@given(plan=st.lists(st.tuples(steps, st.integers(0, 9)), min_size=10, max_size=50))
async def test_sqlite_with_restarts_and_memory_answer_the_same(plan: list[tuple[Step, int]]) -> None:
    """One step in ten is followed by a restart of the SQLite store."""
    with TemporaryDirectory() as folder:
        url, clock = f"sqlite://{Path(folder) / 'swarm.db'}", ManualClock()
        sqlite, memory = open_store(url, clock), open_store("memory:", clock)
        await sqlite.open()
        await memory.open()
        try:
            for step, restart in plan:
                assert await answer(sqlite, step) == await answer(memory, step)
                if restart == 0:
                    await sqlite.close()
                    sqlite = open_store(url, clock)
                    await sqlite.open()
            assert await everything(sqlite) == await everything(memory)
            await check_rules(sqlite)
        finally:
            await sqlite.close()
            await memory.close()
