"""S4, S5, S16: what each of the broker's users may do, against a real broker with the definitions that are deployed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aio_pika
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractConnection

from tests.integration.foreign_node import body, connection_to, episode, line
from tests.integration.least_privilege import DEFINITIONS, Door, definitions_imported
from tests.integration.worker_process import CommandLine, WorkerProcess, until
from worker.broker.session import Session
from worker.broker.topology import Exchange, ensure_topology, service_objects, shared_objects
from worker.broker.url import parse_amqp_url
from worker.client.connect import connect_follower, connect_publisher
from worker.wire.records import ActionRecord

if TYPE_CHECKING:
    from tests.conftest import Broker

#: One worker and one import for all tests here, so they share a loop.
pytestmark = [pytest.mark.rabbitmq, pytest.mark.asyncio(loop_scope="module")]

REFUSED = "ACCESS_REFUSED"
FORGED = "PRECONDITION_FAILED - user_id property set to"


@pytest.fixture(scope="module")
def door(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """The definitions, imported."""
    with definitions_imported(broker, tmp_path_factory.mktemp("definitions")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(
    door: Door, tmp_path_factory: pytest.TempPathFactory, command_line: CommandLine
) -> AsyncIterator[WorkerProcess]:
    """A worker with the rights of a worker and no more, who asks everybody who they are."""
    made = WorkerProcess(
        tmp_path_factory.mktemp("worker"), "checkout", "search", command_line=command_line, amqp_url=door.url("worker"),
        producers=json.dumps({"node-checkout": ["checkout-*"]}), operators="operator,worker",
    )  # fmt: skip
    await made.start()
    yield made
    await made.discard()


async def attempt(connection: AbstractConnection, exchange: str, key: str, **properties: Any) -> str:
    """Publish: `taken`, or the broker's words."""
    channel = await connection.channel(on_return_raises=True)
    target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
    data = properties.pop("data", b"{}")
    try:
        await target.publish(aio_pika.Message(data, **properties), routing_key=key, mandatory=True, timeout=10)
        await channel.close()
    except aio_pika.exceptions.AMQPError as error:
        return str(error)
    return "taken"


async def declare(connection: AbstractConnection, name: str, **how: Any) -> str:
    """Declare a queue: `taken`, or the broker's words."""
    channel = await connection.channel()
    try:
        await channel.declare_queue(name, **how)
        await channel.close()
    except aio_pika.exceptions.AMQPError as error:
        return str(error)
    return "taken"


async def read(connection: AbstractConnection, queue: str) -> str:
    """Look into a queue: `taken`, or the broker's words."""
    channel = await connection.channel()
    try:
        await (await channel.get_queue(queue, ensure=False)).get(fail=False, timeout=10)
        await channel.close()
    except aio_pika.exceptions.AMQPError as error:
        return str(error)
    return "taken"


async def bind(connection: AbstractConnection, queue: str, exchange: str, key: str) -> str:
    """Bind a queue: `taken`, or the broker's words."""
    channel = await connection.channel()
    try:
        await (await channel.get_queue(queue, ensure=False)).bind(exchange, key)
        await channel.close()
    except aio_pika.exceptions.AMQPError as error:
        return str(error)
    return "taken"


async def _records(worker: WorkerProcess) -> int:
    return int((await worker.scenario_status("checkout"))["records_received"])


async def test_a_node_writes_records_of_its_scenario_and_nothing_else(door: Door, worker: WorkerProcess) -> None:
    """S4: other scenarios, commands, events, dead letters, any queue by name, declaring and reading: all 403."""
    assert worker.running
    async with connection_to(door.url("node-checkout")) as node:
        for key in ("checkout", "checkout.topic"):
            assert await attempt(node, "swarm.records", key) == "taken"
        for exchange, key in (
            ("swarm.records", "search"), ("swarm.records", "checkout2"), ("swarm.records", "swarm.records.search"),
            ("swarm.records", ""), ("swarm.control", "all"), ("swarm.control", "job.checkout"),
            ("swarm.learning", "learning.trained.checkout"), ("swarm.dead", "checkout"),
            ("", "swarm.records.checkout"), ("", "swarm.records.search"), ("amq.topic", "checkout"),
        ):  # fmt: skip
            assert REFUSED in await attempt(node, exchange, key), (exchange, key)
        for name in ("mine", "swarm.records.mine", "swarm.records.checkout"):
            assert REFUSED in await declare(node, name, durable=True), name
        for queue in ("swarm.records.checkout", "swarm.learning.journal", "swarm.dead.checkout"):
            assert REFUSED in await read(node, queue), queue


