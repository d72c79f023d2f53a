"""Runs: from a request to a row, a model and an event, through every kind of end, crash and restart (T10, T13)."""

from __future__ import annotations

import asyncio
import errno
import shutil
import time
from pathlib import Path

import pytest

from tests.unit.training_world import TIMING, World, eventually, opened, scripted, worker_over
from worker.errors import LeaseLost
from worker.models.deployer import Applied as AppliedNow
from worker.models.files import Manifest
from worker.store.port import Run
from worker.training.execution import Execution, Timing
from worker.training.handover import HandOver
from worker.wire.events import Applied, Failed, Skipped, Trained

HANG = "import time; time.sleep(600)"


async def ended(world: World, run_id: str) -> Run:
    async with asyncio.timeout(20):
        run = await world.runs.wait(run_id)
    assert run is not None
    return run


async def test_a_run_brings_a_model_with_lineage_files_event_and_watermark(tmp_path: Path) -> None:
    """Everything a training changes, changed once."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(60)
        async with world.running():
            run = await ended(world, await world.command("c1"))
        assert (run.state, run.attempts, run.progress) == ("trained", 1, 1.0)
        (model,) = await store.models("S")
        assert (model.model_id, model.version, model.run_id) == (run.model_id, 1, run.run_id)
        assert model.lineage["window"] == {"lo": 1, "hi": 1}
        assert model.lineage["counts"]["records"] == 180
        assert model.gate_verdict == "blessed", model.gate_reasons
        assert await world.registry.read(model)
        assert (tmp_path / "models/S/1/manifest.json").is_file()
        assert await store.aliases("S") == {"candidate": model.model_id}
        (event,) = await world.events()
        assert isinstance(event.data, Trained)
        assert (event.data.run_id, event.data.sha256, event.data.trigger.by) == (run.run_id, model.sha256, "tester")
        state = await store.trigger_state("S")
        facts = await store.facts("S")
        assert (state.trained_upto, state.trained_episodes, state.failures) == (1, facts.episodes, 0)
        assert facts.trainings_completed == 1
        assert not list((tmp_path / "runs").iterdir())
        assert not list((tmp_path / "tmp").iterdir())


async def test_what_the_gate_blesses_is_applied_in_mode_auto(tmp_path: Path) -> None:
    """Trigger to applied, without anybody's hand."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto")
        await world.feed(60)
        async with world.running():
            run = await world.runs.request("S", trigger={"kind": "count", "values": {}, "by": "trigger"})
            await ended(world, run.run_id)
        (model,) = await store.models("S")
        assert await store.aliases("S") == {"champion": model.model_id}
        assert await world.applicator.served("S") == model.sha256
        assert [type(event.data) for event in await world.events()] == [Trained, Applied]


@pytest.mark.parametrize(
    ("mode", "apply", "live"), [("manual", True, True), ("auto", False, False), ("manual", None, False)]
)
async def test_a_command_may_say_whether_to_apply(tmp_path: Path, mode: str, apply: bool | None, live: bool) -> None:
    """The original's train_now never applied, its timer always did (fault 5)."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto" if mode == "auto" else "manual")
        await world.feed(60)
        async with world.running():
            run = await ended(world, await world.command("c1", apply=apply))
        assert ("champion" in await store.aliases("S")) is live
        assert world.runs.applied(run.run_id) is not None


async def test_a_command_without_news_is_skipped_and_told(tmp_path: Path) -> None:
    """An answer with its reason, not silence and not a training over nothing."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        async with world.running():
            run = await ended(world, await world.command("c1"))
        assert run.state == "skipped"
        (event,) = await world.events()
        assert isinstance(event.data, Skipped)
        assert event.data.reason == "nothing_new"
        assert (run.reason or "").startswith("nothing_new: no episodes yet"), "there was no training before it"


async def test_the_same_command_twice_is_one_run(tmp_path: Path) -> None:
    """Also when records came in between, as after a crash."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(3)
        first = await world.command("c1", force=True)
        await world.feed(3)
        assert await world.command("c1", force=True) == first


async def test_a_command_joins_a_run_that_waits_for_the_same_records(tmp_path: Path) -> None:
    """Two people who say train-now get one training; force is on purpose."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(3)
        first = await world.command("c1")
        assert await world.command("c2") == first
        assert await world.command("c3", force=True) != first


