"""Adapters and offline models side by side: runs, watermarks, triggers and what a command says of both."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.test_training_runs import ended
from tests.unit.test_training_scheduler import scheduler
from tests.unit.training_world import World, eventually, opened, worker_over
from worker.control.operations import CommandRefused, Operations
from worker.errors import CommandFailed, NotFound
from worker.models.adapter import ADAPTER_DIR
from worker.models.applicators.noop import NoopApplicator
from worker.models.deployer import Applied as AppliedResult
from worker.models.deployer import NoPrevious
from worker.store.port import Model, Run, Store, trigger_key
from worker.training.child import ChildEnd, ChildLauncher, Died, OnProgress, OnStep, TrainingStep
from worker.training.recipe import Recipe
from worker.wire.commands import Apply, Command, Rollback, TrainNow
from worker.wire.events import Applied, Trained

BOTH: Any = ("offline", "lora")


def told(tmp_path: Path, word: str) -> Path:
    """A word to the scripted trainer of adapters."""
    path = tmp_path / "lora/data" / word
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


async def trained(store: Store, tmp_path: Path, word: str, *, episodes: int = 30) -> tuple[World, Run]:
    """A worker of adapters alone, and how its training of so many episodes ended that was told this word."""
    world = worker_over(store, tmp_path, kinds=("lora",))
    told(tmp_path, word)
    await world.feed(episodes)
    async with world.running():
        return world, await ended(world, await world.command("c1", kind="lora"))


class _Ready:
    async def catch_up(self, *, within: float) -> int:
        return 0


def operations(world: World) -> Operations:
    nothing = cast("Any", None)
    return Operations(
        scenarios=("S",), store=world.store, clock=world.tools.clock, runs=world.runs, book=world.tools.book,
        applier=world.applier, registry=world.registry, projector=cast("Any", _Ready()), intake=nothing,
        rules_of=nothing, producers=None, dead=nothing, status=nothing, stop_and_drain=nothing,
    )  # fmt: skip


def command(args: Any, command_id: str = "c1") -> Command:
    return Command(command="x", command_id=command_id, args=args, scenario="S")


async def test_a_run_of_an_adapter_brings_its_files_document_event_and_its_own_watermark(tmp_path: Path) -> None:
    """And leaves what the offline model's trigger remembers as it was."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH, mode="auto")
        await world.feed(30)
        async with world.running():
            run = await ended(world, await world.command("c1", kind="lora"))
        assert (run.state, run.kind, run.reason) == ("trained", "lora", None)
        (model,) = await store.models("S")
        assert (model.kind, model.version, model.run_id) == ("lora", 1, run.run_id)
        assert model.lineage["counts"]["examples"] > 0
        directory = tmp_path / "models/S/1"
        document = json.loads((directory / "model.json").read_bytes())
        for file in document["files"]:
            assert (directory / ADAPTER_DIR / file["path"]).stat().st_size == file["size"]
        data = json.loads((directory / "training_data.json").read_bytes())
        assert data["scenario"] == "S"
        assert await store.aliases("S") == {"lora-champion": model.model_id}
        trained, applied = [event.data for event in await world.events()]
        assert isinstance(trained, Trained)
        assert isinstance(applied, Applied)
        assert (trained.kind, applied.kind, bool(trained.model)) == ("lora", "lora", False)
        assert (await store.trigger_state(trigger_key("S", "lora"))).trained_upto == 1
        assert (await store.trigger_state("S")).trained_upto is None
        assert [list(path.iterdir()) for path in (tmp_path / "lora").iterdir()] == [[], []]