async def test_the_broker_refuses_a_forged_user(door: Door, worker: WorkerProcess) -> None:
    """S5: 406, and the channel closes."""
    assert worker.running
    async with connection_to(door.url("node-checkout")) as node:
        assert await attempt(node, "swarm.records", "checkout", user_id="node-checkout") == "taken"
        for user in ("worker", "operator", "node-demo", "nobody"):
            assert FORGED in await attempt(node, "swarm.records", "checkout", user_id=user), user


async def test_a_service_reads_learning_events_and_nothing_else(
    door: Door, worker: WorkerProcess, tmp_path: Path
) -> None:
    """S4: with a queue for the moment, and with the durable one that the definitions bring."""
    before = await _records(worker)
    url = door.url("service-planner")
    async with (
        connect_follower(url, name="planner") as now,
        connect_follower(url, name="planner", durable=True) as kept,
    ):
        async with connect_publisher(
            door.url("node-checkout"), scenario="checkout", producer_id="checkout-events", state_dir=tmp_path
        ) as publisher:
            await publisher.publish(ActionRecord(task_id="events", tick=0, worker_id=0, action="done"))
        await until(partial(_records, worker), lambda records: records > before)
        await worker.cli("train-now", "--scenario", "checkout", "--force", "--wait", code=None)
        async with asyncio.timeout(20):
            event = await anext(aiter(now))
            async for same in kept:  # after those of other tests
                if same.id == event.id:
                    break
    async with connection_to(url) as service:
        for exchange, key in (
            ("swarm.records", "checkout"), ("swarm.control", "all"), ("swarm.learning", "learning.trained.checkout"),
            ("swarm.dead", "checkout"), ("", "swarm.records.checkout"),
        ):  # fmt: skip
            assert REFUSED in await attempt(service, exchange, key), (exchange, key)
        for queue in ("swarm.records.checkout", "swarm.dead.checkout", "swarm.control.jobs.checkout"):
            assert REFUSED in await read(service, queue), queue
        assert await declare(service, "swarm.learning.tmp.planner", exclusive=True) == "taken"
        for exchange, key in (("swarm.records", "#"), ("swarm.control", "#"), ("swarm.dead", "checkout")):
            assert REFUSED in await bind(service, "swarm.learning.tmp.planner", exchange, key), exchange
        assert REFUSED in await declare(service, "swarm.learning.tmp.other", exclusive=True)


async def test_an_operator_commands_and_hears_the_answers_and_nothing_else(
    door: Door, worker: WorkerProcess, command_line: CommandLine
) -> None:
    """S4, S5: over the real command line; nodes and services are not obeyed even where they could send."""
    operator = {**worker.environment, "SWARM_AMQP_URL": door.url("operator")}
    reply = (await command_line(operator, "pause", "--scenario", "checkout", "--wait", "--json")).json
    assert (reply["status"], reply["worker"]) == ("done", "w-checkout")
    assert (await command_line(operator, "resume", "--scenario", "checkout", "--wait", "--json")).json[
        "status"
    ] == "done"
    async with connection_to(door.url("operator")) as ops:
        for exchange, key in (
            ("swarm.records", "checkout"), ("swarm.learning", "learning.trained.checkout"), ("swarm.dead", "checkout"),
            ("", "swarm.records.checkout"), ("swarm.control", "elsewhere"),
        ):  # fmt: skip
            assert REFUSED in await attempt(ops, exchange, key), (exchange, key)
        for queue in ("swarm.records.checkout", "swarm.control.jobs.checkout", "swarm.dead.checkout"):
            assert REFUSED in await read(ops, queue), queue
        assert REFUSED in await declare(ops, "swarm.records.mine", durable=True)
    stranger = {**worker.environment, "SWARM_AMQP_URL": door.url("admin")}
    ended = await command_line(stranger, "pause", "--scenario", "checkout", "--wait", "--timeout", "2", code=None)
    assert ended.code != 0
    refused = (await worker.status())["commands"]["refused"]
    assert refused["unauthenticated_operator"] >= 1
    assert (await worker.scenario_status("checkout"))["held_because"] == []