async def test_forced_training_over_the_same_records_gives_the_same_model_and_says_so(tmp_path: Path) -> None:
    """Equal evidence, equal model: no new version."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(60)
        async with world.running():
            await ended(world, await world.command("c1"))
            run = await ended(world, await world.command("c2", force=True))
        assert run.state == "skipped"
        assert run.reason is not None
        assert run.reason.startswith("unchanged")
        assert len(await store.models("S")) == 1


async def test_a_child_that_dies_is_a_failed_run_with_backoff_and_the_service_goes_on(tmp_path: Path) -> None:
    """Reason, event, doubling wait; the watermark stays, and the next training works."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, launcher=scripted("import sys; sys.exit('the cause')"))
        await world.feed(60)
        async with world.running():
            run = await ended(world, await world.command("c1"))
            once = await store.trigger_state("S")
            await ended(world, await world.command("c2"))
            twice = await store.trigger_state("S")
        assert (run.state, run.reason) == ("failed", "exit:1: the cause")
        assert (once.failures, once.trained_upto) == (1, None)
        assert twice.not_before_ms - (twice.last_attempt_at_ms or 0) == 60_000
        assert once.not_before_ms - (once.last_attempt_at_ms or 0) == 30_000
        failed = (await world.events())[0].data
        assert isinstance(failed, Failed)
        assert (failed.reason, failed.details["detail"]) == ("exit:1", "the cause")

        mended = worker_over(store, tmp_path, boot="boot2")
        async with mended.running():
            assert (await ended(mended, await mended.command("c3"))).state == "trained"
        assert (await store.trigger_state("S")).failures == 0


async def test_three_failures_on_the_same_records_hold_the_trigger(tmp_path: Path) -> None:
    """Until new data come, or a command."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, launcher=scripted("import sys; sys.exit(7)"))
        await world.feed(30)
        async with world.running():
            for _ in range(3):
                assert not await world.runs.held("S", "offline")
                run = await world.runs.request("S", trigger={"kind": "count", "values": {}})
                assert (await ended(world, run.run_id)).state == "failed"
        assert await world.runs.held("S", "offline")
        await world.feed(1)
        assert not await world.runs.held("S", "offline")


async def test_a_timers_run_with_nothing_to_learn_is_skipped_without_an_event(tmp_path: Path) -> None:
    """A timer asks every few seconds; nobody wants to hear each time."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        async with world.running():
            run = await world.runs.request("S", trigger={"kind": "every", "values": {}})
            assert (await ended(world, run.run_id)).state == "skipped"
        assert await world.events() == []


