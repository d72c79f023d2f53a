"""An adapter's health window at the applier: live at its end, and what does not stay well is taken back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest

from tests.contract.adapter_building import register
from tests.unit.training_world import opened
from worker.clock import SystemClock
from worker.errors import ApplyFailed
from worker.learning.validation import Verdict
from worker.models.announce import Announcer
from worker.models.applicators.noop import NoopApplicator
from worker.models.applier import Applier, ApplySkipped
from worker.models.deployer import NoPrevious
from worker.models.files import ModelFiles
from worker.models.health_window import HealthWindow
from worker.models.registry import Registry
from worker.store.port import Model, Run, Store


class Failing(NoopApplicator):
    """Serves what it is told to; version `bad` falls over after the first look, which the applier itself takes."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: str | None = None
        self.looks = 0

    async def apply(self, model: Model, content: bytes) -> None:
        self.looks = 0
        await super().apply(model, content)

    async def served(self, scenario: str) -> str | None:
        served = await super().served(scenario)
        self.looks += 1
        return None if served == self.bad and self.looks > 1 else served


class StuckOnTheWayBack(NoopApplicator):
    """Does not come back from the next apply while it is `stuck`, as when the worker is killed there."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = False
        self.reached = asyncio.Event()
        self.brought: list[str] = []

    async def apply(self, model: Model, content: bytes) -> None:
        self.brought.append(model.sha256)
        if self.stuck:
            self.reached.set()
            await asyncio.Event().wait()
        await super().apply(model, content)


async def registered(store: Store, registry: Registry, folder: Path, n: int) -> Model:
    """An adapter, version n, as a run registers it."""
    one = register(folder, n)
    run = await store.create_run(
        Run(
            run_id=f"r{n}", scenario="S", kind="lora", state="queued", trigger={}, window_lo=1, window_hi=n,
            requested_at_ms=1,
        )
    )  # fmt: skip
    epoch = await store.acquire_lease("training.S", "w", now_ms=1, ttl_ms=60_000)
    assert epoch is not None
    run = await store.start_run(run.run_id, owner="w", lease="training.S", epoch=epoch, now_ms=1)
    model = await registry.prepare(
        run, one.content, lineage={}, metrics={}, verdict=Verdict(verdict="blessed", reasons=[]), now_ms=1,
        adapter=folder / f"models/S/{n}/adapter",
    )  # fmt: skip
    run.state, run.ended_at_ms, run.model_id = "trained", 1, model.model_id
    await store.finish_run(run, lease="training.S", model=model, trigger_state=None, events=[])
    return model


def applier_over(store: Store, registry: Registry, applicator: NoopApplicator, seconds: float) -> Applier:
    clock = SystemClock()
    return Applier(
        store=store, registry=registry, applicators={"lora": applicator}, announcer=Announcer("w"), clock=clock,
        mode_of=lambda _: "auto", max_history=3, health_window=HealthWindow(seconds, clock),
    )  # fmt: skip


async def states(store: Store) -> list[tuple[str, Literal["started", "verified", "failed"]]]:
    return [(row.model_id, row.state) for row in await store.deployments("S")]


async def test_an_adapter_that_falls_over_in_its_window_is_taken_back(tmp_path: Path) -> None:
    """The row says why, and the adapter before it is served again and is the champion still."""
    async with opened(tmp_path, "memory") as store:
        registry, applicator = Registry(store, ModelFiles(tmp_path / "data")), Failing()
        applier = applier_over(store, registry, applicator, 0.05)
        one, two = [await registered(store, registry, tmp_path / "made", n) for n in (1, 2)]
        await applier.apply_now(one, by="anna")
        applicator.bad = two.sha256
        with pytest.raises(ApplyFailed, match="SWARM_LORA_HEALTH_WINDOW"):
            await applier.apply_now(two, by="anna")
        assert await states(store) == [(two.model_id, "failed"), (one.model_id, "verified")]
        assert await applicator.served("S") == one.sha256
        assert (await store.aliases("S"))["lora-champion"] == one.model_id


async def test_a_window_that_a_crash_cut_short_is_watched_again(tmp_path: Path) -> None:
    """Until its end the deployment is only started, so the next life carries it on."""
    async with opened(tmp_path, "memory") as store:
        registry, applicator = Registry(store, ModelFiles(tmp_path / "data")), Failing()
        one = await registered(store, registry, tmp_path / "made", 1)
        applicator.bad = one.sha256
        work = asyncio.create_task(applier_over(store, registry, applicator, 60).apply_now(one, by="anna"))
        while not applicator.looks:  # noqa: ASYNC110 - the applier's own look; the window's would be seconds later
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait((work,))
        assert await states(store) == [(one.model_id, "started")]
        await applier_over(store, registry, applicator, 0.05).reconcile("S", "lora")
        assert await states(store) == [(one.model_id, "failed")]
        assert await applicator.served("S") is None


async def test_a_rollback_is_not_watched(tmp_path: Path) -> None:
    """It is what one does in trouble, and goes back to what had been watched."""
    async with opened(tmp_path, "memory") as store:
        registry, applicator = Registry(store, ModelFiles(tmp_path / "data")), Failing()
        applier = applier_over(store, registry, applicator, 0)
        one, two = [await registered(store, registry, tmp_path / "made", n) for n in (1, 2)]
        for each in (one, two):
            await applier.apply_now(each, by="anna")
        watched = applier_over(store, registry, applicator, 0.05)
        applicator.bad = one.sha256
        await watched.rollback("S", by="anna", kind="lora")
        assert (await store.aliases("S"))["lora-champion"] == one.model_id
        assert applicator.looks == 1


async def test_a_rollback_within_the_window_gives_the_new_adapter_up_and_goes_no_further_back(tmp_path: Path) -> None:
    """Whoever sees that it is bad does not wait for the window's end, and means the adapter before it."""
    async with opened(tmp_path, "memory") as store:
        registry, applicator = Registry(store, ModelFiles(tmp_path / "data")), NoopApplicator()
        first, second, third = [await registered(store, registry, tmp_path / "data", n) for n in (1, 2, 3)]
        for model in (first, second):
            await applier_over(store, registry, applicator, 0.01).apply(model, by="trigger")
        applier = applier_over(store, registry, applicator, 600)
        applying = asyncio.create_task(applier.apply(third, by="trigger"))
        while await applicator.served("S") != third.sha256:  # noqa: ASYNC110 - it serves what it is told
            await asyncio.sleep(0)
        back = await asyncio.wait_for(applier.rollback("S", by="anna"), 5)
        assert (back.model_id, back.previous_model_id) == (second.model_id, third.model_id)
        with pytest.raises(ApplyFailed, match="version 3 was given up in its health window by anna"):
            await applying
        assert await states(store) == [
            (third.model_id, "failed"), (second.model_id, "verified"), (first.model_id, "verified"),
        ]  # fmt: skip
        assert await applicator.served("S") == second.sha256
        assert (await store.aliases("S"))["lora-champion"] == second.model_id


