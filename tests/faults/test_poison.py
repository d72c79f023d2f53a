"""A message that kills the worker takes no neighbour with it, whatever part of the worker it kills."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.faults.programs.deadly_worker import DECODING, STORING
from tests.integration.foreign_node import body, depth, episode, line, node_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until

#: On a busy machine.
pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]

_PROGRAM = (sys.executable, str(Path(__file__).parent / "programs" / "deadly_worker.py"))
_NEIGHBOURS = 60


def _deadly(mark: bytes) -> bytes:
    records = [{"type": "action", "task_id": "poison", "tick": 0, "worker_id": 0, "action": mark.decode()}]
    return body(records, producer_id="evil", batch_seq=0)


async def _publish_around(amqp_url: str, scenario: str, poison: bytes) -> list[bytes]:
    """The poison in the middle of what one prefetch holds; the records of its neighbours."""
    sent: list[bytes] = []
    async with node_at(amqp_url) as node:
        for number in range(_NEIGHBOURS):
            if number == _NEIGHBOURS // 3:
                await node.publish(scenario, poison, message_id="poison")
            records = episode(number, success=True)
            sent += map(line, records)
            await node.publish(scenario, body(records, producer_id="good", batch_seq=number))
    return sent


async def _lives(worker: WorkerProcess, *, at_most: int, records: int, quarantined: int) -> int:
    """Start it as often as it dies, until so much is stored or so many lives are over; how often it died."""

    async def stored() -> tuple[int, int]:
        facts = (await worker.stored("facts"))["facts"]
        return facts["records"], facts["quarantined"]

    async def over() -> bool:
        return not worker.running or await stored() == (records, quarantined)

    while worker.starts <= at_most:
        await until(over)
        if await stored() == (records, quarantined):
            break
        assert await worker.wait() == -signal.SIGKILL
        await worker.start(ready=False)
    return worker.starts - worker.running


async def test_a_body_that_kills_its_decoder_is_quarantined_and_every_neighbour_is_stored(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """Three lives it takes; in the fourth it is a suspect, and only the process that tries it out dies of it."""
    worker = new_worker(scenario)
    worker.program = _PROGRAM
    await worker.start()
    poison = _deadly(DECODING)
    sent = await _publish_around(amqp_url, scenario, poison)
    died = await _lives(worker, at_most=6, records=len(sent), quarantined=1)
    assert died == 3
    await worker.wait_ready()
    assert (await worker.status())["counters"]["suspects"] > 1

    (entry,) = (await worker.cli("quarantine", "list", "--json")).json
    assert (entry["reason"], entry["headers"]["message_id"], entry["seen"]) == ("crashed_decoder", "poison", 1)
    assert "signal:9" in entry["detail"]
    assert (await worker.cli("quarantine", "show", str(entry["entry_id"]), "--body")).out == poison
    # A replay dies of it no more than the worker does, and its decoder is as bad as before.
    replayed = (await worker.tell("quarantine", "replay", "--scenario", scenario))["result"]
    assert replayed["entries"] == {str(entry["entry_id"]): "crashed_decoder"}
    assert sorted(await worker.exported()) == sorted(sent)
    async with node_at(amqp_url) as node:
        await until(lambda: depth(node, f"swarm.records.{scenario}"), lambda n: n == 0)
        assert await depth(node, f"swarm.dead.{scenario}") == 0
    assert await worker.stop() == 0


async def test_a_body_that_kills_the_store_does_not_keep_its_neighbours_out(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """It survives its trial, so it kills on; but in another place each time, and those before it are stored."""
    worker = new_worker(scenario)
    worker.program = _PROGRAM
    await worker.start()
    sent = await _publish_around(amqp_url, scenario, _deadly(STORING))
    died = await _lives(worker, at_most=25, records=len(sent), quarantined=0)
    assert 3 <= died < 25  # of the fifty after which the broker takes a message for dead
    if worker.running:
        await worker.kill()
    async with node_at(amqp_url) as node:
        assert await depth(node, f"swarm.dead.{scenario}") == 0
        await until(lambda: depth(node, f"swarm.records.{scenario}"), lambda n: n >= 1)