async def test_hours_of_one_scenarios_adapter_hold_up_no_other_learning(tmp_path: Path) -> None:
    """One adapter at a time over all scenarios, and beside it offline models of the others."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH, scenarios=("A", "B"))
        wait = told(tmp_path, "wait")
        for scenario in ("A", "B"):
            await world.feed(30, scenario=scenario)
        adapters = [await world.command("c1", scenario=name, kind="lora") for name in ("A", "B")]
        async with world.running():
            await eventually(lambda: world.runs.current("A") is not None)
            await ended(world, await world.command("c2", scenario="B"))
            assert (await store.run(adapters[1])).state == "queued"  # type: ignore[union-attr]
            wait.unlink()
            assert [(await ended(world, run_id)).state for run_id in adapters] == ["trained", "trained"]
        assert world.runs.stats.trained == 3


async def test_a_trigger_asks_for_both_kinds_and_each_goes_by_its_own_last_training(tmp_path: Path) -> None:
    """The offline model first. An adapter that failed is tried again after its back-off, and delays nothing else."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        timer = scheduler(world, "count(20)")
        await world.feed(21)
        assert await timer.check("S")
        assert [run.kind for run in reversed(await store.runs("S"))] == ["offline", "lora"]
        assert await timer.waiting_for("S") == "a training is queued"
        told(tmp_path, "exit")
        async with world.running():
            await eventually(lambda: world.runs.stats.trained + world.runs.stats.failed == 2)
        assert [(run.kind, run.state) for run in reversed(await store.runs("S"))] == [
            ("offline", "trained"), ("lora", "failed"),
        ]  # fmt: skip
        assert (await store.trigger_state("S")).failures == 0
        assert (await store.trigger_state(trigger_key("S", "lora"))).failures == 1
        timer = scheduler(world, "count(20)")
        waiting = await timer.waiting_for("S")
        assert waiting == "offline: new episodes or sessions; lora: 30 s more (after 1 failed trainings)"
        await world.feed(21)
        assert await timer.check("S")
        assert [(run.kind, run.state) for run in await store.runs("S", limit=1)] == [("offline", "queued")]


async def test_an_adapter_that_is_being_trained_does_not_keep_the_offline_trigger_from_asking(tmp_path: Path) -> None:
    """Its run waits, one of a scenario at a time, over the records of now."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        wait = told(tmp_path, "wait")
        await world.feed(21)
        await world.command("c1", kind="lora")
        async with world.running():
            await eventually(lambda: world.runs.current("S") is not None)
            assert await scheduler(world, "count(20)").check("S")
            assert not await scheduler(world, "count(20)").check("S")
            wait.unlink()
            await eventually(lambda: world.runs.stats.trained == 2)


async def test_a_pause_is_about_every_kind(tmp_path: Path) -> None:
    """Also of a kind that the worker trains only after its next start."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(21)
        await world.tools.book.pause("S", paused=True)
        assert not await scheduler(worker_over(store, tmp_path, kinds=BOTH), "count(20)").check("S")
        await world.tools.book.pause("S", paused=False)
        assert await scheduler(worker_over(store, tmp_path, kinds=("lora",)), "count(20)").check("S")
        assert [run.kind for run in await store.runs("S")] == ["lora"]


async def test_the_step_of_a_training_is_seen_while_it_goes_on(tmp_path: Path) -> None:
    """Step, loss and what is left, for status and metrics."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=("lora",))
        await world.feed(30)
        seen = []
        async with world.running():
            run_id = await world.command("c1", kind="lora")
            await eventually(lambda: world.runs.current("S") is not None)
            current = world.runs.current("S")
            assert current is not None
            await ended(world, run_id)
            seen.append(current.step)
        assert [(step.step, step.steps, step.loss) for step in seen if step] == [(1, 2, 0.5)]


async def test_what_the_child_finds_too_little_is_skipped_with_its_words(tmp_path: Path) -> None:
    """Too few examples are no failure: more may come."""
    async with opened(tmp_path) as store:
        _, run = await trained(store, tmp_path, "nothing", episodes=3)
        assert (run.state, run.reason) == ("skipped", "nothing_to_learn: 3 examples, and 20 are needed")
        assert [list(path.iterdir()) for path in (tmp_path / "lora").iterdir() if path.name == "adapters"] == [[]]


async def test_an_adapter_whose_files_are_not_what_it_says_is_a_failed_run(tmp_path: Path) -> None:
    """Nothing of it is registered, and nothing half-copied is left."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=("lora",))
        wait = told(tmp_path, "wait")
        await world.feed(30)
        run_id = await world.command("c1", kind="lora")
        # In the way of the directory in which the child would put its files: a link to somebody else's.
        (tmp_path / "elsewhere").mkdir()
        output = tmp_path / "lora/adapters" / run_id
        output.mkdir(parents=True)
        (output / ADAPTER_DIR).mkdir()
        (output / ADAPTER_DIR / "peft").symlink_to(tmp_path / "elsewhere")
        wait.unlink()
        async with world.running():
            run = await ended(world, run_id)
        assert run.state == "failed"
        assert "symbolic link" in (run.reason or "")
        assert await store.models("S") == []
        assert not (tmp_path / "models").exists() or not list((tmp_path / "models/S").iterdir())