async def test_shutdown_puts_a_running_training_back_and_the_next_start_carries_it_on(tmp_path: Path) -> None:
    """The same run, the same frozen input, one more attempt."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, launcher=scripted(HANG))
        await world.feed(60)
        async with world.running():
            run_id = await world.command("c1")
            await eventually((tmp_path / "runs" / run_id / "input.json").exists)
            await eventually(lambda: world.runs.current("S") is not None)
        frozen = (tmp_path / "runs" / run_id / "input.json").read_bytes()
        run = await store.run(run_id)
        assert run is not None
        assert (run.state, run.reason) == ("queued", "interrupted")
        assert world.runs.stats.interrupted == 1

        await world.feed(5)
        again = worker_over(store, tmp_path, boot="boot2")
        async with again.running():
            run = await ended(again, run_id)
        assert (run.state, run.attempts) == ("trained", 2)
        (model,) = await store.models("S")
        assert model.lineage["counts"]["records"] == 180  # as frozen, not as of now
        assert frozen
        assert (await store.trigger_state("S")).trained_upto == 1


async def test_a_run_that_a_dead_worker_left_running_is_done_again_under_a_new_epoch(tmp_path: Path) -> None:
    """Kill -9 of the worker: its lease runs out, another takes the run over, and one model comes of it."""
    async with opened(tmp_path) as store:
        dead = worker_over(store, tmp_path, boot="dead")
        await dead.feed(60)
        run_id = await dead.command("c1")
        now_ms = dead.tools.clock.now_ms()
        epoch = await store.acquire_lease("training.S", "w.dead", now_ms=now_ms, ttl_ms=700)
        assert epoch == 1
        await store.start_run(run_id, owner="w.dead", lease="training.S", epoch=epoch, now_ms=now_ms)

        world = worker_over(store, tmp_path, boot="boot2")
        async with world.running():
            run = await ended(world, run_id)
        assert (run.state, run.epoch, run.attempts) == ("trained", 2, 2)
        assert len(await world.events()) == 1


async def test_no_run_waits_for_the_lease_of_a_worker_that_is_dead(tmp_path: Path) -> None:
    """It took 15 s after a kill -9: the lock on the store's file had said all the time that nobody else lived."""
    async with opened(tmp_path) as store:
        dead = worker_over(store, tmp_path, boot="dead")
        await dead.feed(60)
        run_id = await dead.command("c1")
        now_ms = dead.tools.clock.now_ms()
        epoch = await store.acquire_lease("training.S", "w.dead", now_ms=now_ms, ttl_ms=3_600_000)
        assert epoch == 1
        await store.start_run(run_id, owner="w.dead", lease="training.S", epoch=epoch, now_ms=now_ms)
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, boot="boot2")
        async with world.running():
            run = await ended(world, run_id)
        assert (run.state, run.epoch, run.attempts) == ("trained", 2, 2)


async def test_a_zombies_commit_is_refused_and_its_child_is_ended(tmp_path: Path) -> None:
    """A worker that was frozen past its lease finds it gone, kills its child and writes nothing (T13)."""
    async with opened(tmp_path) as store:
        world = worker_over(
            store, tmp_path, launcher=scripted(HANG), timing=Timing(lease_ttl=5, renew=0.05, progress=0.02)
        )
        await world.feed(60)
        run_id = await world.command("c1")
        epoch = await store.acquire_lease(
            "training.S", world.tools.owner, now_ms=world.tools.clock.now_ms(), ttl_ms=5000
        )
        assert epoch is not None
        run = await store.run(run_id)
        assert run is not None
        execution = Execution(world.tools, run, lease="training.S", epoch=epoch)
        task = asyncio.create_task(execution.run())
        await eventually((tmp_path / "runs" / run_id / "input.json").exists)
        later = world.tools.clock.now_ms() + 60_000
        assert await store.acquire_lease("training.S", "other", now_ms=later, ttl_ms=15_000) == 2
        with pytest.raises(LeaseLost):
            async with asyncio.timeout(5):  # at once, not when the child is through
                await task
        assert await store.models("S") == []
        assert await world.events() == []


