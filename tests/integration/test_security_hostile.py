"""Security checklist S7, S9, S10 and S14 against the real worker: a flood of commands, and names that mean harm."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from tests.integration.foreign_node import body, connection_to, episode, line, node_at, operator_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]

_HOSTILE = (
    "'; DROP TABLE record; --", "%s", ":scenario", "../../etc/passwd", "a\nb\r\n2026 [info] forged", "\x1b[2J\x1b[31m",
    "\x9b31m", "[red]bold[/red]", "[link=http://x]", "\u202egnp.exe", "a\u2028b", "--help", "\\", '"', "$(reboot)",
)  # fmt: skip
_NAMED = ("task_id", "session_id", "action")


def plain(what: str, text: str) -> None:
    """Nothing in it that a terminal would act upon."""
    bad = sorted({each for each in text if not each.isprintable() and each != "\n"})
    assert not bad, f"{what}: {bad!r} in {text[:2000]!r}"


async def test_s14_names_that_mean_harm_are_kept_as_they_are_and_shown_as_they_are_not(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """Stored and exported to the byte; in logs, tables and messages written out, one line a line."""
    worker = new_worker(scenario, log_level="debug", holdout=0.3)
    await worker.start()
    sent: list[bytes] = []
    async with node_at(amqp_url) as node, operator_at(amqp_url) as operator:
        for number, name in enumerate(_HOSTILE):
            records: list[dict[str, Any]] = [
                {field: f"{name}{value}" if field in _NAMED else value for field, value in record.items()}
                for record in episode(number, success=True)
            ]
            records[-1]["outcome"] = {"kind": "failure", "reason": name}
            await node.publish(scenario, body(records, batch_id=name), message_id=name, app_id=name)
            sent += map(line, records)
            await node.publish(scenario, b"bad" + name.encode(), headers={name: name}, message_id=name, app_id=name)
            await node.publish(scenario, body(records, producer_id=name, batch_seq=1))
            await operator.send(f"scenario.{scenario}", name, command_id=name)
            await operator.send(f"scenario.{scenario}", "status", command_id=f"{name}.", scenario=name)
            args = {"model_id": name}
            await operator.send(f"job.{scenario}", "apply", command_id=f"{name}!", scenario=scenario, args=args)
        await until(worker.scenario_status, lambda s: (s["records_received"], s["open_tasks"]) == (len(sent), 0))
        for name in _HOSTILE:
            (failed,) = await operator.answers(f"{name}!", 1)
            assert (failed["status"], failed["result"]) == ("failed", {})
        refused = (await worker.status())["commands"]["refused"]
        assert refused == {"unknown_command": len(_HOSTILE), "bad_schema": len(_HOSTILE)}

    assert sorted(await worker.exported()) == sorted(sent)
    for command in (
        ("status",), ("sessions", "--scenario", scenario), ("episodes", "--scenario", scenario),
        ("quarantine", "list"), ("quarantine", "show", "1"), ("models", "show", _HOSTILE[5], "--scenario", scenario),
    ):  # fmt: skip
        ended = await worker.cli(*command, code=None)
        plain(" ".join(command), ended.out.decode() + ended.err)
    shown = (await worker.cli("sessions", "--scenario", scenario)).out.decode()
    assert "[red]bold[/red]s" in shown, "markup is text"
    assert "\\x1b[2J" in shown
    assert await worker.stop() == 0
    log = (worker.directory / "worker.log").read_text()
    plain("the log", log)
    assert all(json.loads(text) for text in log.splitlines())


def commands_kept(worker: WorkerProcess) -> int:
    """Rows of the ledger of commands."""
    with closing(sqlite3.connect(f"file:{worker.data_dir / 'swarm.db'}?mode=ro", uri=True)) as store:
        return int(store.execute("SELECT count(*) FROM command").fetchone()[0])


@pytest.mark.parametrize(("key", "times"), [("", 10_000), ("default:s3cret", 2_000)])
async def test_s7_a_flood_of_commands_starves_nobody_and_leaves_little(
    new_worker: NewWorker, amqp_url: str, scenario: str, key: str, times: int
) -> None:
    """Thousands, unsigned, whether or not a key is set, beside records and an operator's own command."""
    worker = new_worker(scenario, **({"control_key": key} if key else {}))
    await worker.start()
    sent: list[bytes] = []
    async with node_at(amqp_url) as node, connection_to(amqp_url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        control = await channel.get_exchange("swarm.control")

        async def flood() -> None:
            for number in range(times):
                command = {"command": "pause", "command_id": str(uuid4()), "args": {"what": "training"}}
                message = aio_pika.Message(json.dumps(command).encode(), reply_to="swarm.reply.nobody")
                await control.publish(message, routing_key=f"scenario.{scenario}", mandatory=False)
                if number % 100 == 0:
                    await asyncio.sleep(0)

        async def records() -> float:
            began = time.monotonic()
            for task in range(50):
                batch = episode(task, success=True)
                await node.publish(scenario, body(batch))
                sent.extend(map(line, batch))
            await until(worker.scenario_status, lambda s: s["records_received"] == len(sent))
            return time.monotonic() - began

        _, took, told = await asyncio.gather(flood(), records(), worker.tell("resume", "--scenario", scenario))
        assert took < 20
        assert told["status"] == "done"

        async def through() -> int:
            commands = (await worker.status())["commands"]
            return int(sum(commands["refused"].values()) + commands["accepted"] - 1)

        assert await until(through, lambda number: number >= times) == times
        status = await worker.status()
    refused = status["commands"]["refused"]
    if key:
        assert refused == {"unsigned": times}
        assert commands_kept(worker) == 1
    else:
        assert set(refused) == {"rate_limited"}
        assert commands_kept(worker) < 20 + 2 * 60 + 2
    lines = [entry for entry in worker.log() if entry["event"] == "command_refused"]
    assert 1 <= len(lines) <= 2
    assert (await worker.cli("status", "--json")).json["scenarios"][scenario]["records_received"] == len(sent)
    assert await worker.stop() == 0