async def test_a_worker_does_its_whole_job_with_a_workers_rights(
    door: Door, worker: WorkerProcess, command_line: CommandLine, tmp_path: Path
) -> None:
    """S4: `check` finds everything equal and allowed; records come in, a model is learnt, told and applied, a command
    is answered, dead letters can be looked at; and the worker's user may declare nothing outside swarm."""
    assert (await worker.cli("check", "--json")).json["good"]
    before = await _records(worker)
    async with connect_publisher(
        door.url("node-checkout"), scenario="checkout", producer_id="checkout-main", state_dir=tmp_path
    ) as publisher:
        for task in range(8):
            for tick, action in enumerate(("look", "done")):
                await publisher.publish(
                    ActionRecord(task_id=f"m{task}", tick=tick, worker_id=0, action=action, event_id=task * 10 + tick)
                )
    async with connect_follower(door.url("service-planner"), name="planner", keys=["learning.applied"]) as events:
        await until(partial(_records, worker), lambda records: records >= before + 16)
        operator = {**worker.environment, "SWARM_AMQP_URL": door.url("operator")}
        told = await command_line(
            operator, "train-now", "--scenario", "checkout", "--apply", "--force", "--wait", "--json"
        )
        assert told.json["status"] == "done", told.json
        applied = await command_line(
            operator, "apply", "--scenario", "checkout", "--force", "--wait", "--json", code=None
        )
        assert applied.code in (0, 1)  # 1: it is live already
        async with asyncio.timeout(20):
            assert (await anext(aiter(events))).type == "learning.applied"
    async with connection_to(door.url("worker")) as itself:
        for name in ("mine", "swarmish", "amq.mine"):
            assert REFUSED in await declare(itself, name, durable=True), name


async def test_a_worker_with_the_rights_of_another_ends_with_78_and_says_what_it_lacks(
    door: Door, tmp_path: Path, command_line: CommandLine
) -> None:
    """No loop of attempts: no retry gives it a permission. Of a scenario whose queues no other test has made."""
    poor = WorkerProcess(tmp_path, "unmade", command_line=command_line, amqp_url=door.url("node-checkout"))
    await poor.start(ready=False)
    assert await poor.wait() == 78
    assert "permission to configure ^swarm" in poor.log_tail()


async def test_check_tells_what_a_user_may_not(
    door: Door, worker: WorkerProcess, tmp_path: Path, command_line: CommandLine
) -> None:
    """Where every object is there already, so that nothing fails until records ought to come."""
    poor = WorkerProcess(tmp_path, "checkout", command_line=command_line, amqp_url=door.url("node-checkout"))
    found = (await poor.cli("check", "--json", code=78)).json["findings"]
    (told,) = (finding["detail"] for finding in found if not finding["good"])
    assert "read from swarm.records.checkout" in told
    assert "write to swarm.learning" in told
    assert "write to amq.default" in told
    assert "write to swarm.records" not in told
    rich = WorkerProcess(tmp_path, "checkout", command_line=command_line, amqp_url=door.url("worker"))
    assert (await rich.cli("check", "--json")).json["good"]