async def test_a_directory_that_was_renamed_but_never_registered_makes_way(tmp_path: Path) -> None:
    """Killed between rename and commit: the row, not the directory, says that there is a model."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(60)
        left = tmp_path / "models/S/1"
        left.mkdir(parents=True)
        (left / "model.json").write_text("half of something")
        async with world.running():
            await ended(world, await world.command("c1"))
        (model,) = await store.models("S")
        assert await world.registry.read(model) != b"half of something"
        assert sorted(path.name for path in (tmp_path / "models/S").iterdir()) == ["1"]


async def test_a_model_that_finds_no_room_on_the_disk_fails_with_the_cure_and_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said `internal: OSError`, with a trace in the log."""

    def full(path: Path, data: bytes, **_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(60)
        async with world.running():
            with monkeypatch.context() as patched:
                patched.setattr("worker.models.files.write_new", full)
                run = await ended(world, await world.command("c1"))
            assert run.state == "failed"
            assert run.reason is not None
            assert run.reason.startswith("disk_full: [Errno 28] No space left on device; free space where ")
            assert await store.models("S") == []
            assert not list((tmp_path / "tmp").iterdir()), "what was half written takes room that is wanted"
            assert (await ended(world, await world.command("c2"))).state == "trained"


async def test_start_removes_directories_without_a_row_and_half_written_ones(tmp_path: Path) -> None:
    """What a crash left on disk is collected, what is registered stays."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(60)
        async with world.running():
            await ended(world, await world.command("c1"))
        content = await world.registry.read((await store.models("S"))[0])
        orphan = Manifest(
            model_id="x", scenario="S", version=2, kind="offline", run_id="r", sha256="0", size=1, created_at_ms=0
        )
        (tmp_path / "models/S/2").mkdir()
        (tmp_path / "tmp/r.1").mkdir(parents=True)
        await world.registry.clean_up(["S", "never-seen"])
        assert not (tmp_path / "models/S" / str(orphan.version)).exists()
        assert not (tmp_path / "tmp").exists()
        assert await world.registry.read((await store.models("S"))[0]) == content


async def test_start_leaves_a_model_alone_that_another_worker_is_about_to_register(tmp_path: Path) -> None:
    """Renamed and not committed yet: collected at that moment, the row would come without its file."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path)
        await world.feed(3)
        run_id = await world.command("c1")
        now_ms = world.tools.clock.now_ms()
        epoch = await store.acquire_lease("training.S", "w.other", now_ms=now_ms, ttl_ms=60_000)
        assert epoch == 1
        await store.start_run(run_id, owner="w.other", lease="training.S", epoch=epoch, now_ms=now_ms)
        for version in ("1", "2"):
            (tmp_path / "models/S" / version).mkdir(parents=True)
        await world.registry.clean_up(["S"])
        assert [path.name for path in (tmp_path / "models/S").iterdir()] == ["1"]


async def test_a_model_whose_worker_died_before_handing_it_over_is_handed_over_at_start(tmp_path: Path) -> None:
    """Killed between the run's commit and the apply: restart applies it, once."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="manual")
        await world.feed(60)
        async with world.running():
            await ended(world, await world.command("c1"))
        again = worker_over(store, tmp_path, boot="boot2", mode="auto")
        waiting = await again.command("c2", force=True)
        # The folder may be a link to a scratch disk, where other people's things lie too.
        ended_long_ago = "9f1d4a4e-5f2b-5c1d-9a53-0c8f2f0e7b11"
        for name in (waiting, ended_long_ago, "somebody-elses"):
            (tmp_path / "runs" / name).mkdir()
        await again.runs.clean_up()
        await again.runs.recover("S", "offline")
        assert {path.name for path in (tmp_path / "runs").iterdir()} == {waiting, "somebody-elses"}
        await again.runs.recover("S", "offline")
        assert len(await store.deployments("S")) == 1
        assert "champion" in await store.aliases("S")


@pytest.mark.parametrize("first", ["begin", "recover"])
async def test_a_model_that_is_found_at_start_just_as_its_run_hands_it_over_is_given_once(
    tmp_path: Path, first: str
) -> None:
    """Trainings go on while the start looks: given twice, it was told as skipped, since it was live already."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="manual")
        await world.feed(60)
        async with world.running():
            run = await ended(world, await world.command("c1"))
        (model,) = await store.models("S")
        again = worker_over(store, tmp_path, boot="boot2", mode="auto")
        handing = HandOver(store, again.registry, again.applier, again.tools.clock)
        recovering = asyncio.create_task(handing.recover("S", "offline"))
        if first == "recover":
            await asyncio.sleep(0)
            assert handing.busy_in("S", "offline")
        done = asyncio.Event()
        handing.begin(run, model, done.set)
        await asyncio.gather(recovering, done.wait())
        assert isinstance(handing.came(run.run_id), AppliedNow)
        assert len(await store.deployments("S")) == 1
        assert not handing.busy_in("S", "offline")


async def test_scenarios_train_side_by_side_and_each_one_run_at_a_time(tmp_path: Path) -> None:
    """One scenario's hang does not stop another's training; a second run of the same waits."""
    async with opened(tmp_path) as store:
        script = """
import sys, pathlib, time
import worker.training.trainer as trainer
if '"scenario":"A"' in pathlib.Path(sys.argv[1], "input.json").read_text(): time.sleep(600)
sys.exit(trainer.main(sys.argv[1:]))
"""
        world = worker_over(store, tmp_path, launcher=scripted(script), scenarios=("A", "B"), parallel=2)
        await world.feed(60, scenario="A")
        await world.feed(60, scenario="B")
        async with world.running():
            hanging = await world.command("c1", scenario="A")
            waiting = await world.command("c2", scenario="A", force=True)
            assert (await ended(world, await world.command("c3", scenario="B"))).state == "trained"
            first, second = await store.run(hanging), await store.run(waiting)
            assert first is not None
            assert second is not None
            assert (first.state, second.state) == ("running", "queued")


async def test_progress_reaches_the_row_and_status(tmp_path: Path) -> None:
    """What a person watching sees."""
    script = """import time; print('{"progress": 0.4, "text": "busy"}', flush=True); time.sleep(600)"""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, launcher=scripted(script))
        await world.feed(10)
        async with world.running():
            run_id = await world.command("c1")

            async def written() -> None:
                while (row := await store.run(run_id)) is None or row.progress != 0.4:  # noqa: ASYNC110 - a row has no event
                    await asyncio.sleep(0.01)
                assert row.progress_text == "busy"

            async with asyncio.timeout(10):
                await written()
            current = world.runs.current("S")
            assert current is not None
            assert (current.progress, current.text) == (0.4, "busy")


