"""Contract of `ModelRegistry`, on every store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import pytest
from msgspec.structs import replace

from worker.errors import DataRefused, NotFound, Overtaken
from worker.store.port import Deployment, Model, OutboxEvent, Run, Store

Reopen: TypeAlias = Callable[[Store], AbstractAsyncContextManager[Store]]

NOW = 1_700_000_000_000


async def train(store: Store, version: int, *, scenario: str = "S", model_id: str = "", **fields: Any) -> Model:
    """Run a training that registers this version, `m<version>` unless named."""
    run_id = f"{scenario}-r{version}-{model_id}"
    model = Model(
        model_id=model_id or f"m{version}",
        scenario=scenario,
        version=version,
        kind="offline",
        run_id=run_id,
        created_at_ms=NOW + version,
        uri=f"file:///models/{scenario}/{version}",
        sha256="cd" * 32,
        lineage={"window": [1, version], "config": {"seed": 7, "deep": {"er": None}}},
        metrics={"success_rate": 0.25, "n": 12},
        gate_verdict="not_evaluable",
        gate_reasons=["too few held out"],
    )
    model = replace(model, **fields)
    run = Run(
        run_id=run_id,
        scenario=scenario,
        kind=model.kind,
        state="queued",
        trigger={},
        window_lo=1,
        window_hi=version,
        nonce=model_id,
        requested_at_ms=NOW,
    )
    await store.create_run(run)
    lease = f"train.{scenario}"
    epoch = await store.acquire_lease(lease, "a", now_ms=NOW, ttl_ms=15_000)
    assert epoch is not None
    run = await store.start_run(run_id, owner="a", lease=lease, epoch=epoch, now_ms=NOW)
    try:
        await store.finish_run(
            replace(run, state="trained", ended_at_ms=NOW), lease=lease, model=model, trigger_state=None, events=[]
        )
    except DataRefused:
        await store.finish_run(
            replace(run, state="failed", ended_at_ms=NOW), lease=lease, model=None, trigger_state=None, events=[]
        )
        raise
    return model


def deployment(deployment_id: str = "d1", model_id: str = "m1", **fields: Any) -> Deployment:
    """The beginning of an apply."""
    begun = Deployment(
        deployment_id=deployment_id,
        scenario="S",
        model_id=model_id,
        previous_model_id=None,
        action="apply",
        applicator="files",
        target="/srv/current",
        state="started",
        by="auto",
        forced=False,
        at_ms=NOW,
    )
    return replace(begun, **fields)


def told(event_id: str) -> OutboxEvent:
    """An event that tells of a deployment."""
    return OutboxEvent(
        event_id=event_id,
        type="learning.applied",
        scenario="S",
        routing_key="learning.applied.S",
        body=b"{}",
        created_at_ms=NOW,
    )


async def deploy(
    store: Store,
    row: Deployment,
    aliases: Mapping[str, str | None] | None = None,
    events: Sequence[OutboxEvent] = (),
) -> None:
    """Append or move on a deployment."""
    model = await store.model(row.model_id)
    before = await store.deployments(row.scenario, kind=None if model is None else model.kind, limit=1)
    after = before[0].deployment_id if before else None
    await store.deploy(row, after=after, aliases=aliases or {}, events=events)


async def applied(store: Store) -> int:
    """The counter of verified applies."""
    return (await store.facts("S")).models_applied


# ---------------------------------------------------------------- versions


async def test_a_model_comes_back_as_it_was_registered(store: Store, reopen: Reopen) -> None:
    model = await train(store, 1)
    async with reopen(store) as again:
        assert await again.model("m1") == model
        assert await again.model("unknown") is None


async def test_versions_are_counted_per_scenario_and_listed_newest_first(store: Store) -> None:
    for version in (1, 2, 3):
        await train(store, version)
    await train(store, 1, scenario="T", model_id="t1")
    assert [model.version for model in await store.models("S")] == [3, 2, 1]
    assert [model.model_id for model in await store.models("S", limit=1)] == ["m3"]
    assert [model.model_id for model in await store.models("T")] == ["t1"]
    assert await store.models("U") == []


@pytest.mark.parametrize("version", [0, 1, 3])
async def test_a_version_that_is_not_the_next_is_refused(store: Store, version: int) -> None:
    await train(store, 1)
    with pytest.raises(DataRefused, match=f"version {version} .* the next is 2"):
        await train(store, version, model_id="new")
    assert [model.model_id for model in await store.models("S")] == ["m1"]


async def test_the_same_content_is_never_registered_twice(store: Store) -> None:
    """Its files and lineage are those of the first time; the run that learnt nothing new is told so."""
    await train(store, 1)
    with pytest.raises(DataRefused, match="registered already as version 1"):
        await train(store, 2, model_id="m1")


async def test_what_is_no_json_is_refused_with_the_field(store: Store) -> None:
    with pytest.raises(DataRefused, match="metrics"):
        await train(store, 1, metrics={"odd": object()})
    assert await store.models("S") == []


async def test_adapters_are_versions_of_their_scenario_with_aliases_of_their_own(store: Store) -> None:
    """An adapter never takes an offline model's place, nor the other way round; lists may be of one kind."""
    models = [await train(store, 1), await train(store, 2, kind="lora"), await train(store, 3)]
    assert await store.aliases("S") == {"candidate": "m3", "lora-candidate": "m2"}
    assert await store.models("S") == models[::-1]
    assert await store.models("S", kind="lora") == [models[1]]
    assert await store.models("S", kind="offline", limit=1) == [models[2]]
    for number, model in enumerate(models):
        await deploy(store, deployment(f"d{number}", model.model_id), {}, [])
    assert [row.deployment_id for row in await store.deployments("S")] == ["d2", "d1", "d0"]
    assert [row.deployment_id for row in await store.deployments("S", kind="lora")] == ["d1"]
    assert [row.deployment_id for row in await store.deployments("S", kind="offline", limit=1)] == ["d2"]