async def test_records_without_a_user_or_of_anothers_producer_are_quarantined(
    door: Door, worker: WorkerProcess
) -> None:
    """S5: the four ways in, one of them past the topic permissions of RabbitMQ 3.10; and a good one."""

    async def refused() -> dict[str, int]:
        """How many have been; other tests' messages are refused for other reasons."""
        listed = await worker.cli("quarantine", "list", "--reason", "unauthenticated_producer", "--json")
        counts = Counter(entry["scenario"] for entry in listed.json)
        return {name: counts[name] for name in ("checkout", "search")}

    before = await refused()
    name = f"checkout-{uuid4().hex[:8]}"
    record = {**episode(1, success=True)[0], "task_id": name}
    async with connection_to(door.url("node-checkout")) as node:

        async def send(producer: str, seq: int, **properties: Any) -> None:
            data = body([{**record, "event_id": seq}], producer_id=producer, batch_seq=seq)
            said = await attempt(node, "swarm.records", "checkout", data=data, **properties)
            assert said == "taken"

        await send(name, 0, user_id="node-checkout")
        await send(name, 1)
        await send("search-1", 2, user_id="node-checkout")
        # 4.x may refuse the copy's routing key like any; 3.10 lets it through, to both queues.
        data = body([{**record, "event_id": 3}], producer_id=name, batch_seq=3)
        copied = await attempt(
            node, "swarm.records", "checkout", data=data, user_id="node-checkout", headers={"BCC": ["search"]}
        )
    smuggled = copied == "taken"
    expected = {"checkout": before["checkout"] + 2, "search": before["search"] + int(smuggled)}
    await until(refused, expected.__eq__)
    stored = line({**record, "event_id": 0})
    assert stored in await worker.exported("checkout")
    assert await worker.exported("search") == []
    entries = (await worker.cli("quarantine", "list", "--scenario", "search", "--json")).json
    text = json.dumps(entries)
    if smuggled:
        assert "unauthenticated_producer" in text
        assert "another scenario's routing key" in text
    # A replay asks again.
    replay = await worker.tell("quarantine", "replay", "--scenario", "checkout", "--reason", "unauthenticated_producer")
    assert replay["result"]["still_refused"] == {"unauthenticated_producer": expected["checkout"]}


async def test_the_definitions_declare_what_the_code_declares(door: Door) -> None:
    """The exchanges and the service's queue are compared by the broker itself, argument by argument."""
    session = Session("control", parse_amqp_url(door.url("admin")), start_timeout=10)
    await session.start()
    try:
        exchanges = [one for one in shared_objects() if isinstance(one, Exchange)]
        assert {one["name"] for one in DEFINITIONS["exchanges"]} == {one.name for one in exchanges}
        await ensure_topology(session, [*exchanges, *service_objects("planner", ["learning.#"])], "auto")
    finally:
        await session.close()


async def test_the_worker_writes_answers_to_nobodys_queue_but_an_operators(door: Door, worker: WorkerProcess) -> None:
    """S16: whoever may command makes no deputy of the worker, which may write to every queue."""
    queues = [
        "swarm.records.checkout", "swarm.records.search", "swarm.dead.checkout", "swarm.control.jobs.checkout",
        "swarm.learning.sub.planner",
    ]  # fmt: skip
    others = ["swarm.reply.", "swarm.reply.A", "swarm.reply.a.b", "xswarm.reply.a", "swarm.reply.a\n", "swarm.reply.é"]
    done = (await worker.status())["commands"]["done"]
    async with connection_to(door.url("operator")) as ops, connection_to(door.url("admin")) as admin:
        channel = await admin.channel()
        before = [await _depth(channel, queue) for queue in queues]
        for address in [*queues, *others]:
            command = {"schema_version": 1, "command": "resume", "command_id": str(uuid4()), "args": {}}
            how: dict[str, Any] = {"user_id": "operator", "reply_to": address, "data": json.dumps(command).encode()}
            assert await attempt(ops, "swarm.control", "scenario.checkout", **how) == "taken"
        wanted = done + len(queues) + len(others)
        await until(worker.status, lambda status: status["commands"]["done"] >= wanted)
        refused = {entry["reply_to"] for entry in worker.log() if entry["event"] == "reply_refused"}
        assert {repr(address) for address in [*queues, *others]} <= refused
        assert [await _depth(channel, queue) for queue in queues] == before


async def _depth(channel: Any, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return int(declared.declaration_result.message_count)
