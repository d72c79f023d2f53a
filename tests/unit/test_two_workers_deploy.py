"""Two workers that have one store: a command is carried out once, and each deployment follows the one before it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from tests.unit.test_interrupted_applies import three, went
from tests.unit.test_models_applier import register
from tests.unit.test_training_kinds import command, operations
from tests.unit.training_world import World, opened, worker_over
from worker.errors import ApplyFailed, Overtaken
from worker.models.applicators.noop import NoopApplicator
from worker.models.deployer import Applied
from worker.store.port import Deployment, Model, Store
from worker.wire.commands import Apply, Args, Rollback


class TakingTurns:
    """A store of whose calls those of others come in between, as with every store that is asked over a wire."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        async def later(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return await call(*args, **kwargs)

        return later


def two_workers(store: Store, tmp_path: Path) -> tuple[World, World]:
    """With one server between them."""
    applicator, shared = NoopApplicator(), cast("Store", TakingTurns(store))
    one = worker_over(shared, tmp_path, applicator=applicator)
    return one, worker_over(shared, tmp_path, boot="boot2", applicator=applicator)


@pytest.mark.parametrize("args", [Rollback(), Apply(version=1)], ids=["rollback", "apply"])
async def test_a_command_that_two_workers_carry_on_at_once_is_carried_out_once(tmp_path: Path, args: Args) -> None:
    """Both had been started after it was accepted, and went back one model each."""
    async with opened(tmp_path, "memory") as store:
        workers = two_workers(store, tmp_path)
        models = await three(workers[0])
        for model in models:
            await workers[0].applier.apply_now(model, by="anna")
        told = await asyncio.gather(*(operations(worker).carry_out(command(args)) for worker in workers))
        assert told[0] == told[1]
        back = models[1] if args == Rollback() else models[0]
        assert (await went(store))[3:] == [(back.model_id, "verified")]
        assert await workers[0].applicator.served("S") == back.sha256


async def test_commands_that_two_workers_carry_out_at_once_follow_each_other(tmp_path: Path) -> None:
    """Each begins with what the one before it left live, whichever comes first."""
    async with opened(tmp_path, "memory") as store:
        workers = two_workers(store, tmp_path)
        models = await three(workers[0])
        for model in models[:2]:
            await workers[0].applier.apply_now(model, by="anna")
        await asyncio.gather(
            operations(workers[0]).carry_out(command(Rollback(), "c1")),
            operations(workers[1]).carry_out(command(Apply(version=3), "c2")),
        )
        rows = (await store.deployments("S"))[::-1]
        assert [row.state for row in rows] == ["verified"] * 4
        assert [row.previous_model_id for row in rows[1:]] == [row.model_id for row in rows[:-1]]
        live = await workers[0].registry.champion("S", "offline")
        assert live is not None
        assert live.model_id == rows[-1].model_id
        assert await workers[0].applicator.served("S") == live.sha256


async def test_what_another_worker_did_while_one_decided_is_decided_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began and ended in between, so nothing is `started` when this one begins."""
    async with opened(tmp_path, "memory") as store:
        one, other = two_workers(store, tmp_path)
        first, second, third = await three(one)
        await one.applier.apply_now(first, by="anna")
        champion = one.registry.champion

        async def meanwhile(*args: Any) -> Model | None:
            known = await champion(*args)
            monkeypatch.undo()
            await other.applier.apply_now(second, by="ben")
            return known

        monkeypatch.setattr(one.registry, "champion", meanwhile)
        came = await one.applier.apply_now(third, by="anna")
        assert isinstance(came, Applied)
        assert came.previous_model_id == second.model_id
        assert [row[0] for row in await went(store)] == [first.model_id, second.model_id, third.model_id]
        assert (await store.aliases("S"))["previous"] == second.model_id


@pytest.mark.parametrize("by", ["command c1", "trigger"])
async def test_what_another_worker_carried_on_to_another_end_stays_as_that_left_it(tmp_path: Path, by: str) -> None:
    """It took the worker for dead, which was only slow: what that brought late is not served, and it says so."""
    async with opened(tmp_path, "memory") as store:

        class Slow(NoopApplicator):
            """Its worker is taken for dead while it brings the second model."""

            async def apply(self, model: Model, content: bytes) -> None:
                await super().apply(model, content)
                (row, *_) = await store.deployments("S")
                if model.version == 2:
                    failed = replace(row, state="failed", detail="the other worker's server refused it")
                    await store.deploy(failed, aliases={}, events=[])

        world = worker_over(store, tmp_path, applicator=Slow())
        first, second = await register(world, 1), await register(world, 2)
        await world.applier.apply_now(first, by="anna")
        with pytest.raises(ApplyFailed, match="the other worker's server refused it"):
            await world.applier.apply_now(second, by=by)
        assert await went(store) == [(first.model_id, "verified"), (second.model_id, "failed")]
        assert await world.applicator.served("S") == first.sha256


async def test_what_a_worker_brought_late_that_another_has_replaced_is_not_what_stays_served(tmp_path: Path) -> None:
    """The other one took it for dead, carried its apply on to the same end, and applied the next model."""
    async with opened(tmp_path, "memory") as store:
        other = worker_over(store, tmp_path, boot="boot2")

        class Slow(NoopApplicator):
            async def apply(self, model: Model, content: bytes) -> None:
                if model.version == 2:
                    await other.applier.apply_now(third, by="ben")
                await super().apply(model, content)

        world = worker_over(store, tmp_path, applicator=Slow())
        first, second, third = await three(world)
        await world.applier.apply_now(first, by="anna")
        await world.applier.apply_now(second, by="anna")
        verified = [(model.model_id, "verified") for model in (first, second, third)]
        assert await went(store) == verified
        assert await world.applicator.served("S") == third.sha256


async def test_what_another_worker_has_begun_since_is_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had brought the next model, and the one before was brought again over it."""
    async with opened(tmp_path, "memory") as store:
        brought, may_end = asyncio.Event(), asyncio.Event()

        class Held(NoopApplicator):
            async def apply(self, model: Model, content: bytes) -> None:
                await super().apply(model, content)
                if model.version == 3:
                    brought.set()
                    await may_end.wait()

        held = Held()
        world = worker_over(store, tmp_path, applicator=held)
        other = worker_over(store, tmp_path, boot="boot2", applicator=held)
        _, second, third = await three(world)
        deploy, others = store.deploy, []

        async def then_the_other_begins(row: Deployment, **more: Any) -> None:
            await deploy(row, **more)
            if row.model_id == second.model_id and row.state == "verified":
                others.append(asyncio.create_task(other.applier.apply_now(third, by="ben")))
                await brought.wait()

        monkeypatch.setattr(store, "deploy", then_the_other_begins)
        await world.applier.apply_now(second, by="anna")
        assert await held.served("S") == third.sha256
        may_end.set()
        await others[0]
        assert await held.served("S") == third.sha256


async def test_who_is_overtaken_each_time_gives_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path)
        model = await register(world, 1)
        tries = 0

        async def overtaken(*_: object, **__: object) -> None:
            nonlocal tries
            tries += 1
            raise Overtaken("another worker's came before it")

        monkeypatch.setattr(store, "deploy", overtaken)
        monkeypatch.setattr("worker.models.applier._MOST_TRIES", 2)
        with pytest.raises(Overtaken, match="came before it"):
            await world.applier.apply_now(model, by="anna")
        assert tries == 2
        assert await store.deployments("S") == []