async def test_a_rollback_within_the_window_has_the_last_word_over_what_waited_behind_it(tmp_path: Path) -> None:
    """It was told to go back, named the next adapter, and that one went live. A second copy of it goes no further."""
    async with opened(tmp_path, "memory") as store:
        registry, applicator = Registry(store, ModelFiles(tmp_path / "data")), NoopApplicator()
        first, second, third = [await registered(store, registry, tmp_path / "data", n) for n in (1, 2, 3)]
        await applier_over(store, registry, applicator, 0).apply(first, by="trigger")
        applier = applier_over(store, registry, applicator, 600)
        applying = [asyncio.create_task(applier.apply_now(model, by="ben")) for model in (second, third)]
        while await applicator.served("S") != second.sha256:  # noqa: ASYNC110 - it serves what it is told
            await asyncio.sleep(0)
        back = await asyncio.wait_for(applier.rollback("S", by="command c"), 5)
        assert (back.model_id, back.previous_model_id) == (first.model_id, second.model_id)
        with pytest.raises(ApplyFailed, match="given up"):
            await applying[0]
        waited = await asyncio.wait_for(applying[1], 5)
        assert waited == ApplySkipped(
            third.model_id,
            "a rollback came while it waited; apply it, where it is still wanted, with: "
            "swarm-worker apply --scenario S --model 3",
        )
        assert await applicator.served("S") == first.sha256
        begun = await applier.begun_by("S", "command c")
        assert begun is not None
        assert await applier.end_of(*begun, by="command c") == back
        assert await applier.begun_by("S", "command") is None


