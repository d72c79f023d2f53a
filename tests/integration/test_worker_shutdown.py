"""How a worker ends, and how it refuses to start: in bounded time, with the right exit status, losing nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.held_port import held_port
from tests.integration.foreign_node import Node, body, depth, episode, line, node_at, operator_at
from tests.integration.proxy import proxied
from tests.integration.worker_process import NewWorker, WorkerProcess, until

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
def refused() -> Iterator[str]:
    """A broker's URL where nobody listens, nor will."""
    with held_port() as port:
        yield f"amqp://guest:guest@127.0.0.1:{port}/"


@asynccontextmanager
async def load(node: Node, scenario: str) -> AsyncIterator[list[bytes]]:
    """Batches as fast as they are confirmed, until left; the records that are confirmed by then."""
    sent: list[bytes] = []
    stopping = asyncio.Event()

    async def run() -> None:
        number = 0
        while not stopping.is_set():
            batches = [episode(number + place, success=True) for place in range(20)]
            await asyncio.gather(
                *(
                    node.publish(scenario, body(records, producer_id="n", batch_seq=number + place))
                    for place, records in enumerate(batches)
                )
            )
            sent.extend(line(record) for records in batches for record in records)
            number += 20

    running = asyncio.create_task(run())
    yield sent
    stopping.set()
    await running


