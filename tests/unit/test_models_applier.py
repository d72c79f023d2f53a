"""Applying: obeyed modes, the gate, verification, the way back, and every crash in between."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import pytest
from msgspec.structs import replace

from tests.unit.training_world import World, count_rows, opened, some_counts, worker_over
from worker.errors import ApplyFailed, NotFound
from worker.learning.analyzer import AnalysisInput, OfflineAnalyzer
from worker.learning.offline_model import OfflineModel, encode
from worker.learning.validation import Verdict
from worker.models.applicators.files import FilesApplicator
from worker.models.applicators.noop import NoopApplicator
from worker.models.applier import ApplySkipped
from worker.models.deployer import Applied, NoPrevious
from worker.store.port import Deployment, Model, Run, Store
from worker.wire.events import Applied as AppliedEvent
from worker.wire.events import Failed, RolledBack


class Stubborn(NoopApplicator):
    """Says it applied and keeps serving what it served (a server that kept its old adapter), or refuses."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__()
        self.refuses = refuses
        self.stuck = True
        self.calls = 0

    async def apply(self, model: Model, content: bytes) -> None:
        """Refuse, do nothing, or obey."""
        self.calls += 1
        if self.stuck and self.refuses:
            raise ApplyFailed("connection refused")
        if not self.stuck:
            await super().apply(model, content)


def a_model(successes: int) -> OfflineModel:
    rows = count_rows(some_counts(successes=successes))
    found = OfflineAnalyzer(AnalysisInput(scenario="S", counts=rows, updated_at_ms=successes)).analyze()
    assert isinstance(found, OfflineModel)
    return found


async def register(
    world: World, n: int, *, verdict: Literal["blessed", "rejected", "not_evaluable"] = "blessed"
) -> Model:
    """A trained model, version n, as a run registers it."""
    store, now_ms = world.store, world.tools.clock.now_ms()
    run = await store.create_run(
        Run(
            run_id=f"r{n}",
            scenario="S",
            kind="offline",
            state="queued",
            trigger={"kind": "count"},
            window_lo=1,
            window_hi=n,
            requested_at_ms=now_ms,
        )
    )
    epoch = await store.acquire_lease("training.S", "w", now_ms=now_ms, ttl_ms=60_000)
    assert epoch is not None
    run = await store.start_run(run.run_id, owner="w", lease="training.S", epoch=epoch, now_ms=now_ms)
    model = await world.registry.prepare(
        run, encode(a_model(n * 10)), lineage={}, metrics={}, verdict=Verdict(verdict=verdict, reasons=["figures"]),
        now_ms=now_ms,
    )  # fmt: skip
    run.state, run.ended_at_ms, run.model_id = "trained", now_ms, model.model_id
    await store.finish_run(run, lease="training.S", model=model, trigger_state=None, events=[])
    return model


async def newest_deployment(store: Store) -> Deployment:
    return (await store.deployments("S", limit=1))[0]


async def test_manual_mode_only_tells(tmp_path: Path) -> None:
    """The default: a model waits for a person, and the reason says what to type."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path)
        model = await register(world, 1)
        result = await world.applier.apply(model, by="trigger")
        assert isinstance(result, ApplySkipped)
        assert "swarm-worker apply --scenario S --model 1" in result.reason
        assert await store.deployments("S") == []
        assert isinstance(await world.applier.apply_now(model, by="anna"), Applied)


@pytest.mark.parametrize("verdict", ["rejected", "not_evaluable"])
async def test_what_the_gate_does_not_bless_is_applied_only_by_force(
    tmp_path: Path, verdict: Literal["rejected", "not_evaluable"]
) -> None:
    """And the log says that it was forced, and by whom."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path, mode="auto")
        model = await register(world, 1, verdict=verdict)
        result = await world.applier.apply(model, by="trigger")
        assert isinstance(result, ApplySkipped)
        assert verdict in result.reason
        assert isinstance(await world.applier.apply_now(model, by="anna", forced=True), Applied)
        row = await newest_deployment(store)
        assert (row.forced, row.by, row.state) == (True, "anna", "verified")


