"""Poison by the megabyte: the quarantine stays within its bounds, nothing goes silently, and ingest goes on."""

from __future__ import annotations

import gzip
import json
from random import Random
from typing import Any

import aiohttp
import pytest

from tests.faults.oracle import chosen_seed
from tests.integration.foreign_node import body, depth, episode, line, node_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until

#: On a busy machine.
pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]

_LIMIT = 1_000_000
_POISON, _SIZE = 40, 90_000
_GROUP = 4  # messages


async def _replay(worker: WorkerProcess, *which: str) -> Any:
    return (await worker.tell("quarantine", "replay", "--scenario", worker.scenarios[0], *which))["result"]


async def _metrics(worker: WorkerProcess) -> dict[str, float]:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{worker.port}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return {name: float(value) for name, value in (text.rsplit(" ", 1) for text in lines if text[0] != "#")}


async def test_a_flood_of_poison_is_bounded_on_disk_and_told_and_its_neighbours_are_stored(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    chance = Random(chosen_seed())
    worker = new_worker(scenario, quarantine_bytes=_LIMIT, batch_messages=_GROUP)
    await worker.start()
    sent: list[bytes] = []
    poison = [chance.randbytes(_SIZE) for _ in range(_POISON)]  # nothing that could be compressed
    async with node_at(amqp_url) as node:
        for number, text in enumerate(poison):
            await node.publish(scenario, text, message_id=f"poison-{number}")
            records = episode(number, success=True)
            sent += map(line, records)
            await node.publish(scenario, body(records, producer_id="good", batch_seq=number))
        # Two that are bad in other ways, the newest: one too big to be kept whole.
        await node.publish(scenario, b" " * 2_000_000, message_id="huge")
        await node.publish(scenario, b"{}", message_id="small")
        await until(
            worker.scenario_status, lambda s: (s["records_received"], s["quarantined"]) == (len(sent), _POISON + 2)
        )
        await until(lambda: depth(node, f"swarm.records.{scenario}"), lambda n: n == 0)
        assert await depth(node, f"swarm.dead.{scenario}") == 0
    assert sorted(await worker.exported()) == sorted(sent)

    room = (await worker.status())["quarantine"]
    assert room["limit_bytes"] == _LIMIT
    assert room["bytes"] < _LIMIT + _GROUP * (_SIZE + 1_000)  # one group more
    assert room["moved"] >= 10
    assert room["file_bytes"] <= _LIMIT + _LIMIT // 8
    assert room["entries"] + room["moved"] == _POISON + 2
    assert room["file_entries"] + room["deleted"] == room["moved"]
    assert room["deleted"] > 0
    deleted = [entry for entry in worker.log() if entry["event"] == "quarantine_file_deleted"]
    assert sum(entry["entries"] for entry in deleted) == room["deleted"]
    metrics = await _metrics(worker)
    assert metrics["swarm_quarantine_entries"] == room["entries"]
    assert metrics["swarm_quarantine_moved_total"] == room["moved"]
    assert metrics["swarm_quarantine_deleted_total"] == room["deleted"]
    kept = [
        json.loads(text)["headers"]["message_id"]
        for path in sorted((worker.data_dir / "quarantine").glob("*.jsonl.gz"))
        for text in gzip.decompress(path.read_bytes()).splitlines()
    ]
    assert kept == [f"poison-{number}" for number in range(room["deleted"], room["moved"])]
    listed = (await worker.cli("quarantine", "list", "--limit", "1000", "--json")).json
    assert [entry["headers"]["message_id"] for entry in listed] == [
        *(f"poison-{number}" for number in range(room["moved"], _POISON)), "huge", "small",
    ]  # fmt: skip
    shown = (await worker.cli("quarantine", "list", "--reason", "bad_schema")).out.decode()
    assert f"{room['moved']} older entries were moved to" in shown

    # Replays tell what became of each, change nothing that is still bad, and can be repeated.
    huge, small = (str(entry["entry_id"]) for entry in listed[-2:])
    assert (await _replay(worker, "--reason", "bad_schema"))["entries"] == {small: "bad_schema"}
    told = await _replay(worker, "--entry", huge, "--entry", small)
    assert (told["examined"], told["truncated"], told["entries"]) == (2, 1, {huge: "cut", small: "bad_schema"})
    again = (await worker.cli("quarantine", "list", "--reason", "bad_schema", "--json")).json
    assert [(entry["replays"], entry["seen"], entry["replayed_at_ms"]) for entry in again] == [(2, 1, None)]
    everything = await _replay(worker)
    assert everything["examined"] == len(listed)
    assert everything["stored"] == 0
    assert await worker.stop() == 0
