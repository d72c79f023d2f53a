"""kill -9 under load, ten times in a row: every confirmed record is stored once, every finished run has its events."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from typing import Any

import pytest

from tests.integration.foreign_node import Ears, Node, body, depth, ears_at, episode, line, node_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until
from worker.wire.events import event_id

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(240)]

_KILLS = 10
_SCENARIOS = 3
#: New episodes that make a training.
_ENOUGH = 20
_REMEMBERED = ("facts", "trigger_state", "runs", "deployments", "aliases")


class Load:
    """One node of a scenario: batches without end, each under one identity until it is confirmed."""

    def __init__(self, node: Node, scenario: str) -> None:
        self.scenario = scenario
        self.sent: list[bytes] = []
        self.unsure = 0  # sent again since the confirm was not waited for
        self._node = node
        self._tasks = 0
        self._batches = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """A steady trickle, so that something is under way at every moment."""
        while not stopping.is_set():
            await self.batch()
            await asyncio.sleep(0.02)  # the pace, not a wait for anything

    async def batch(self) -> None:
        """One task and the end of its session, confirmed when this returns."""
        records = episode(self._tasks, success=self._tasks % 3 != 0)
        data = body(records, producer_id="node", batch_seq=self._batches)
        self._tasks += 1
        self._batches += 1
        if random.random() < 0.1:
            # The node is cut off before it hears the confirm: the broker may have the message or not.
            first = asyncio.create_task(self._node.publish(self.scenario, data))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first])
            self.unsure += 1
        await self._node.publish(self.scenario, data)
        self.sent += map(line, records)


async def die(worker: WorkerProcess, life: int, loads: list[Load]) -> int:
    """One life and its end at a moment that differs from life to life; the redeliveries it saw."""
    await worker.start(ready=False)
    if life % 5 == 4:  # while it starts
        await asyncio.sleep(random.uniform(0.2, 2.0))
    else:
        await worker.wait_ready()
        moment = {1: "run_started", 3: "run_ended", 6: "trainer_ended", 7: "model_live"}.get(life)
        if moment is not None:
            await until(lambda: worker.logged(moment), within=25, every=0.001)
        else:
            await asyncio.gather(*(load.batch() for load in loads for _ in range(50)))
            await asyncio.sleep(random.uniform(0.0, 0.5))
    redelivered = 0
    if worker.port and await worker.problems() is not None:
        status = await worker.status()
        redelivered = sum(one["redelivered"] for one in status["scenarios"].values())
        # As much as can be in hand and neither stored nor acknowledged: the broker has it again after the end.
        await asyncio.gather(*(load.batch() for load in loads for _ in range(50)))
    await worker.kill()
    return redelivered


async def test_ten_kills_under_load_lose_nothing_and_double_nothing(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """At any moment: while it starts, stores, trains, and between a trained model and an applied one."""
    names = [f"{scenario}-{number}" for number in range(_SCENARIOS)]
    worker = new_worker(*names, trigger=f"count({_ENOUGH})", apply_mode="auto", holdout=0.5, check_interval="0.1s")
    stopping = asyncio.Event()
    redelivered = 0
    async with node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears:
        await worker.start()  # once, to make the queues
        loads = [Load(node, name) for name in names]
        running = [asyncio.create_task(load.run(stopping)) for load in loads]
        await worker.kill()
        for life in range(1, _KILLS):
            redelivered += await die(worker, life, loads)
        await worker.start()
        stopping.set()
        await asyncio.gather(*running)
        for load in loads:
            await settled(worker, node, load)
        before = {load.scenario: await worker.stored(*_REMEMBERED, scenario=load.scenario) for load in loads}
        for load in loads:
            await one_event_each(ears, load.scenario, before[load.scenario])
        redelivered += sum(one["redelivered"] for one in (await worker.status())["scenarios"].values())

    for load in loads:
        assert sorted(await worker.exported(load.scenario)) == sorted(load.sent)
    # Else all this would have shown nothing.
    assert worker.starts == _KILLS + 1
    assert redelivered > 0
    assert sum(load.unsure for load in loads) > 0
    assert sum(state["facts"]["duplicate_batches"] for state in before.values()) > 0
    assert max(run["attempts"] for state in before.values() for run in state["runs"]) > 1
    assert sum(state["facts"]["models_applied"] for state in before.values()) > _SCENARIOS

    await worker.kill()
    assert damage(worker) == []
    await worker.start()
    await until(worker.status, lambda status: status["scheduler"]["checks"] >= 5)
    for load in loads:
        assert await worker.stored(*_REMEMBERED, scenario=load.scenario) == before[load.scenario]
    assert await worker.stop() == 0


async def settled(worker: WorkerProcess, node: Node, load: Load) -> None:
    """Until all is stored, projected, and trained on as far as the trigger wants; a dead worker's lease ends first."""

    async def look() -> Any:
        status = await worker.status()
        stored = await worker.stored("facts", "trigger_state", "runs", scenario=load.scenario)
        return status["scenarios"][load.scenario] | {
            "queue": await depth(node, f"swarm.records.{load.scenario}"),
            "in_flight": status["counters"]["in_flight"],
            "unsent": status["counters"]["outbox_waiting"],
            "unfinished": [run for run in stored["runs"] if run["state"] in ("queued", "running")],
            "new": stored["facts"]["episodes"] - stored["trigger_state"]["trained_episodes"],
        }

    def quiet(seen: dict[str, Any]) -> bool:
        return (
            seen["records_received"] == len(load.sent)
            and not any(seen[name] for name in ("queue", "in_flight", "unsent", "unfinished", "open_tasks"))
            and seen["new"] < _ENOUGH
        )

    await until(look, quiet, within=60, every=0.2)


async def one_event_each(ears: Ears, scenario: str, state: dict[str, Any]) -> None:
    """Every trained run and every deployment has one event, under the id that it has always had."""
    assert Counter(run["state"] for run in state["runs"]).keys() <= {"trained", "skipped"}
    trained = {event_id(run["run_id"], "learning.trained") for run in state["runs"] if run["state"] == "trained"}
    deployments = [row for row in state["deployments"] if row["action"] == "apply"]
    assert {row["state"] for row in deployments} == {"verified"}
    applied = {event_id(row["deployment_id"], "learning.applied") for row in deployments}
    for type_, ids in (("learning.trained", trained), ("learning.applied", applied)):
        heard = await ears.wait_for(type_, scenario, len(ids))
        assert {event["id"] for event in heard} == ids
        assert len(heard) == len(ids)
    assert (state["facts"]["trainings_completed"], state["facts"]["models_applied"]) == (len(trained), len(applied))
    assert len({row["model_id"] for row in deployments}) == len(deployments)


def damage(worker: WorkerProcess) -> list[tuple[Any, ...]]:
    """What SQLite itself finds wrong."""
    connection = sqlite3.connect(worker.data_dir / "swarm.db")
    try:
        found = connection.execute("PRAGMA quick_check").fetchall()
        return [*(row for row in found if row != ("ok",)), *connection.execute("PRAGMA foreign_key_check")]
    finally:
        connection.close()