async def test_applying_moves_aliases_counts_and_tells(tmp_path: Path) -> None:
    """Champion and previous point at what is and was live; the candidate that became champion is none any more."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto", applicator=FilesApplicator(tmp_path))
        first, second = await register(world, 1), await register(world, 2)
        await world.applier.apply(first, by="trigger")
        await world.applier.apply(second, by="trigger")
        assert await store.aliases("S") == {"champion": second.model_id, "previous": first.model_id}
        assert await world.applier.history("S", "offline") == [second.model_id, first.model_id]
        assert (await store.facts("S")).models_applied == 2
        events = await world.events()
        assert [type(event.data) for event in events] == [AppliedEvent] * 2
        assert isinstance(events[1].data, AppliedEvent)
        assert events[1].data.previous_model_id == first.model_id
        assert events[1].data.verified
        assert await world.applicator.served("S") == second.sha256


async def test_auto_never_applies_an_older_version_over_a_newer(tmp_path: Path) -> None:
    """A late training must not turn time back."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path, mode="auto")
        first, second = await register(world, 1), await register(world, 2)
        await world.applier.apply(second, by="trigger")
        assert isinstance(await world.applier.apply(first, by="trigger"), ApplySkipped)


async def test_rollback_goes_back_step_by_step_and_ends(tmp_path: Path) -> None:
    """Each step is a row and an event; where there is nothing earlier it says so."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto")
        first, second, third = [await register(world, n) for n in (1, 2, 3)]
        for model in (first, second, third):
            assert isinstance(await world.applier.apply(model, by="trigger"), Applied)
        assert (await world.applier.rollback("S", by="anna")).model_id == second.model_id
        assert await store.aliases("S") == {"champion": second.model_id, "previous": first.model_id}
        assert (await world.applier.rollback("S", by="anna")).model_id == first.model_id
        assert await store.aliases("S") == {"champion": first.model_id}
        assert await world.applicator.served("S") == first.sha256
        with pytest.raises(NoPrevious, match="no earlier model"):
            await world.applier.rollback("S", by="anna")
        last = (await world.events())[-1].data
        assert isinstance(last, RolledBack)
        assert (last.reason, last.details["live_model_id"]) == ("rollback", first.model_id)
        assert (await store.facts("S")).models_applied == 3  # a rollback is no apply


async def test_rollback_may_name_an_earlier_model_but_none_that_was_never_live(tmp_path: Path) -> None:
    """Two steps at once; a model that was never live is applied, not rolled back to."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path, mode="auto")
        models = []
        for n in (1, 2, 3):
            models.append(await register(world, n))
            await world.applier.apply(models[-1], by="trigger")
        never = await register(world, 4)
        with pytest.raises(NoPrevious):
            await world.applier.rollback("S", by="anna", to=never)
        assert (await world.applier.rollback("S", by="anna", to=models[0])).model_id == models[0].model_id


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "keeps-the-old-one"])
async def test_what_is_not_really_served_is_failed_and_the_previous_model_serves_again(
    tmp_path: Path, *, refuses: bool
) -> None:
    """Verification looks at what is served; a 200 is not enough."""
    async with opened(tmp_path) as store:
        applicator = Stubborn(refuses=refuses)
        world = worker_over(store, tmp_path, mode="auto", applicator=applicator)
        first, second = await register(world, 1), await register(world, 2)
        applicator.stuck = False
        await world.applier.apply(first, by="trigger")
        applicator.stuck = True
        with pytest.raises(ApplyFailed):
            await world.applier.apply(second, by="trigger")
        row = await newest_deployment(store)
        assert (row.state, row.model_id) == ("failed", second.model_id)
        aliases = await store.aliases("S")
        assert (aliases["champion"], aliases["candidate"]) == (first.model_id, second.model_id)
        assert await applicator.served("S") == first.sha256
        assert (await store.facts("S")).models_applied == 1
        failed = [event.data for event in await world.events() if isinstance(event.data, Failed)]
        assert failed[0].reason == "apply_failed"
        assert failed[0].details["model_id"] == second.model_id


