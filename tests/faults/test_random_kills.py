"""kill -9 under load at ten moments, three scenarios: while it starts, stores, trains, between training and apply."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.faults.invariants import check, quiet, settled
from tests.faults.oracle import Oracle
from tests.faults.store_state import opened
from tests.faults.watch import watching
from tests.integration.foreign_node import ears_at, node_at
from tests.integration.nursery import Nursery
from tests.integration.worker_process import NewWorker, WorkerProcess, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(240)]

_KILLS = 10
_SCENARIOS = 3
#: What its log says just before the end, by life.
_MOMENTS = {1: "run_started", 3: "run_ended", 6: "trainer_ended", 7: "model_live"}
_REMEMBERED = ("facts", "trigger_state", "runs", "deployments", "aliases")


async def die(worker: WorkerProcess, life: int, chance: random.Random) -> None:
    """One life and its end at a moment that differs from life to life."""
    await worker.start(ready=False)
    if life % 5 == 4:
        await asyncio.sleep(chance.uniform(0.05, 0.6))  # while it starts
    elif life in _MOMENTS:
        await worker.wait_ready()
        await until(lambda: worker.logged(_MOMENTS[life]), within=25, every=0.001)
    else:
        await worker.wait_ready()
        await asyncio.sleep(chance.uniform(0.0, 0.5))
    await worker.kill()


async def test_ten_kills_under_load_lose_nothing_and_double_nothing(
    new_worker: NewWorker, nursery: Nursery, amqp_url: str, scenario: str, oracle: Oracle
) -> None:
    """And a start after all of it changes nothing more."""
    names = [f"{scenario}-{number}" for number in range(_SCENARIOS)]
    worker = new_worker(
        *names, trigger="count(10)", apply_mode="auto", holdout=0.5, check_interval="0.1s", launch=nursery.launch
    )
    async with node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears, watching(worker) as watch:
        await worker.start()  # once, to make the queues
        stopping = asyncio.Event()
        load = asyncio.create_task(oracle.load(node, names, stopping))
        await worker.kill()
        for life in range(1, _KILLS):
            # More than can be in hand and neither stored nor acknowledged: the broker has it again after the end.
            burst = asyncio.create_task(oracle.publish_many(node, names, 50))
            await die(worker, life, oracle.random)
            await burst
        await worker.start()
        stopping.set()
        await load
        await check(worker, oracle, node, ears=ears, watch=watch)
        with opened(worker) as store:
            assert store.execute("SELECT max(attempts) FROM training_run").fetchone()[0] > 1
            assert store.execute("SELECT sum(models_applied) FROM scenario").fetchone()[0] > _SCENARIOS

        await worker.start()
        await settled(worker, oracle, node)
        await until(worker.status, lambda status: status["scheduler"]["checks"] >= 3)
        await quiet(worker)
        before = [await worker.stored(*_REMEMBERED, scenario=name) for name in names]
        await worker.kill()
        await worker.start()
        await until(worker.status, lambda status: status["scheduler"]["checks"] >= 5)
        assert [await worker.stored(*_REMEMBERED, scenario=name) for name in names] == before
        assert await worker.stop() == 0