async def test_the_newest_model_is_the_candidate(store: Store) -> None:
    await train(store, 1)
    await train(store, 2)
    assert await store.aliases("S") == {"candidate": "m2"}
    assert await store.aliases("T") == {}


# ---------------------------------------------------------------- deployments


async def test_a_deployment_begins_and_is_verified_with_aliases_and_events(store: Store, reopen: Reopen) -> None:
    await train(store, 1)
    await deploy(store, deployment())
    assert (await store.deployments("S"), await applied(store)) == ([deployment()], 0)
    verified = deployment(state="verified", detail="sha256 equal", at_ms=NOW + 5)
    await deploy(store, verified, {"champion": "m1", "candidate": None}, [told("e1")])
    async with reopen(store) as again:
        assert await again.deployments("S") == [verified]
        assert await again.aliases("S") == {"champion": "m1"}
        assert [event.event_id for event in await again.unsent_events(5)] == ["e1"]
        assert await applied(again) == 1


async def test_a_deployment_that_is_given_up_says_so_before_it_ends_and_to_whom_it_was_said_first(
    store: Store, reopen: Reopen
) -> None:
    """A worker that is killed on the way back from it must not carry it on."""
    await train(store, 1)
    await deploy(store, deployment())
    given_up = deployment(given_up_by="command c", at_ms=NOW + 1)
    await deploy(store, given_up)
    await deploy(store, deployment(given_up_by="command d", at_ms=NOW + 2))
    async with reopen(store) as again:
        assert await again.deployments("S") == [given_up]


async def test_a_failed_deployment_says_who_gave_it_up_and_whether_the_way_back_failed(
    store: Store, reopen: Reopen
) -> None:
    await train(store, 1)
    await deploy(store, deployment())
    failed = deployment(state="failed", detail="given up", given_up_by="command c", stranded=True)
    await deploy(store, failed)
    async with reopen(store) as again:
        assert await again.deployments("S") == [failed]


async def test_a_verified_apply_counts_once_however_often_it_is_repeated(store: Store) -> None:
    await train(store, 1)
    await deploy(store, deployment())
    for _ in range(3):
        await deploy(store, deployment(state="verified"), {"champion": "m1"}, [told("e1")])
    assert await applied(store) == 1
    assert len(await store.events()) == 1


async def test_a_repetition_moves_no_alias_back(store: Store) -> None:
    """A later deployment may have moved it on."""
    await train(store, 1)
    await train(store, 2)
    await deploy(store, deployment("d1", "m1", state="verified"), {"champion": "m1"})
    await deploy(store, deployment("d2", "m2", state="verified"), {"champion": "m2", "previous": "m1"})
    await deploy(store, deployment("d1", "m1", state="verified"), {"champion": "m1"})
    assert await store.aliases("S") == {"candidate": "m2", "champion": "m2", "previous": "m1"}
    assert await applied(store) == 2


@pytest.mark.parametrize(("first", "second"), [("verified", "failed"), ("failed", "verified"), ("verified", "started")])
async def test_an_ended_deployment_never_changes(store: Store, first: Any, second: Any) -> None:
    await train(store, 1)
    ended = deployment(state=first, detail="first")
    await deploy(store, deployment())
    await deploy(store, ended)
    count = await applied(store)
    with pytest.raises(Overtaken, match="d1"):
        await deploy(store, deployment(state=second), {"champion": "m1"}, [told("e1")])
    assert await store.deployments("S") == [ended]
    assert await store.aliases("S") == {"candidate": "m1"}
    assert (await store.events(), await applied(store)) == ([], count)