async def test_a_first_model_that_cannot_be_applied_leaves_none_served(tmp_path: Path) -> None:
    """There is nothing to go back to but nothing."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path, mode="auto", applicator=Stubborn())
        with pytest.raises(ApplyFailed):
            await world.applier.apply(await register(world, 1), by="trigger")
        assert await world.applicator.served("S") is None
        assert "champion" not in await store.aliases("S")


async def test_a_server_that_is_away_is_told_once_though_the_way_back_fails_too(tmp_path: Path) -> None:
    """A page of one error twice, in `models history`."""

    class Away(Stubborn):
        async def apply(self, model: Model, content: bytes) -> None:
            raise ApplyFailed("connection refused")

        async def withdraw(self, scenario: str) -> None:
            raise ApplyFailed("connection refused")

    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path, mode="auto", applicator=Away())
        with pytest.raises(ApplyFailed):
            await world.applier.apply(await register(world, 1), by="trigger")
        row = await newest_deployment(store)
        assert row.detail == "connection refused; and the way back failed, for the same reason"


async def test_a_folder_that_is_a_link_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    """It cannot be made durable; a model that was reported as failed and served all the same would be a lie."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto", applicator=FilesApplicator(tmp_path))
        model = await register(world, 1)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (tmp_path / "current").symlink_to(elsewhere)
        with pytest.raises(ApplyFailed, match="cannot be written"):
            await world.applier.apply(model, by="trigger")
        assert list(elsewhere.iterdir()) == []


async def test_a_model_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    """S12: one byte is enough, and a symlink is none of ours."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto", applicator=FilesApplicator(tmp_path))
        model = await register(world, 1)
        path = tmp_path / "models/S/1/model.json"
        good = path.read_bytes()
        path.write_bytes(good.replace(b"look", b"lick", 1))
        with pytest.raises(ApplyFailed, match="was changed"):
            await world.applier.apply(model, by="trigger")
        assert await world.applicator.served("S") is None

        (tmp_path / "elsewhere.json").write_bytes(good)
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere.json")
        with pytest.raises(ApplyFailed, match="cannot be read"):
            await world.registry.read(model)

        path.unlink()
        os.mkfifo(path)  # a read would wait for ever, and all later deployments of the scenario behind it
        with pytest.raises(ApplyFailed, match="no regular file"):
            await world.registry.read(model)


@pytest.mark.parametrize("applied_before_the_crash", [True, False])
async def test_a_deployment_that_a_crash_left_started_is_carried_on_once(
    tmp_path: Path, *, applied_before_the_crash: bool
) -> None:
    """Killed before or after the applicator did its work: the same row ends verified, with one event."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, applicator=FilesApplicator(tmp_path))
        model = await register(world, 1)
        await store.deploy(
            Deployment(
                deployment_id="d1", scenario="S", model_id=model.model_id, previous_model_id=None, action="apply",
                applicator="files", target="x", state="started", by="anna", forced=False, at_ms=1,
            ),
            aliases={}, events=[],
        )  # fmt: skip
        if applied_before_the_crash:
            await world.applicator.apply(model, await world.registry.read(model))
        again = worker_over(store, tmp_path, boot="boot2", applicator=FilesApplicator(tmp_path))
        await again.applier.reconcile("S", "offline")
        await again.applier.reconcile("S", "offline")
        (row,) = await store.deployments("S")
        assert (row.deployment_id, row.state) == ("d1", "verified")
        assert await store.aliases("S") == {"champion": model.model_id}
        assert len(await world.events()) == 1
        assert await again.applicator.served("S") == model.sha256