async def test_progress_that_was_not_written_before_the_end_does_not_lose_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written after it, it took the ended run for one that another worker owns, and the model was never applied."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto")
        tidy_up = shutil.rmtree

        def slowly(path: Path, *, ignore_errors: bool) -> None:
            current = world.runs.current("S")
            assert current is not None
            current.text = f"at {path}"  # as by a child whose last word came between two looks
            time.sleep(10 * TIMING.progress)
            tidy_up(path, ignore_errors=ignore_errors)

        monkeypatch.setattr("worker.training.execution.shutil.rmtree", slowly)
        await world.feed(60)
        async with world.running():
            run = await world.runs.request("S", trigger={"kind": "count", "values": {}, "by": "trigger"})
            assert (await ended(world, run.run_id)).state == "trained"
            assert (world.runs.stats.lost, world.runs.stats.trained) == (0, 1)
            assert (await store.aliases("S")).get("champion") is not None


def test_timing_outlives_two_missed_renewals() -> None:
    """The lease's time is what two failed renewals may take."""
    assert Timing().lease_ttl > 2 * Timing().renew
    assert TIMING.lease_ttl > 2 * TIMING.renew


def damage(folder: Path) -> None:
    for file in folder.rglob("model.json"):
        file.chmod(0o600)
        file.write_bytes(b"{}")


async def test_a_damaged_live_model_does_not_stop_the_training_of_its_successor(tmp_path: Path) -> None:
    """Only a new model can take its place, so the new one is weighed against the logged behaviour instead."""
    async with opened(tmp_path) as store:
        world = worker_over(store, tmp_path, mode="auto")
        await world.feed(60)
        async with world.running():
            await ended(world, await world.command("c1"))
            (first,) = await store.models("S")
            damage(tmp_path)
            await world.feed(120)
            run = await ended(world, await world.command("c2"))
        assert run.state == "trained"
        assert run.model_id != first.model_id


async def test_a_restored_store_counts_up_to_the_same_numbers_under_other_ids(tmp_path: Path) -> None:
    """An event's id is that of its run: under the old one, its model would be dropped as a copy by whoever knew it."""
    trigger = {"kind": "count", "values": {}, "by": "trigger"}
    ids = []
    async with opened(tmp_path / "one") as store:
        await worker_over(store, tmp_path / "one").feed(60)
        await store.backup(tmp_path / "backup.db")
        world = worker_over(store, tmp_path / "one")
        world.seq = 1
        await world.feed(60, producer="before")
        ids += [(await world.runs.request("S", trigger=trigger)).run_id for _ in range(2)]
    (tmp_path / "two").mkdir()
    (tmp_path / "backup.db").rename(tmp_path / "two" / "swarm.db")
    async with opened(tmp_path / "two") as store:
        world = worker_over(store, tmp_path / "two")
        world.seq = 1
        await asyncio.sleep(0.01)
        await world.feed(60, producer="after")
        ids += [(await world.runs.request("S", trigger=trigger)).run_id for _ in range(2)]
    assert ids[0] == ids[1] != ids[2] == ids[3]
