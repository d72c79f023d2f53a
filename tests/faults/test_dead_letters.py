"""What the broker took for dead comes back by a command: nothing lost, nothing doubled, and no suspect for ever."""

from __future__ import annotations

import json
from typing import Any

import aio_pika
import pytest

from tests.integration.foreign_node import body, connection_to, depth, episode, line, node_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until

#: Each has a dozen processes to wait for.
pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]


async def _return_until_dead(amqp_url: str, queue: str, dead: str, number: int) -> None:
    """Take and give back, as workers do that die of it again and again."""
    async with connection_to(amqp_url) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=number)
        taken = await channel.get_queue(queue, ensure=False)
        held: list[aio_pika.abc.AbstractIncomingMessage] = []

        async def give_back(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            held.append(message)
            if len(held) == number:  # all of them at once, in one frame
                await held[-1].channel.basic_nack(held[-1].delivery_tag or 0, multiple=True, requeue=True)
                held.clear()

        tag = await taken.consume(give_back)
        async with node_at(amqp_url) as node:
            await until(lambda: depth(node, dead), lambda n: n == number, within=30)
        await taken.cancel(tag)


async def _dead(worker: WorkerProcess, what: str, *more: str) -> Any:
    options = ["--json"] if what == "list" else ["--wait", "--json"]
    reply = (await worker.cli("dead", what, "--scenario", worker.scenarios[0], *options, *more)).json
    if what == "list":
        return reply
    assert reply["status"] == "done", reply
    return reply["result"]


async def test_dead_letters_come_back_and_are_stored_once(new_worker: NewWorker, amqp_url: str, scenario: str) -> None:
    worker = new_worker(scenario)
    await worker.start()
    await worker.tell("pause", "--scenario", scenario, "--what", "ingest")
    records_queue, dead_queue = f"swarm.records.{scenario}", f"swarm.dead.{scenario}"
    sent: list[bytes] = []
    async with node_at(amqp_url) as node:
        for number in range(20):
            records = episode(number, success=True)
            sent += map(line, records)
            data = body(records, producer_id="node", batch_seq=number)
            how: dict[str, Any] = {"packed": number % 2 == 1, "message_id": f"m{number}", "headers": {"trace": "t"}}
            await node.publish(scenario if number % 3 else f"{scenario}.extra", data, **how)
        await node.publish(scenario, b"no json", message_id="bad", headers={"trace": "t"})
        await _return_until_dead(amqp_url, records_queue, dead_queue, 21)

        await worker.tell("resume", "--scenario", scenario)
        listed = await _dead(worker, "list", "--limit", "3")
        assert (listed["messages"], len(listed["letters"])) == (21, 3)
        first = listed["letters"][0]
        assert (first["kind"], first["reason"], first["queue"]) == ("records", "delivery_limit", records_queue)
        assert {letter["message_id"] for letter in listed["letters"]} <= {f"m{number}" for number in range(20)} | {
            "bad"
        }
        await until(lambda: depth(node, dead_queue), lambda n: n == 21)  # a look changes nothing

        # Not confirmed is not acknowledged: what no queue takes stays where it is.
        queue = await node.channel.get_queue(records_queue, ensure=False)
        for key in (scenario, f"{scenario}.#"):
            await queue.unbind("swarm.records", key)
        none = await _dead(worker, "replay")
        assert (none["messages"], none["replayed"], none["failed"], none["kept"]) == (21, 0, 16, 0)
        assert "no queue takes it" in none["error"]
        await until(lambda: depth(node, dead_queue), lambda n: n == 21)
        for key in (scenario, f"{scenario}.#"):
            await queue.bind("swarm.records", key)

        some = await _dead(worker, "replay", "--limit", "10")
        assert (some["messages"], some["replayed"], some["failed"], some["kept"]) == (21, 10, 0, 0)
        # A crash between a confirm and its acknowledgement leaves a copy of what is stored: the same as publishing it.
        await node.publish(scenario, body(episode(1, success=True), producer_id="node", batch_seq=1))
        rest = await _dead(worker, "replay")
        assert (rest["messages"], rest["replayed"], rest["error"]) == (11, 11, None)

        seen = await until(worker.scenario_status, lambda s: s["records_received"] == len(sent) and s["quarantined"])
        assert (seen["batches"], seen["quarantined"]) == (20, 1)
        await until(worker.scenario_status, lambda s: s["duplicate_batches"] == 1)
        assert await depth(node, dead_queue) == 0
        assert await depth(node, records_queue) == 0
    assert sorted(await worker.exported()) == sorted(sent)
    assert (await worker.status())["counters"]["suspects"] == 0
    (entry,) = (await worker.cli("quarantine", "list", "--json")).json
    assert (entry["reason"], entry["headers"]["message_id"], entry["headers"]["trace"]) == ("not_json", "bad", "t")
    assert not [name for name in entry["headers"] if name.startswith(("x-death", "x-first", "x-last", "x-delivery"))]
    assert await worker.stop() == 0


async def test_commands_among_the_dead_are_dropped_once_nobody_would_obey_them(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """Nothing of them is published as records."""
    worker = new_worker(scenario)
    await worker.start()
    await worker.stop()
    async with node_at(amqp_url) as node:
        control = await node.channel.get_exchange("swarm.control", ensure=False)
        for number, expires in enumerate([1, 0]):
            command = {"schema_version": 1, "command": "rebuild", "command_id": f"c{number}", "scenario": scenario}
            data = json.dumps(command | {"args": {}, "expires_at_ms": expires}).encode()
            await control.publish(aio_pika.Message(data, delivery_mode=2), routing_key=f"job.{scenario}")
        await until(lambda: depth(node, f"swarm.control.jobs.{scenario}"), lambda n: n == 2)
        await _return_until_dead(amqp_url, f"swarm.control.jobs.{scenario}", f"swarm.dead.{scenario}", 2)
        await worker.start()
        found = await _dead(worker, "replay")
        assert (found["messages"], found["replayed"], found["dropped"], found["kept"]) == (2, 0, 1, 1)
        await until(lambda: depth(node, f"swarm.dead.{scenario}"), lambda n: n == 1)
        shown = await worker.cli("dead", "list", "--scenario", scenario)
        assert b"command" in shown.out
        assert (await worker.scenario_status())["quarantined"] == 0