async def test_an_adapter_with_a_file_too_few_is_bad_output_and_says_which(tmp_path: Path) -> None:
    """A training script of the operator's may leave anything."""
    async with opened(tmp_path) as store:
        _, run = await trained(store, tmp_path, "forget")
        assert run.state == "failed"
        assert (run.reason or "").startswith("bad_output: ")
        assert "adapter_model.safetensors" in (run.reason or "")
        assert await store.models("S") == []


async def test_a_killed_training_goes_on_from_its_checkpoint_as_the_same_run(tmp_path: Path) -> None:
    """By the kernel for want of memory, say. What it had frozen and written is still there at the next start."""
    async with opened(tmp_path) as store:
        world, run = await trained(store, tmp_path, "die")
        assert list((tmp_path / "lora/data").iterdir()) == []
        assert (run.state, run.attempts) == ("trained", 2)
        assert world.runs.stats.interrupted == 1
        assert [event.type for event in await world.events()] == ["learning.trained"]


async def test_a_training_that_is_killed_each_time_is_given_up(tmp_path: Path) -> None:
    """What kills it may be the training itself."""
    async with opened(tmp_path) as store:
        _, run = await trained(store, tmp_path, "die_always")
        assert (run.state, run.attempts, run.reason) == ("failed", 3, "signal:9")
        assert [path.name for path in (tmp_path / "lora/data").iterdir()] == ["die_always"]


class TooSlow(ChildLauncher):
    """Reaches its time limit of 60 s at each of these steps, of 10 that take 20 s each; then trains to the end."""

    def __init__(self, steps: list[int], after: ChildLauncher) -> None:
        super().__init__(timeout=60, memory_mb=0, timeout_setting="SWARM_LORA_TIMEOUT")
        self._steps = steps
        self._after = after

    async def run(
        self,
        run_dir: Path,
        on_progress: OnProgress,
        *,
        output_dir: Path | None = None,
        on_step: OnStep | None = None,
    ) -> ChildEnd:
        """See `ChildLauncher.run`."""
        if not self._steps:
            return await self._after.run(run_dir, on_progress, output_dir=output_dir, on_step=on_step)
        if step := self._steps.pop(0):
            assert on_step is not None
            on_step(TrainingStep(step=step, steps=10, loss=0.5, seconds_left=20.0 * (10 - step)))
        on_progress(0.1, f"step {step} of 10")
        return Died("timeout", "it took longer than 60 s (SWARM_LORA_TIMEOUT)")


@pytest.mark.parametrize(
    ("steps", "ended_as"),
    [
        ([5, 8], ("trained", 3, None)),  # 100 s are left for 120 s, then 40 s for 60 s
        ([3], ("failed", 1, "step 3 of 10")),  # 140 s are left for 120 s
        ([0], ("failed", 1, "step 0 of 10")),  # it hangs before the first step
        ([5, 8, 9], ("failed", 3, "step 9 of 10")),
    ],
)
async def test_a_training_that_reaches_its_time_limit_goes_on_where_it_can_end_so(
    tmp_path: Path, steps: list[int], ended_as: tuple[str, int, str | None]
) -> None:
    """On the same data, from its checkpoint, three times at most; it failed, and the next one began anew."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=("lora",))
        recipe = world.tools.recipes["lora"]
        launcher = TooSlow(steps, recipe.launcher)
        cast("dict[str, Recipe]", world.tools.recipes)["lora"] = dataclasses.replace(recipe, launcher=launcher)
        await world.feed(30)
        async with world.running():
            run = await ended(world, await world.command("c1", kind="lora"))
        state, attempts, where = ended_as
        reason = where and f"timeout: it took longer than 60 s (SWARM_LORA_TIMEOUT); it had come to: {where}"
        assert (run.state, run.attempts, run.reason) == (state, attempts, reason)


async def test_equal_data_give_the_same_adapter_and_no_new_version(tmp_path: Path) -> None:
    """Forced, over the same records."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=("lora",))
        await world.feed(30)
        async with world.running():
            await ended(world, await world.command("c1", kind="lora"))
            again = await ended(world, await world.command("c2", kind="lora", force=True))
        assert (again.state, again.reason) == ("skipped", "unchanged: it is the same model as version 1")


