"""What an apply or rollback leaves that broke, was killed or lost its store: nothing goes live later by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_models_applier import newest_deployment, register
from tests.unit.test_training_kinds import command, operations
from tests.unit.training_world import World, opened, worker_over
from worker.clock import ManualClock
from worker.errors import ApplyFailed, StoreUnavailable
from worker.models import applier, deployer
from worker.models.applicators.noop import NoopApplicator
from worker.models.deployer import Applied, EndNotStored
from worker.store.port import Deployment, Model, Store
from worker.wire.commands import Apply, Rollback
from worker.wire.events import Failed


class Breaking(NoopApplicator):
    """Has a fault of its own with one model, after it began to serve it."""

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self.fault = fault
        self.broken: str | None = None

    async def apply(self, model: Model, content: bytes) -> None:
        await super().apply(model, content)
        if model.model_id == self.broken:
            raise self.fault


async def interrupted(
    store: Store, model: Model, *, by: str, previous: Model | None = None, action: Any = "apply"
) -> None:
    """The row that a worker leaves which is killed in the middle."""
    row = Deployment(
        deployment_id=f"of {by}", scenario="S", model_id=model.model_id,
        previous_model_id=None if previous is None else previous.model_id, action=action, applicator="noop",
        target="x", state="started", by=by, forced=False, at_ms=1,
    )  # fmt: skip
    await store.deploy(row, after=await newest_id(store, model), aliases={}, events=[])


async def newest_id(store: Store, model: Model) -> str | None:
    """Of the deployments of its kind."""
    rows = await store.deployments("S", kind=model.kind, limit=1)
    return rows[0].deployment_id if rows else None


async def three(world: World) -> tuple[Model, Model, Model]:
    """Three models, of which none is live."""
    return await register(world, 1), await register(world, 2), await register(world, 3)


async def went(store: Store) -> list[tuple[str, str]]:
    """Ids and states of all deployments, oldest first."""
    return [(row.model_id, row.state) for row in reversed(await store.deployments("S"))]


@pytest.mark.parametrize(
    "fault", [OSError(24, "Too many open files"), RecursionError()], ids=["descriptors", "nesting"]
)
async def test_a_fault_of_an_applicators_own_ends_the_apply_and_brings_the_model_before_it_back(
    tmp_path: Path, fault: Exception
) -> None:
    """Its row stayed `started`: a minute later the model that was told as failed replaced a newer one."""
    async with opened(tmp_path, "memory") as store:
        applicator = Breaking(fault)
        world = worker_over(store, tmp_path, applicator=applicator)
        first, second, third = await three(world)
        await world.applier.apply_now(first, by="anna")
        applicator.broken = second.model_id
        with pytest.raises(ApplyFailed, match=f"noop broke: {type(fault).__name__}") as failure:
            await world.applier.apply_now(second, by="anna")
        assert failure.value.__cause__ is fault
        assert await went(store) == [(first.model_id, "verified"), (second.model_id, "failed")]
        assert await applicator.served("S") == first.sha256
        applicator.broken = None
        await world.applier.apply_now(third, by="anna")
        await world.applier.reconcile("S", "offline")
        assert await applicator.served("S") == third.sha256


async def test_what_a_later_apply_has_overtaken_is_ended_and_not_carried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older workers left it, which began beside what was interrupted."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path)
        first, second, _ = await three(world)
        await interrupted(store, first, by="anna")
        with monkeypatch.context() as older:
            for module in (applier, deployer):
                older.setattr(module, "unfinished", lambda _: [])
            await world.applier.apply_now(second, by="ben")
        await world.applier.reconcile("S", "offline")
        assert await went(store) == [(first.model_id, "failed"), (second.model_id, "verified")]
        assert "a later apply" in (await store.deployments("S"))[1].detail
        assert await world.applicator.served("S") == second.sha256
        assert (await store.aliases("S"))["champion"] == second.model_id
        assert isinstance((await world.events())[-1].data, Failed)


@pytest.mark.parametrize("call", ["aliases", "deploy"])
async def test_a_store_that_is_away_after_the_switch_is_waited_for(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told as failed, and went live later."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path)
        model = await register(world, 1)
        asked = getattr(store, call)
        tries = 0

        async def away(*args: Any, **kwargs: Any) -> Any:
            nonlocal tries
            tries += await world.applicator.served("S") is not None
            if tries == 1:
                raise StoreUnavailable("locked")
            return await asked(*args, **kwargs)

        monkeypatch.setattr(store, call, away)
        assert isinstance(await world.applier.apply_now(model, by="anna"), Applied)
        assert await store.aliases("S") == {"champion": model.model_id}


def taking_no_end(store: Store, clock: ManualClock) -> Callable[..., Awaitable[None]]:
    """The store's `deploy`, away for longer than anyone waits whenever a deployment has been verified."""
    deploy = store.deploy

    async def away(deployment: Deployment, **kwargs: Any) -> None:
        if deployment.state == "verified":
            clock.advance(1_000)
            raise StoreUnavailable("locked")
        await deploy(deployment, **kwargs)

    return away