async def nothing_is_lost(worker: WorkerProcess, node: Node, sent: list[bytes]) -> None:
    """What was not stored is still in the queue: the next life stores it."""
    await worker.start()
    await until(worker.scenario_status, lambda s: s["records_received"] >= len(sent))
    assert await depth(node, f"swarm.records.{worker.scenarios[0]}") == 0
    assert sorted(await worker.exported()) == sorted(sent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_under_load_drains_and_loses_nothing(
    new_worker: NewWorker, amqp_url: str, scenario: str, number: signal.Signals
) -> None:
    worker = new_worker(scenario)
    await worker.start()
    async with node_at(amqp_url) as node:
        async with load(node, scenario) as sent:
            await until(worker.scenario_status, lambda s: s["records_received"] > 500)
            worker.send(number)
            assert await worker.wait(within=10) == 0
        assert [entry["event"] for entry in worker.log()][-1] == "stopped"
        await nothing_is_lost(worker, node, sent)


async def test_a_shutdown_command_under_load_does_likewise_and_is_answered(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """The answer comes once nothing is left to lose; the next life does not find the command again."""
    worker = new_worker(scenario)
    await worker.start()
    async with node_at(amqp_url) as node:
        async with load(node, scenario) as sent:
            await until(worker.scenario_status, lambda s: s["records_received"] > 500)
            reply = await worker.tell("shutdown", "--scenario", scenario)
            assert (reply["status"], reply["result"]) == ("done", {"drained": True})
            assert await worker.wait(within=10) == 0
        await nothing_is_lost(worker, node, sent)


async def test_a_second_shutdown_is_answered_as_the_first_one_is(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """Also while another process has the store locked, when not even the first can be written down: its sender waited
    in vain until his patience was over."""
    worker = new_worker(scenario, shutdown_grace="10s")
    await worker.start()
    async with operator_at(amqp_url) as operator:
        with locked(worker):
            for number in range(3):
                await operator.send(f"worker.w-{scenario}", "shutdown", command_id=f"c{number}")
                await operator.send(f"worker.w-{scenario}", "pause", command_id=f"p{number}")
            answers = [(await operator.answers(f"c{number}", 1, within=30))[0] for number in range(3)]
            refused = [(await operator.answers(f"p{number}", 1))[0] for number in range(3)]
            assert await worker.wait(within=20) == 0
    assert [(one["status"], "drained" in one["result"]) for one in answers] == [("done", True)] * 3
    assert [one["result"] for one in refused] == [{"reason": "stopping"}] * 3


@pytest.mark.timeout(120)
async def test_commands_to_all_are_answered_by_all_and_told_of_each(new_worker: NewWorker, scenario: str) -> None:
    """How many there are nobody knows: whoever answers within a second of the first is waited for."""
    one, two = new_worker(scenario), new_worker(scenario, worker_id="second")
    names = {f"w-{scenario}", "second"}
    await asyncio.gather(one.start(), two.start())

    async def told(*arguments: str) -> list[dict[str, Any]]:
        return [json.loads(text) for text in (await one.cli(*arguments, "--json")).out.splitlines()]

    assert {status["worker_id"] for status in await told("status")} == names
    assert {reply["worker"] for reply in await told("pause", "--wait")} == names
    ends = await told("shutdown", "--wait")
    assert {(reply["worker"], reply["status"]) for reply in ends} == {(name, "done") for name in names}
    assert [await one.wait(), await two.wait()] == [0, 0]
    nobody = await one.cli("train-now", "--scenario", scenario, "--wait", code=75)
    assert f"none serves {scenario}" in nobody.err


async def test_a_shutdown_in_the_middle_of_a_training_ends_it_and_the_next_life_trains_on(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """The trainer does not outlive its worker, and the run that a command asked for is still answered to."""
    worker = new_worker(scenario)
    await worker.start()
    async with node_at(amqp_url) as node, operator_at(amqp_url) as operator:
        await node.publish(scenario, body([record for task in range(20) for record in episode(task, success=True)]))
        await until(worker.scenario_status, lambda s: s["episodes_created"] == 40)
        await operator.send(f"job.{scenario}", "train-now", command_id="train", scenario=scenario)

        async def trainer() -> int | None:
            pids = [entry["pid"] for entry in worker.log() if entry["event"] == "trainer_started"]
            return pids[0] if pids else None

        pid = await until(trainer, every=0.005)
        assert await worker.stop(within=10) == 0
        assert not alive(pid)
        (run,) = (await worker.stored("runs"))["runs"]
        assert run["state"] in ("queued", "trained")
        await worker.start()
        (answer,) = await operator.answers("train", 1)
        assert (answer["status"], answer["result"]["run_id"]) == ("done", run["run_id"])
    (run,) = (await worker.stored("runs"))["runs"]
    assert run["state"] == "trained"


def alive(pid: int | None) -> bool:
    """Whether this process runs."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - no path, the kernel
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_second_signal_stops_at_once(new_worker: NewWorker, amqp_url: str, scenario: str) -> None:
    """Whatever the first one still waits for: here, a store that another process has locked."""
    worker = new_worker(scenario, shutdown_grace="60s")
    await worker.start()
    async with node_at(amqp_url) as node:
        with locked(worker):
            await node.publish(scenario, body(episode(1, success=True)))
            await until(worker.problems)
            worker.send(signal.SIGTERM)
            await until(lambda: worker.logged("stopping"))
            worker.send(signal.SIGTERM)
            began = time.monotonic()
            assert await worker.wait(within=5) == 128 + signal.SIGTERM
            assert time.monotonic() - began < 2
        await nothing_is_lost(worker, node, [*map(line, episode(1, success=True))])


class locked:  # noqa: N801 - used like a function
    """Another process's write lock on the store, as SQLite sees it."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._connection = sqlite3.connect(worker.data_dir / "swarm.db", isolation_level=None)

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


async def test_a_shutdown_is_bounded_while_the_broker_is_silent(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """A half-open connection: whatever is asked of the broker is never answered."""
    async with proxied(amqp_url) as (proxy, url), node_at(amqp_url) as node:
        worker = new_worker(scenario, amqp_url=url, shutdown_grace="3s")
        await worker.start()
        await node.publish(scenario, body(episode(1, success=True)))
        await until(worker.scenario_status, lambda s: s["records_received"] == 5)
        proxy.freeze()
        worker.send(signal.SIGTERM)
        assert await worker.wait(within=3 + 15) == 0


async def test_a_signal_while_it_waits_for_the_broker_ends_it(
    new_worker: NewWorker, scenario: str, refused: str
) -> None:
    """Nobody waits half a minute for a worker that has not begun."""
    worker = new_worker(scenario, amqp_url=refused)
    await worker.start(ready=False)
    await until(lambda: worker.logged("broker_unreachable"))
    worker.send(signal.SIGTERM)
    assert await worker.wait(within=5) == 0


async def test_without_a_broker_it_gives_up_in_bounded_time(new_worker: NewWorker, scenario: str, refused: str) -> None:
    """Whoever supervises it starts it again; the message names the setting."""
    worker = new_worker(scenario, amqp_url=refused, start_timeout="2s")
    await worker.start(ready=False)
    await until(lambda: worker.logged("broker_unreachable"))
    assert await worker.wait(within=10) == 75
    assert "check SWARM_AMQP_URL" in worker.log_tail().splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("trigger", "count(", "SWARM_TRIGGER"),
        ("check_interval", "soon", "SWARM_CHECK_INTERVAL"),
        ("scenarios", "a,b c", "SWARM_SCENARIOS"),
        ("scenarios", "", "SWARM_SCENARIOS"),
        ("processor_mode", "lora", "SWARM_PROCESSOR_MODE"),
        ("processor_mode", "full", "SWARM_PROCESSOR_MODE"),
        ("amqp_url", "http://localhost", "SWARM_AMQP_URL"),
        ("store_url", "mysql://localhost/x", "SWARM_STORE_URL"),
        ("control_key", "a:,b:x", "SWARM_CONTROL_KEY"),
        ("control_key", "abc", "SWARM_CONTROL_KEY"),
        ("learn_models", "worker_task,magic", "SWARM_LEARN_MODELS"),
        ("applicator", "webhook", "SWARM_WEBHOOK_URL"),
        ("prefetch", "100000", "SWARM_PREFETCH"),
        ("crash_at", "nowhere", "SWARM_CRASH_AT"),
        ("crash_at", "receive:often", "SWARM_CRASH_AT"),
        ("scenario_options", '{"a": {"trigger": "sometimes"}}', "SWARM_SCENARIO_OPTIONS"),
    ],
)
async def test_a_wrong_setting_is_named_and_stops_the_start(
    new_worker: NewWorker, refused: str, name: str, value: str, named: str
) -> None:
    """Exit status 78, before anything is touched."""
    worker = new_worker("a", **{"amqp_url": refused, name: value})
    ended = await worker.cli("run", code=78)
    assert ended.err.startswith("swarm-worker: ")
    assert named in ended.err
    assert "Traceback" not in ended.err
    assert not worker.data_dir.exists()


async def test_a_second_worker_on_the_same_store_is_refused(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """It names the first one; and that one does not notice."""
    worker = new_worker(scenario)
    await worker.start()
    second = new_worker(scenario, directory=worker.directory, worker_id="second")
    ended = await second.cli("run", code=78)
    assert f"in use by pid {worker.pid}" in ended.err
    assert await worker.problems() == []


async def test_a_second_worker_in_the_same_directory_is_refused_whatever_its_store(
    new_worker: NewWorker, amqp_url: str, scenario: str, tmp_path: Path
) -> None:
    """It would clear away the runs of the first one, and put its own quarantine's files in the place of the others."""
    worker = new_worker(scenario)
    await worker.start()
    kept = worker.data_dir / "runs" / str(UUID(int=1))
    kept.mkdir(parents=True)
    second = new_worker(scenario, directory=worker.directory, store_url=f"sqlite://{tmp_path / 'other.db'}")
    ended = await second.cli("run", code=78)
    assert f"{worker.data_dir} is in use by pid {worker.pid}" in ended.err
    assert "SWARM_DATA_DIR" in ended.err
    assert kept.exists()
    assert await worker.problems() == []
    await worker.kill()  # the lock goes with its holder
    await worker.start()
    assert not kept.exists()


async def test_a_port_that_is_taken_is_named(new_worker: NewWorker, amqp_url: str, scenario: str) -> None:
    """Exit status 78, and nothing was taken from the queue."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        worker = new_worker(scenario, http_port=taken.getsockname()[1])
        ended = await worker.cli("run", code=78)
    assert "SWARM_HTTP_PORT" in ended.err