@pytest.mark.parametrize("other", [{"model_id": "m2"}, {"scenario": "T"}, {"action": "rollback"}])
async def test_the_id_of_another_deployment_is_refused(store: Store, other: dict[str, Any]) -> None:
    await train(store, 1)
    await train(store, 2)
    await deploy(store, deployment())
    with pytest.raises(DataRefused, match="id of its own"):
        await deploy(store, deployment(state="verified", **other))
    assert await store.deployments("S") == [deployment()]


@pytest.mark.parametrize("after", [None, "d1", "d9"])
async def test_a_deployment_that_was_decided_by_another_log_than_there_is_begins_not(
    store: Store, after: str | None
) -> None:
    """Two workers read the same log and both went back: a command was carried out twice."""
    await train(store, 1)
    await train(store, 2)
    for number in (1, 2):
        await deploy(store, deployment(f"d{number}", state="verified"), {"champion": "m1"})
    with pytest.raises(Overtaken, match=r"d3 .* d2 is the newest"):
        await store.deploy(
            deployment("d3", "m2", state="verified"), after=after, aliases={"champion": "m2"}, events=[told("e1")]
        )
    assert [row.deployment_id for row in await store.deployments("S")] == ["d2", "d1"]
    assert await store.aliases("S") == {"candidate": "m2", "champion": "m1"}
    assert (await store.events(), await applied(store)) == ([], 2)


async def test_deployments_of_another_kind_or_scenario_come_between(store: Store) -> None:
    await train(store, 1)
    await train(store, 2, kind="lora")
    await train(store, 1, scenario="T", model_id="t1")
    await store.deploy(deployment("d1"), after=None, aliases={}, events=[])
    await store.deploy(deployment("d2", "m2"), after=None, aliases={}, events=[])
    await store.deploy(deployment("d3", "t1", scenario="T"), after=None, aliases={}, events=[])
    await store.deploy(deployment("d4"), after="d1", aliases={}, events=[])
    assert [row.deployment_id for row in await store.deployments("S")] == ["d4", "d2", "d1"]


async def test_the_end_of_a_deployment_asks_not_what_came_after_it(store: Store) -> None:
    await train(store, 1)
    await deploy(store, deployment("d1"))
    await deploy(store, deployment("d2"))
    await store.deploy(deployment("d1", state="failed"), after=None, aliases={}, events=[])
    assert [row.state for row in await store.deployments("S")] == ["started", "failed"]


async def test_failed_applies_and_rollbacks_count_as_no_applied_model(store: Store) -> None:
    """`models_applied` grows only on Applied."""
    await train(store, 1)
    await deploy(store, deployment("d1", state="failed", detail="not served"))
    await deploy(store, deployment("d2", action="rollback", state="verified"), {"champion": "m1"})
    assert await applied(store) == 0


async def test_the_log_is_newest_first_whatever_the_clock_says(store: Store) -> None:
    await train(store, 1)
    for number in range(3):
        await deploy(store, deployment(f"d{number}", state="failed", at_ms=NOW - number * 1000))
    assert [row.deployment_id for row in await store.deployments("S")] == ["d2", "d1", "d0"]
    assert [row.deployment_id for row in await store.deployments("S", limit=1)] == ["d2"]
    assert await store.deployments("T") == []


async def test_an_end_is_never_before_the_beginning(store: Store) -> None:
    await train(store, 1)
    await deploy(store, deployment())
    await deploy(store, deployment(state="verified", at_ms=NOW - 60_000))
    assert [row.at_ms for row in await store.deployments("S")] == [NOW]


@pytest.mark.parametrize("aliases", [{}, {"champion": "nowhere"}, {"champion": "t1"}])
async def test_nothing_points_at_a_model_that_the_scenario_does_not_have(
    store: Store, aliases: dict[str, str | None]
) -> None:
    await train(store, 1)
    await train(store, 1, scenario="T", model_id="t1")
    row = deployment(model_id="m1" if aliases else "nowhere", state="verified")
    with pytest.raises(NotFound, match="scenario S has no model"):
        await deploy(store, row, {"previous": "m1", **aliases}, [told("e1")])
    assert await store.deployments("S") == []
    assert await store.aliases("S") == {"candidate": "m1"}
    assert await store.events() == []
