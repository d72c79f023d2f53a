"""Power cuts (T3): at every acknowledgement of a loaded run, what was acknowledged is on the disk."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.faults.oracle import Oracle
from tests.faults.power_cut.judge import WorkerJudge
from tests.faults.power_cut.replay import Replay
from tests.faults.power_cut.strace import under_strace
from tests.integration.foreign_node import Node, ears_at, node_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]

_SEEDS = 10
_BATCHES = 88
#: Episodes that make a training, so that models come while records do.
_ENOUGH = 10
_PROGRAM = """
import os, sys
from worker.store.sqlite import connection
{carelessness}
from worker.cli import main
sys.argv[0] = "swarm-worker"
main()
"""
#: Two workers that are careless, each in its own way, and what the replay must say of them. The first's check of its
#: own settings is gone; the other syncs all but model files (SQLite's own syncs are not Python's).
_CARELESS = {
    "commits": (
        """
settings = "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"
connection._make_durable = lambda db, path: db.executescript(settings)""",
        ("LOST: an acknowledged record", "BROKEN: "),
    ),
    "model files": (
        """
def sync(descriptor, real=os.fsync):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    if not path.endswith("/model.json"):
        real(descriptor)
os.fsync = sync""",
        ("LOST: the file of a model whose row is there",),
    ),
}


async def traced(worker: WorkerProcess, program: tuple[str, ...], trace: Path) -> None:
    """Start a life of the worker under strace."""
    worker.program = under_strace(trace, *program)
    await worker.start()


async def ended(trace: Path, pid: int) -> None:
    """Until strace has written how the process ended: it is a process of its own, and a little behind."""

    async def look() -> bool:
        lines = (await asyncio.to_thread(trace.read_bytes))[-400:].splitlines()
        return any(line.startswith(f"{pid} ".encode()) and b"+++" in line for line in lines)

    await until(look, within=10)


async def load(
    node: Node,
    oracle: Oracle,
    scenario: str,
    batches: int,
    *,
    until_stored: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Batches, some at once and some alone, copies and bodies that must be quarantined among them.

    With `until_stored` the next ones wait for the last: each round is acknowledged by itself, whatever the machine.
    """
    for at in range(batches // 4):
        await oracle.publish_many(node, [scenario], 3)
        await oracle.publish(node, scenario)
        if at % 8 == 0:
            await node.publish(scenario, b"no batch %d" % at)
        if until_stored is not None:
            await until_stored()


async def test_what_was_acknowledged_survives_a_power_cut_at_any_moment(
    new_worker: NewWorker, amqp_url: str, scenario: str, tmp_path: Path
) -> None:
    """Two lives, the first ended by kill -9: its page cache lives on, and what it had written counts as stored to the
    second. Records, quarantine entries, models with their files, and what the events tell of."""
    oracle = Oracle(7, duplicates=0.15)
    worker = new_worker(scenario, trigger=f"count({_ENOUGH})")
    program = worker.program

    async def stored() -> None:
        await until(worker.scenario_status, lambda s: s["records_received"] == 5 * oracle.issued[scenario])

    async with node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears:
        await traced(worker, program, tmp_path / "trace-1")
        first = worker.pid
        await load(node, oracle, scenario, _BATCHES, until_stored=stored)
        await ears.wait_for("learning.trained", scenario)
        loading = asyncio.create_task(load(node, oracle, scenario, _BATCHES))
        await until(worker.scenario_status, lambda s: s["records_received"] > 5 * _BATCHES)
        await worker.kill()
        await ended(tmp_path / "trace-1", first)
        await traced(worker, program, tmp_path / "trace-2")
        second = worker.pid
        await loading
        await stored()
        await ears.wait_for("learning.trained", scenario, 2)
        # Whatever the gate said of this seed's games: one is applied.
        assert (await worker.tell("apply", "--scenario", scenario, "--force"))["status"] == "done"
        await ears.wait_for("learning.applied", scenario)
        assert await worker.stop() == 0
        await ended(tmp_path / "trace-2", second)

    replay = Replay(worker.data_dir, WorkerJudge(worker.data_dir, tmp_path / "cut"), seeds=range(_SEEDS))
    replay.run(tmp_path / "trace-1")
    replay.run(tmp_path / "trace-2")
    assert replay.found == {}
    # All that the broker took was acknowledged, so each of it was looked for; and each kind of moment was cut at.
    assert len(replay.said.acked) >= oracle.issued[scenario]
    told = Counter(json.loads(one.body)["type"] for one in replay.said.published if one.exchange == "swarm.learning")
    assert told["learning.trained"] >= 2
    assert told["learning.applied"] >= 1
    assert replay.cuts["an acknowledgement"] >= 20 * (_SEEDS + 1)
    assert replay.cuts["a sync"] > 20


@pytest.mark.parametrize("careless_with", _CARELESS)
async def test_the_replay_sees_a_worker_that_does_not_sync(
    new_worker: NewWorker, amqp_url: str, scenario: str, tmp_path: Path, careless_with: str
) -> None:
    """The test of the test: with synchronous=NORMAL, or with model files that are only written, it must complain."""
    carelessness, complaints = _CARELESS[careless_with]
    worker = new_worker(scenario, trigger=f"count({_ENOUGH})")
    python = str(Path(worker.program[0]).with_name("python"))
    async with node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears:
        await traced(worker, (python, "-c", _PROGRAM.replace("{carelessness}", carelessness)), tmp_path / "trace")
        await load(node, Oracle(8, duplicates=0), scenario, 24)
        await ears.wait_for("learning.trained", scenario)
        pid = worker.pid
        assert await worker.stop() == 0
        await ended(tmp_path / "trace", pid)
    replay = Replay(worker.data_dir, WorkerJudge(worker.data_dir, tmp_path / "cut"), seeds=range(1))
    replay.run(tmp_path / "trace")
    assert any(found.startswith(complaints) for found in replay.found), replay.found