async def test_train_now_means_what_the_mode_says_and_tells_of_both(tmp_path: Path) -> None:
    """One run's answer as it is, two by kind; a kind that is not trained here is refused with the cure."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        act = operations(world)
        await world.feed(30)
        dry = await act.carry_out(command(TrainNow(dry_run=True)))
        assert (dry["offline"]["would_train"], dry["lora"]["would_train"]) == (True, True)
        async with world.running(), asyncio.timeout(30):
            both = await act.carry_out(command(TrainNow()))
            assert {kind: one["state"] for kind, one in both.items()} == {"offline": "trained", "lora": "trained"}
            assert both["lora"]["model_version"] == 2
            one = await act.carry_out(command(TrainNow(kind="lora"), "c2"))
            assert (one["kind"], one["state"]) == ("lora", "skipped")
            told(tmp_path, "exit")
            with pytest.raises(CommandFailed, match=r"the lora training failed: exit:7: no luck") as failed:
                await act.carry_out(command(TrainNow(force=True), "c3"))
            assert failed.value.result["offline"]["state"] == "skipped"
        offline_only = operations(worker_over(store, tmp_path))
        with pytest.raises(CommandRefused, match="SWARM_PROCESSOR_MODE to lora or full"):
            await offline_only.carry_out(command(TrainNow(kind="lora")))


async def test_apply_takes_the_newest_candidate_and_rollback_the_kind_that_changed_last(tmp_path: Path) -> None:
    """Each kind has its history; what one goes back to is nothing of the other's."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        act = operations(world)
        async with world.running(), asyncio.timeout(40):
            for number in range(2):
                await world.feed(30)
                await act.carry_out(command(TrainNow(), f"t{number}"))
                for _ in BOTH:
                    await act.carry_out(command(Apply(), f"a{number}{_}"))
        versions = {model.model_id: model.version for model in await store.models("S")}
        aliases = {name: versions[model_id] for name, model_id in (await store.aliases("S")).items()}
        assert aliases == {"champion": 3, "previous": 1, "lora-champion": 4, "lora-previous": 2}
        # The offline model was applied last, since the adapter is the newer candidate.
        assert versions[(await act.carry_out(command(Rollback(), "r1")))["model_id"]] == 1
        assert versions[(await act.carry_out(command(Rollback(kind="lora"), "r2")))["model_id"]] == 2
        with pytest.raises(CommandRefused, match="is of kind lora"):
            await act.carry_out(command(Rollback(model_id="2", kind="offline"), "r3"))
        await act.carry_out(command(Apply(version=4), "a4"))
        with pytest.raises(NoPrevious, match=r"no earlier model to go back to \(kind offline\); .* with: --kind lora"):
            await act.carry_out(command(Rollback(kind="offline"), "r4"))


async def test_apply_takes_the_newest_candidate_of_the_kind_it_names(tmp_path: Path) -> None:
    """Else the adapter, which is trained last, stands before the statistics each time."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        act = operations(world)
        await world.feed(30)
        async with world.running(), asyncio.timeout(30):
            await act.carry_out(command(TrainNow(), "t"))
        assert (await act.carry_out(command(Apply(kind="offline"), "a1")))["kind"] == "offline"
        with pytest.raises(NotFound, match="no model of kind offline that waits"):
            await act.carry_out(command(Apply(kind="offline"), "a2"))
        with pytest.raises(CommandRefused, match="is of kind lora"):
            await act.carry_out(command(Apply(kind="offline", version=2), "a3"))
        assert (await act.carry_out(command(Apply(kind="lora"), "a4")))["kind"] == "lora"


async def test_a_command_that_is_carried_out_again_brings_no_other_model(tmp_path: Path) -> None:
    """Killed between the apply and its answer: the candidate of then is live, and the one of now was not meant."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        act = operations(world)
        await world.feed(30)
        async with world.running(), asyncio.timeout(30):
            await act.carry_out(command(TrainNow(), "t"))
        first = await act.carry_out(command(Apply(), "a"))
        assert await operations(worker_over(store, tmp_path, kinds=BOTH)).carry_out(command(Apply(), "a")) == first
        assert len(await store.deployments("S")) == 1
        assert set(await store.aliases("S")) == {"candidate", "lora-champion"}