async def test_a_worker_that_is_killed_on_the_way_back_from_a_given_up_adapter_goes_back_in_its_next_life(
    tmp_path: Path,
) -> None:
    """It brought that adapter again, watched it once more and called it done; what had waited behind it went live."""
    async with opened(tmp_path, "memory") as store:
        registry, applicator = Registry(store, ModelFiles(tmp_path / "data")), StuckOnTheWayBack()
        first, second, third = [await registered(store, registry, tmp_path / "data", n) for n in (1, 2, 3)]
        await applier_over(store, registry, applicator, 0).apply(first, by="trigger")
        killed = applier_over(store, registry, applicator, 600)
        applying = asyncio.create_task(killed.apply_now(second, by="command v2", asked_at_ms=1_000))
        while await applicator.served("S") != second.sha256:  # noqa: ASYNC110 - it serves what it is told
            await asyncio.sleep(0)
        applicator.stuck = True
        now_ms = SystemClock().now_ms()
        rollback = asyncio.create_task(killed.rollback("S", by="command back", asked_at_ms=now_ms + 10))
        await asyncio.wait_for(applicator.reached.wait(), 5)
        for task in (applying, rollback):
            task.cancel()
        await asyncio.wait((applying, rollback))
        assert (await store.deployments("S"))[0].given_up_by == "command back"

        applicator.stuck = False
        next_life = applier_over(store, registry, applicator, 600)  # would watch for so long
        skipped = await asyncio.wait_for(next_life.apply_now(third, by="command v3", asked_at_ms=now_ms + 9), 5)
        assert isinstance(skipped, ApplySkipped)
        assert "a rollback came while it waited" in skipped.reason
        assert await states(store) == [(second.model_id, "failed"), (first.model_id, "verified")]
        assert applicator.brought == [first.sha256, second.sha256, first.sha256, first.sha256]
        begun = await next_life.begun_by("S", "command back")
        assert begun is not None
        back = await next_life.end_of(*begun, by="command back")
        assert (back.model_id, back.previous_model_id) == (first.model_id, second.model_id)
        later = applier_over(store, registry, applicator, 0)
        await later.apply_now(third, by="command again", asked_at_ms=now_ms + 11)
        assert await applicator.served("S") == third.sha256


async def test_a_rollback_within_the_window_whose_way_back_fails_says_so(tmp_path: Path) -> None:
    """Else somebody in trouble would think that it is over; whoever applied hears it too."""
    async with opened(tmp_path, "memory") as store:
        registry, applicator = Registry(store, ModelFiles(tmp_path / "data")), NoopApplicator()
        one, two = [await registered(store, registry, tmp_path / "data", n) for n in (1, 2)]
        await applier_over(store, registry, applicator, 0).apply(one, by="trigger")
        applier = applier_over(store, registry, applicator, 600)
        applying = asyncio.create_task(applier.apply(two, by="trigger"))
        while await applicator.served("S") != two.sha256:  # noqa: ASYNC110 - it serves what it is told
            await asyncio.sleep(0)
        (Path(urlsplit(one.uri).path) / "model.json").unlink()
        with pytest.raises(ApplyFailed, match="given up in its health window by anna; and the way back failed"):
            await asyncio.wait_for(applier.rollback("S", by="anna"), 5)
        with pytest.raises(ApplyFailed, match="given up in its health window by anna; and the way back failed"):
            await applying


async def test_a_first_adapter_that_is_given_up_leaves_none(tmp_path: Path) -> None:
    """There is nothing to go back to, and the answer says so."""
    async with opened(tmp_path, "memory") as store:
        registry, applicator = Registry(store, ModelFiles(tmp_path / "data")), NoopApplicator()
        only = await registered(store, registry, tmp_path / "data", 1)
        applier = applier_over(store, registry, applicator, 600)
        applying = asyncio.create_task(applier.apply(only, by="trigger"))
        while await applicator.served("S") is None:  # noqa: ASYNC110 - it serves what it is told
            await asyncio.sleep(0)
        with pytest.raises(NoPrevious, match="no adapter was live before it"):
            await asyncio.wait_for(applier.rollback("S", by="anna", kind="lora"), 5)
        with pytest.raises(ApplyFailed):
            await applying
        assert await applicator.served("S") is None
