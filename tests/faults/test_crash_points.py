"""T1: kill -9 at each named point of the code, twelve times at the n-th hit by chance, with duplicates under way."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil
import pytest

from tests.faults.invariants import check
from tests.faults.oracle import Oracle
from tests.faults.watch import watching
from tests.integration.foreign_node import Node, Operator, ears_at, node_at, operator_at
from tests.integration.nursery import Nursery
from tests.integration.worker_process import NewWorker, WorkerProcess, until
from worker import crash

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]

#: Kills of one point before everything is checked.
_KILLS = 12
#: `SWARM_TEST_KILLS` in all, as `make kills` sets it: so many rounds of all points.
_ROUNDS = math.ceil(int(os.environ.get("SWARM_TEST_KILLS", "1")) / (_KILLS * len(crash.POINTS)))
#: A point is hit up to so many times before the end: per message, per group, per training. `mid_ack` is in groups of
#: several alone, and there are few of these once what waited at the start is stored.
_MOST_HITS = {"receive": 80, "decode": 80, "mid_ack": 3} | dict.fromkeys(
    ("begin", "mid_insert", "pre_commit", "post_commit", "post_ack"), 8
)
_LEARNING = crash.POINTS[crash.POINTS.index("trigger_claimed") : crash.POINTS.index("control_persisted")]
_MOST_TRAININGS = 2


@contextlib.asynccontextmanager
async def under_load(oracle: Oracle, node: Node, worker: WorkerProcess) -> AsyncIterator[None]:
    """Batches come in all the while, whether somebody takes them or not."""
    stopping = asyncio.Event()
    load = asyncio.create_task(oracle.load(node, worker.scenarios, stopping, pace=0.01))
    try:
        yield
    finally:
        stopping.set()
        await load


async def die_at(worker: WorkerProcess, point: str, hits: int, drive: Callable[[], Awaitable[None]]) -> None:
    """One life, and its end."""
    worker.environment["SWARM_CRASH_AT"] = f"{point}:{hits}"
    await worker.start(ready=False)
    await drive()
    assert await worker.wait(within=30) == -signal.SIGKILL, worker.log_tail()
    assert [entry["point"] for entry in worker.log() if entry["event"] == "crash_point_armed"] == [point]
    # A child that outlives its worker would train beside the next one.
    trainers = [entry["pid"] for entry in worker.log() if entry["event"] == "trainer_started"]
    await until(lambda: no_process(trainers), within=5)


async def no_process(pids: list[int]) -> bool:
    """Whether none of them runs."""
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


@pytest.mark.parametrize("turn", range(_ROUNDS))
@pytest.mark.parametrize("point", [point for point in crash.POINTS if point != "control_persisted"])
async def test_a_kill_at_a_crash_point_loses_nothing_and_doubles_nothing(
    new_worker: NewWorker, nursery: Nursery, amqp_url: str, scenario: str, oracle: Oracle, point: str, turn: int
) -> None:
    chance = random.Random(f"{oracle.seed}/{point}/{turn}")
    learns = point in _LEARNING
    worker = new_worker(
        scenario,
        trigger="count(1)" if learns else "manual",
        check_interval="0.05s",
        apply_mode="auto",
        holdout=0.3,
        launch=nursery.launch,
    )

    async def drive() -> None:
        """More than can be in hand: it is redelivered after the end."""
        await oracle.publish_many(node, worker.scenarios, 5 if learns else 40)

    async with node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears:
        await worker.start()  # once, to make the queues
        async with watching(worker) as watch, under_load(oracle, node, worker):
            await worker.kill()
            for _ in range(_KILLS):
                hits = 1 + chance.randrange(_MOST_TRAININGS if learns else _MOST_HITS[point])
                await die_at(worker, point, hits, drive)
            del worker.environment["SWARM_CRASH_AT"]
            await worker.start()
        report = await check(worker, oracle, node, ears=ears, watch=watch, redeliveries=not learns)
    print(report, watch, oracle.copies)  # noqa: T201 - shown with -s
    assert worker.starts == _KILLS + 2
    if learns:
        assert report.trained > 1
    if point in ("event_published", "event_confirmed"):
        assert max(ears.copies.values()) > 1, "no event was sent twice, so none was under way when it died"


@pytest.mark.parametrize("turn", range(_ROUNDS))
async def test_a_command_that_was_stored_and_not_acknowledged_is_carried_out_once_and_answered(
    new_worker: NewWorker, nursery: Nursery, amqp_url: str, scenario: str, oracle: Oracle, turn: int
) -> None:
    """P14. A shutdown among them must not end the next life as well, and the one after it."""
    chance = random.Random(f"{oracle.seed}/control_persisted/{turn}")
    worker = new_worker(scenario, holdout=0.3, launch=nursery.launch)
    # The last one is a job: it comes again to the life that is asked what it has seen.
    names = ["train-now", *chance.sample(["train-now", "shutdown"] * (_KILLS // 2), _KILLS - 1)]
    sent: dict[str, str] = {}

    async def answered() -> None:
        for command_id in [*sent][-1:]:
            (answer, *_) = await operator.answers(command_id, 1)
            assert answer["status"] == "done", answer

    async def drive() -> None:
        """A command of either road, once the one that the last life died of is carried out."""
        await worker.wait_ready()
        await answered()
        name = names.pop()
        command_id = f"{name}-{len(sent)}"
        sent[command_id] = name
        key = f"job.{scenario}" if name == "train-now" else f"worker.{worker.environment['SWARM_WORKER_ID']}"
        await send(operator, key, name, command_id, scenario)

    async with node_at(amqp_url) as node, operator_at(amqp_url) as operator, ears_at(amqp_url, "learning.#") as ears:
        await worker.start()
        async with watching(worker) as watch, under_load(oracle, node, worker):
            await worker.kill()
            for _ in range(_KILLS):
                # A job that was not acknowledged comes again, and is the first to reach the point.
                comes_again = [*sent.values()][-1:] == ["train-now"]
                await die_at(worker, "control_persisted", 1 + comes_again, drive)
            del worker.environment["SWARM_CRASH_AT"]
            await worker.start()
            await answered()
            commands = (await worker.status())["commands"]
        await check(worker, oracle, node, ears=ears, watch=watch, redeliveries=False)
    assert set(sent.values()) == {"train-now", "shutdown"}
    assert commands["repeated"] > 0
    runs = [run for run in (await worker.stored("runs"))["runs"] if run["nonce"] in sent]
    assert len(runs) == list(sent.values()).count("train-now")


async def send(operator: Operator, key: str, name: str, command_id: str, scenario: str) -> None:
    """A command of a foreign operator; trainings are forced, so that each is a run of its own."""
    args = {"force": True} if name == "train-now" else {}
    fields = {"scenario": scenario} if name == "train-now" else {}
    await operator.send(key, name, command_id=command_id, args=args, **fields)