async def test_a_start_survives_that_a_thawed_worker_ends_the_deployment_first(tmp_path: Path) -> None:
    """It was only frozen, not dead; its word stands, and the start goes on."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        model = await register(world, 1)
        started = Deployment(
            deployment_id="d1", scenario="S", model_id=model.model_id, previous_model_id=None, action="apply",
            applicator="noop", target="x", state="started", by="anna", forced=False, at_ms=1,
        )  # fmt: skip
        await store.deploy(started, aliases={}, events=[])
        get = world.registry.get

        async def thawed(model_id: str) -> Model:
            verified = replace(started, state="verified")
            await store.deploy(verified, aliases={"champion": model.model_id}, events=[])
            return await get(model_id)

        world.registry.get = thawed  # type: ignore[method-assign]
        await world.applier.reconcile("S", "offline")
        assert [row.state for row in await store.deployments("S")] == ["verified"]
        assert await world.applicator.served("S") == model.sha256


async def test_start_serves_the_live_model_again_where_it_is_gone(tmp_path: Path) -> None:
    """Somebody deleted or changed the current file: the store knows what must be there."""
    async with opened(tmp_path) as store:
        files = FilesApplicator(tmp_path)
        world = worker_over(store, tmp_path, mode="auto", applicator=files)
        model = await register(world, 1)
        await world.applier.apply(model, by="trigger")
        for spoil in (files.path("S").unlink, lambda: files.path("S").write_text("{")):
            spoil()
            await world.applier.reconcile("S", "offline")
            assert await files.served("S") == model.sha256
        assert len(await store.deployments("S")) == 1


async def test_files_of_models_nobody_goes_back_to_are_removed_and_rows_stay(tmp_path: Path) -> None:
    """Retention keeps the live one, those a rollback may bring back, and the newest."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto")
        for n in range(1, 7):
            await world.applier.apply(await register(world, n), by="trigger")
        assert sorted(path.name for path in (tmp_path / "models/S").iterdir()) == ["4", "5", "6"]
        assert len(await store.models("S")) == 6
        assert len(await world.applier.history("S", "offline")) == 3


async def test_history_ends_where_files_were_removed_however_often_one_goes_back(tmp_path: Path) -> None:
    """What it names can be gone back to; what lies deeper is not reached again by going back."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto")
        models = []
        for n in range(1, 7):
            models.append(await register(world, n))
            await world.applier.apply(models[-1], by="trigger")
        back = [(await world.applier.rollback("S", by="anna")).model_id for _ in range(2)]
        assert back == [models[4].model_id, models[3].model_id]
        assert await store.aliases("S") == {"champion": models[3].model_id}
        with pytest.raises(NoPrevious):
            await world.applier.rollback("S", by="anna")


async def test_a_model_is_found_by_id_version_and_alias(tmp_path: Path) -> None:
    """As a person names it; a miss says how to list them."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path, mode="auto")
        model = await register(world, 1)
        await world.applier.apply(model, by="trigger")
        for name in (model.model_id, "1", "champion"):
            assert await world.registry.find("S", name) == model
        for name in ("7", "previous", "0" * 32):
            with pytest.raises(NotFound, match="swarm-worker models"):
                await world.registry.find("S", name)
        with pytest.raises(NotFound):
            await world.registry.find("other", model.model_id)


async def test_the_current_file_is_one_whole_document_that_nodes_can_check(tmp_path: Path) -> None:
    """Replaced at once, readable by other users, with the model's own bytes inside."""
    async with opened(tmp_path, "memory") as store:
        files = FilesApplicator(tmp_path)
        world = worker_over(store, tmp_path, mode="auto", applicator=files)
        model = await register(world, 1)
        await world.applier.apply(model, by="trigger")
        text = files.path("S").read_bytes()
        assert await world.registry.read(model) in text
        assert hashlib.sha256(await world.registry.read(model)).hexdigest() == model.sha256
        assert files.path("S").stat().st_mode & 0o777 == 0o644
        assert [path.name for path in files.path("S").parent.iterdir()] == ["S.json"]
        for name in ("..", "a/b", "a\n", "", "x" * 65):
            with pytest.raises(ValueError, match="no scenario name"):
                files.path(name)