async def test_a_run_that_was_left_by_a_worker_of_another_mode_is_in_nobodys_way(tmp_path: Path) -> None:
    """Killed while an adapter was trained, and started again without LoRA: its run goes back into the queue."""
    async with opened(tmp_path) as store:
        before = worker_over(store, tmp_path, kinds=BOTH)
        await before.feed(60)
        left = await before.command("c1", kind="lora")
        now_ms = before.tools.clock.now_ms() - 60_000
        epoch = await store.acquire_lease("training.S", "w.killed", now_ms=now_ms, ttl_ms=15_000)
        assert epoch is not None
        await store.start_run(left, owner="w.killed", lease="training.S", epoch=epoch, now_ms=now_ms)
        world = worker_over(store, tmp_path, boot="boot2")
        async with world.running():
            assert (await ended(world, await world.command("c2"))).state == "trained"
        waiting = await store.run(left)
        assert waiting is not None
        assert (waiting.state, waiting.reason) == ("queued", "interrupted; this worker trains no lora models")
        again = worker_over(store, tmp_path, boot="boot3", kinds=BOTH)
        async with again.running():
            assert (await ended(again, left)).state == "trained"


async def test_directories_of_ended_runs_go_at_start_and_a_checkpoint_of_one_that_waits_stays(tmp_path: Path) -> None:
    """The next attempt goes on from it."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, kinds=BOTH)
        await world.feed(30)
        waiting = await world.command("c1", kind="lora")
        gone = "9f1d4a4e-5f2b-5c1d-9a53-0c8f2f0e7b11"
        for folder in ("runs", "lora/data", "lora/adapters"):
            for name in (waiting, gone):
                (tmp_path / folder / name / "checkpoint").mkdir(parents=True)
        await world.runs.clean_up()
        for folder in ("runs", "lora/data", "lora/adapters"):
            assert [path.name for path in (tmp_path / folder).iterdir()] == [waiting]
        shutil.rmtree(tmp_path / "lora")


class Slow(NoopApplicator):
    """Loads for as long as nobody sets `loaded`."""

    def __init__(self) -> None:
        super().__init__()
        self.loading = asyncio.Event()
        self.loaded = asyncio.Event()

    async def apply(self, model: Model, content: bytes) -> None:
        """Serve it in the end."""
        self.loading.set()
        await self.loaded.wait()
        await super().apply(model, content)


async def test_an_adapter_that_is_loaded_and_watched_for_long_holds_up_no_training(tmp_path: Path) -> None:
    """Neither its scenario's offline model nor another's adapter; its own next one waits, and so does who asked."""
    async with opened(tmp_path) as store:
        server = Slow()
        world = worker_over(store, tmp_path, kinds=BOTH, scenarios=("A", "B"), mode="auto", adapters=server)
        for scenario in ("A", "B"):
            await world.feed(30, scenario=scenario)
        async with world.running():
            first = await world.command("c1", scenario="A", kind="lora")
            waiting = asyncio.create_task(world.runs.wait(first))
            await asyncio.wait_for(server.loading.wait(), 20)
            second = await world.command("c2", scenario="A", kind="lora", force=True)
            await ended(world, await world.command("c3", scenario="A"))
            third = await world.command("c4", scenario="B", kind="lora", apply=False)
            await ended(world, third)
            assert (await store.run(second)).state == "queued"  # type: ignore[union-attr]
            assert not waiting.done()
            server.loaded.set()
            await ended(world, second)
            assert waiting.done()
        assert isinstance(world.runs.applied(first), AppliedResult)
        assert await server.served("A") is not None


async def test_a_stop_in_the_middle_of_an_apply_leaves_it_to_the_next_start(tmp_path: Path) -> None:
    """The row says started; the next start carries it on."""
    async with opened(tmp_path) as store:
        server = Slow()
        world = worker_over(store, tmp_path, kinds=BOTH, mode="auto", adapters=server)
        await world.feed(30)
        async with world.running():
            await world.command("c1", kind="lora")
            await asyncio.wait_for(server.loading.wait(), 20)
        assert [row.state for row in await store.deployments("S")] == ["started"]
        again = worker_over(store, tmp_path, boot="boot2", kinds=BOTH, mode="auto")
        assert await again.applier.reconcile("S", "lora")
        await again.runs.recover("S", "lora")
        assert [row.state for row in await store.deployments("S")] == ["verified"]
        assert set(await store.aliases("S")) == {"lora-champion"}