async def test_a_rollback_behind_an_apply_whose_end_no_store_took_goes_back_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was decided upon the models that were live before that apply, and went two steps."""
    async with opened(tmp_path, "memory") as store:
        clock = ManualClock()
        world = worker_over(store, tmp_path, applier_clock=clock)
        first, second, third = await three(world)
        for model in (first, second):
            await world.applier.apply_now(model, by="anna")
        monkeypatch.setattr(store, "deploy", taking_no_end(store, clock))
        with pytest.raises(EndNotStored):
            await world.applier.apply_now(third, by="anna")
        monkeypatch.undo()
        back = await world.applier.rollback("S", by="ben")
        assert (back.model_id, back.previous_model_id) == (second.model_id, third.model_id)
        assert [state for _, state in await went(store)] == ["verified"] * 4


async def test_an_end_that_no_store_takes_is_neither_done_nor_failed_and_is_told_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, "memory") as store:
        clock = ManualClock()
        world = worker_over(store, tmp_path, applier_clock=clock)
        model = await register(world, 1)
        monkeypatch.setattr(store, "deploy", taking_no_end(store, clock))
        with pytest.raises(EndNotStored):
            await operations(world).carry_out(command(Apply(version=1)))
        monkeypatch.undo()
        told = await operations(world).carry_out(command(Apply(version=1)))
        assert told["model_id"] == model.model_id
        assert await went(store) == [(model.model_id, "verified")]


async def test_commands_that_come_at_once_are_carried_out_in_the_order_in_which_they_were_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a start all that were interrupted begin at once; one that read more lost its place."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path)
        first, second, third = await three(world)
        find = world.registry.find

        async def slow(scenario: str, name: str) -> Model:
            for _ in range({"1": 30, "2": 10, "3": 0}[name]):
                await asyncio.sleep(0)
            return await find(scenario, name)

        monkeypatch.setattr(world.registry, "find", slow)
        able = operations(world)
        orders = [command(Apply(version=version), f"c{version}") for version in (1, 2, 3)]
        told = await asyncio.gather(*map(able.carry_out, [*orders, command(Rollback(), "back")]))
        assert [one["model_id"] for one in told] == [first.model_id, second.model_id, third.model_id, second.model_id]
        assert (await store.aliases("S"))["champion"] == second.model_id


@pytest.mark.parametrize("ended", [False, True])
async def test_a_rollback_that_was_interrupted_goes_one_step_back_and_says_so(tmp_path: Path, *, ended: bool) -> None:
    """It was told as failed and carried out all the same: who asked again went two steps back."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path)
        models = await three(world)
        for model in models:
            await world.applier.apply_now(model, by="anna")
        await interrupted(store, models[1], by="command c1", previous=models[2], action="rollback")
        if ended:
            await world.applier.reconcile("S", "offline")
        told = await operations(world).carry_out(command(Rollback()))
        assert (told["model_id"], told["previous_model_id"]) == (models[1].model_id, models[2].model_id)
        assert (await store.aliases("S"))["champion"] == models[1].model_id
        assert len(await store.deployments("S")) == 4


async def test_a_command_whose_apply_had_ended_is_told_and_not_carried_out_over_a_newer_one(tmp_path: Path) -> None:
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path)
        first, second, _ = await three(world)
        able = operations(world)
        told = await able.carry_out(command(Apply(version=1)))
        await world.applier.apply_now(second, by="ben")
        assert await able.carry_out(command(Apply(version=1))) == told
        assert told["model_id"] == first.model_id
        assert (await newest_deployment(store)).model_id == second.model_id
