"""T10: whatever happens to a training process is a failed run with a reason, an event and a wait; ingest goes on."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.foreign_node import Ears, Node, body, ears_at, episode, line, node_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]

_PROGRAM = (sys.executable, str(Path(__file__).parent / "programs" / "worker_with_faulty_trainer.py"))
#: Fault to the beginning of the run's reason: what operators and subscribers may rely on.
_REASONS = {
    "segfault": "signal:11",
    "killed": "signal:9",
    "memory": "oom",
    "exit": "exit:7",
    "hang": "timeout",
    "garbage": "bad_output",
    "gigabyte": "file_too_large",
}


class Place:
    """A worker with a trainer that fails as told, a node that feeds it, and ears for its events."""

    def __init__(self, worker: WorkerProcess, node: Node, ears: Ears) -> None:
        self.worker, self.node, self.ears = worker, node, ears
        self.scenario = worker.scenarios[0]
        self.sent: list[bytes] = []

    def fault(self, name: str) -> None:
        """What the next trainings do."""
        (self.worker.data_dir / "fault").write_text(name)

    async def feed(self, tasks: range, *, projected: bool = True) -> None:
        """Publish these tasks, and wait until they are stored and, unless told otherwise, are episodes."""
        for task in tasks:
            records = episode(task, success=task % 3 != 0)
            await self.node.publish(self.scenario, body(records))
            self.sent += map(line, records)
        await until(self.worker.scenario_status, lambda s: s["records_received"] == len(self.sent))
        if projected:
            await until(self.worker.scenario_status, lambda s: s["open_tasks"] == 0)

    async def trainer(self) -> psutil.Process:
        """The training process of this moment."""

        async def look() -> int | None:
            pids = [entry["pid"] for entry in self.worker.log() if entry["event"] == "trainer_started"]
            ended = [entry["pid"] for entry in self.worker.log() if entry["event"] == "trainer_ended"]
            return pids[-1] if pids and pids[-1] not in ended else None

        pid = await until(look, every=0.01)
        assert pid is not None
        return psutil.Process(pid)


@asynccontextmanager
async def place(new_worker: NewWorker, amqp_url: str, scenario: str, **settings: Any) -> AsyncIterator[Place]:
    usual = {"holdout": 0.3, "training_timeout": "2s", "training_memory_mb": 512}
    worker = new_worker(scenario, **usual | settings)
    worker.program = _PROGRAM
    await worker.start()
    async with node_at(amqp_url) as node, ears_at(amqp_url, f"learning.*.{scenario}") as ears:
        yield Place(worker, node, ears)


async def test_each_end_of_a_trainer_is_a_failed_run_with_its_reason_and_the_worker_goes_on(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """One worker lives through all of them, stores what comes meanwhile, and then trains as if nothing had been."""
    async with place(new_worker, amqp_url, scenario, training_backoff="30s") as here:
        await here.feed(range(20))
        pid = here.worker.pid
        waits = []
        for number, (fault, reason) in enumerate(_REASONS.items()):
            here.fault(fault)
            told, _ = await asyncio.gather(
                here.worker.tell("train-now", "--scenario", scenario, "--force", code=1),
                here.feed(range(20 + number, 21 + number), projected=False),
            )
            assert (told["status"], told["result"]["state"]) == ("failed", "failed"), fault
            assert told["result"]["reason"].startswith(reason), (fault, told)
            events = await here.ears.wait_for("learning.failed", scenario, number + 1)
            data = events[-1]["data"]
            assert (data["reason"].startswith(reason), data["run_id"]) == (True, told["result"]["run_id"])
            waits.append(data["details"]["not_before_ms"] - time.time() * 1000)
            assert (await here.worker.scenario_status())["training_failures"] == number + 1
        assert waits == sorted(waits), "each failure in a row makes the wait longer"
        assert 20_000 < waits[0] < 30_001
        assert 2**5 * 30_000 < waits[-1] <= 2**6 * 30_000
        assert "failed trainings" in (await here.worker.scenario_status())["waiting_for"]

        here.fault("")
        trained = await here.worker.tell("train-now", "--scenario", scenario)
        assert (trained["result"]["state"], trained["result"]["model_version"]) == ("trained", 1)
        assert (await here.worker.scenario_status())["training_failures"] == 0
        assert (here.worker.pid, here.worker.starts, await here.worker.problems()) == (pid, 1, [])
        assert sorted(await here.worker.exported()) == sorted(here.sent)
        runs = (await here.worker.stored("runs"))["runs"]
        assert [run["state"] for run in runs] == ["trained", *["failed"] * len(_REASONS)]
        assert list((here.worker.data_dir / "runs").iterdir()) == []
        assert sorted(one.name for one in (here.worker.data_dir / "models" / scenario).iterdir()) == ["1"]


async def test_after_three_failures_of_one_window_only_new_data_or_force_trains_again(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """Else a window that kills every trainer would be trained on for ever."""
    async with place(new_worker, amqp_url, scenario, trigger="count(5)", training_backoff="50ms") as here:
        here.fault("exit")
        await here.feed(range(20))
        waiting = await until(here.worker.scenario_status, lambda s: s["waiting_for"].startswith("new data"))
        assert "--force" in waiting["waiting_for"]
        failed = await here.ears.wait_for("learning.failed", scenario, 3)
        windows = {tuple(event["data"]["details"]["window"].values()) for event in failed}
        # Those before the last records came failed too, each on a window of its own.
        of_last = [event for event in failed if event["data"]["details"]["window"]["hi"] == 20]
        assert len(of_last) == 3, windows
        checks = (await here.worker.status())["scheduler"]["checks"]
        await until(here.worker.status, lambda s: s["scheduler"]["checks"] >= checks + 5)
        assert len(here.ears.of("learning.failed", scenario)) == len(failed), "the trigger is held"

        forced = await here.worker.tell("train-now", "--scenario", scenario, "--force", code=1)
        assert forced["result"]["reason"].startswith("exit:7")
        await here.ears.wait_for("learning.failed", scenario, len(failed) + 1)
        here.fault("")
        await here.feed(range(20, 30), projected=False)
        await here.ears.wait_for("learning.trained", scenario)


async def test_ingest_keeps_its_pace_beside_a_training_that_takes_a_processor(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """What comes while it runs is stored while it runs, as a rule within a second of its confirm."""
    async with place(new_worker, amqp_url, scenario, training_timeout="60s") as here:
        await here.feed(range(20))
        here.fault("slow")
        training = asyncio.create_task(here.worker.tell("train-now", "--scenario", scenario, within=60))
        trainer = await here.trainer()
        took = []
        for task in range(20, 30):
            began = time.monotonic()
            await here.feed(range(task, task + 1), projected=False)
            took.append(time.monotonic() - began)
        assert trainer.is_running()
        assert sorted(took)[len(took) // 2] < 1, took
        here.fault("")
        assert (await training)["result"]["state"] == "trained"


async def test_a_trainer_whose_worker_is_killed_dies_and_its_run_goes_on_at_once_with_the_next_one(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """No orphan, no second model, and no wait for the lease of the dead (15 s)."""
    async with place(new_worker, amqp_url, scenario, training_timeout="60s") as here:
        await here.feed(range(20))
        here.fault("hang")
        asked = asyncio.create_task(here.worker.tell("train-now", "--scenario", scenario, within=60))
        trainer = await here.trainer()
        # Limits and the bond to its parent come first; then it says where it is.
        await until(here.worker.scenario_status, lambda s: "fault hang" in s["doing"])
        await here.worker.kill()

        async def gone() -> bool:
            return not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE

        await until(gone, within=2)
        here.fault("")
        began = time.monotonic()
        await here.worker.start()
        ended = await asked
        assert time.monotonic() - began < 10, "it waited for the lease"
        assert (ended["status"], ended["result"]["state"]) == ("done", "trained")
        (run,) = (await here.worker.stored("runs"))["runs"]
        assert (run["attempts"], run["epoch"]) == (2, 2)
        assert len(await here.ears.wait_for("learning.trained", scenario)) == 1
