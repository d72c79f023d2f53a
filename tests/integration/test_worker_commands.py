"""Every command, through the command line and as plain JSON: what it does, what it answers, what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import pytest

from tests.integration.foreign_node import Node, body, depth, ears_at, episode, node_at, operator_at
from tests.integration.worker_process import NewWorker, WorkerProcess, until
from worker.clock import SystemClock
from worker.store import open_store
from worker.store.port import IncomingReject

pytestmark = pytest.mark.rabbitmq


async def play(node: Node, worker: WorkerProcess, scenario: str, tasks: range, *, successes: int) -> Any:
    """Send these tasks, of three `successes` succeed, and wait until they are episodes of two learn models."""
    before = (await worker.scenario_status(scenario))["episodes_created"]
    records = [record for task in tasks for record in episode(task, success=task % 3 < successes)]
    await node.publish(scenario, body(records))
    return await until(
        lambda: worker.scenario_status(scenario), lambda s: s["episodes_created"] == before + 2 * len(tasks)
    )


async def test_training_applying_and_going_back_by_command(new_worker: NewWorker, amqp_url: str, scenario: str) -> None:
    """train-now (dry run, plain, nothing new, forced), apply, rollback, and what models and status say of them."""
    worker = new_worker(scenario, holdout=0.5)
    await worker.start()
    of = ("--scenario", scenario)
    async with node_at(amqp_url) as node, ears_at(amqp_url, f"learning.*.{scenario}") as ears:
        await play(node, worker, scenario, range(60), successes=2)
        dry = await worker.tell("train-now", *of, "--dry-run")
        assert (dry["status"], dry["result"]["would_train"], dry["result"]["new_episodes"]) == ("done", True, 120)
        assert (await worker.stored("runs"))["runs"] == []

        first = (await worker.tell("train-now", *of))["result"]
        assert (first["state"], first["model_version"], first["gate"]["verdict"]) == ("trained", 1, "blessed")
        assert first["applied"] == {"applied": False, "reason": first["applied"]["reason"]}
        assert "apply mode is manual" in first["applied"]["reason"]
        assert (await worker.tell("train-now", *of, "--dry-run"))["result"]["would_train"] is False
        again = (await worker.tell("train-now", *of))["result"]
        assert (again["state"], again["reason"].partition(":")[0]) == ("skipped", "nothing_new")
        forced = (await worker.tell("train-now", *of, "--force"))["result"]
        assert (forced["state"], forced["reason"].partition(":")[0]) == ("skipped", "unchanged")

        applied = (await worker.tell("apply", *of))["result"]
        assert (applied["model_id"], applied["previous_model_id"]) == (first["model_id"], None)
        assert served(worker, scenario) == first["model_id"]
        await play(node, worker, scenario, range(60, 120), successes=2)
        second = (await worker.tell("train-now", *of, "--apply"))["result"]
        assert (second["model_version"], second["applied"]) == (
            2, {"applied": True, "previous_model_id": first["model_id"]},
        )  # fmt: skip
        assert served(worker, scenario) == second["model_id"]

        back = (await worker.tell("rollback", *of))["result"]
        assert (back["model_id"], served(worker, scenario)) == (first["model_id"], first["model_id"])
        nothing = await worker.tell("rollback", *of, code=1)
        assert (nothing["status"], "no earlier model" in nothing["error"]) == ("failed", True)
        missing = await worker.tell("apply", *of, "--model", "99", code=1)
        assert (missing["status"], "99" in missing["error"]) == ("failed", True)
        assert (await worker.tell("apply", *of, "--model", "2"))["result"]["model_id"] == second["model_id"]

        await ears.wait_for("learning.applied", scenario, 3)
        kinds = [event["type"].partition(".")[2] for _, event in ears.deliveries]
        assert kinds == ["trained", "skipped", "skipped", "applied", "trained", "applied", "rolled_back", "applied"]

    listed = (await worker.cli("models", *of, "--json")).json
    assert [(model["version"], model["aliases"]) for model in listed] == [(2, ["champion"]), (1, ["previous"])]
    history = (await worker.cli("models", "history", *of, "--json")).json
    assert [row["action"] for row in history] == ["apply", "rollback", "apply", "apply"]
    status = (await worker.cli("status", "--worker", f"w-{scenario}", "--json")).json
    told = status["scenarios"][scenario]
    assert (status["ready"], told["trainings_completed"], told["models_applied"]) == (True, 2, 3)
    assert status["commands"]["refused"] == {}
    assert (await worker.cli("status", "--stored", "--json")).json["scenarios"][scenario]["models_applied"] == 3
    # Without --wait a command is sent and its first answer told; of a broadcast, what is known after a second.
    assert (await worker.cli("resume", *of, "--json")).json["status"] in ("accepted", "done")


def served(worker: WorkerProcess, scenario: str) -> str:
    """The id of the model that nodes read."""
    document = json.loads((worker.data_dir / "current" / f"{scenario}.json").read_bytes())
    return str(document["model_id"])


async def test_pausing_stops_intake_or_training_until_resumed(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """A paused intake leaves the records in the queue and the worker not ready; a paused training leaves them new."""
    worker = new_worker(scenario, trigger="count(2)")
    await worker.start()
    of = ("--scenario", scenario)
    async with node_at(amqp_url) as node, ears_at(amqp_url, f"learning.trained.{scenario}") as ears:
        assert (await worker.tell("pause", *of))["result"]["paused"] is True
        await until(worker.problems, lambda problems: problems == [f"{scenario}: paused by command"])
        # Enough of them that hardly ever all are held out.
        await node.publish(scenario, body([record for task in range(10) for record in episode(task, success=True)]))
        await until(lambda: depth(node, f"swarm.records.{scenario}"), lambda n: n == 1)
        assert (await worker.scenario_status())["records_received"] == 0

        await worker.tell("resume", *of, "--what", "ingest")
        await worker.wait_ready()
        seen = await until(worker.scenario_status, lambda s: s["episodes_created"] == 20)
        assert (seen["waiting_for"].partition(";")[0], seen["trainings_completed"]) == ("paused", 0)

        await worker.tell("resume", *of, "--what", "training")
        await ears.wait_for("learning.trained", scenario)


async def test_what_the_gate_did_not_bless_is_applied_only_by_force(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """A few tasks say too little to judge by."""
    worker = new_worker(scenario, apply_mode="auto")
    await worker.start()
    of = ("--scenario", scenario)
    async with node_at(amqp_url) as node:
        await play(node, worker, scenario, range(7), successes=3)
    trained = (await worker.tell("train-now", *of))["result"]
    assert (trained["gate"]["verdict"], trained["applied"]["applied"]) == ("not_evaluable", False)
    refused = await worker.tell("apply", *of, code=1)
    assert (refused["status"], "not_evaluable" in refused["error"]) == ("refused", True)
    assert (await worker.tell("apply", *of, "--force"))["result"]["model_id"] == trained["model_id"]
    (deployment,) = (await worker.cli("models", "history", *of, "--json")).json
    assert (deployment["forced"], deployment["state"]) == (True, "verified")


async def test_a_rebuild_gives_the_same_figures(new_worker: NewWorker, amqp_url: str, scenario: str) -> None:
    """Everything but the records is dropped and made again, under the same ids."""
    worker = new_worker(scenario)
    await worker.start()
    async with node_at(amqp_url) as node:
        await play(node, worker, scenario, range(30), successes=1)
    before = await figures(worker, scenario)
    assert before["episodes"].count(b"\n") == 60
    result = (await worker.tell("rebuild", "--scenario", scenario))["result"]
    # The projector of the service may have taken some of them first.
    assert 0 <= result["projected"] <= 60
    assert await figures(worker, scenario) == before


async def figures(worker: WorkerProcess, scenario: str) -> dict[str, Any]:
    """All that is derived from the log."""
    store = open_store(f"sqlite://{worker.data_dir / 'swarm.db'}", SystemClock(), read_only=True)
    await store.open()
    try:
        counts = {held: await store.counts(scenario, holdout=held) for held in (True, False)}
        facts = await store.facts(scenario)
    finally:
        await store.close()
    exported = await worker.cli("export", "episodes", "--scenario", scenario)
    episodes = b"".join(sorted(exported.out.splitlines(keepends=True)))
    return {"counts": counts, "facts": facts, "episodes": episodes}


async def test_replaying_the_quarantine_stores_what_is_good_today(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """What an older version could not take is taken; what is still bad stays with its reason."""
    worker = new_worker(scenario)
    good = body(episode(1, success=True), producer_id="n", batch_seq=1)
    store = open_store(f"sqlite://{worker.data_dir / 'swarm.db'}", SystemClock())
    await store.open()
    await store.ingest(
        [IncomingReject(scenario=scenario, reason="unknown_version", detail="", body=good, received_at_ms=1)]
    )
    await store.close()
    await worker.start()
    async with node_at(amqp_url) as node:
        await node.publish(scenario, b"{}")
        await until(worker.scenario_status, lambda s: s["quarantined"] == 2)
        result = (await worker.tell("quarantine", "replay", "--scenario", scenario))["result"]
        assert result == {
            "examined": 2, "stored": 1, "duplicates": 0, "truncated": 0, "still_refused": {"bad_schema": 1},
            "fresh_records": 5, "entries": {"1": "stored", "2": "bad_schema"}, "missing": [], "done_before": [],
        }  # fmt: skip
        words = ("quarantine", "replay", "--scenario", scenario, "--entry", "99", "--wait", "--json")
        nothing = await worker.cli(*words, code=1)
        assert nothing.json["result"]["missing"] == [99]
        assert "has no entry 99" in nothing.json["error"]
        await node.publish(scenario, good)
        await until(worker.scenario_status, lambda s: s["duplicate_batches"] == 1)
    assert len(await worker.exported()) == 5
    listed = (await worker.cli("quarantine", "list", "--scenario", scenario, "--pending", "--json")).json
    assert [entry["reason"] for entry in listed] == ["bad_schema"]
    shown = await worker.cli("quarantine", "show", str(listed[0]["entry_id"]), "--body")
    assert shown.out == b"{}"


async def test_a_command_sent_again_is_answered_again_and_done_once(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """Also by the next life of the worker."""
    worker = new_worker(scenario)
    await worker.start()
    async with node_at(amqp_url) as node, operator_at(amqp_url) as operator:
        await play(node, worker, scenario, range(10), successes=3)
        train, pause = str(uuid4()), str(uuid4())
        for _ in range(2):
            await operator.send(f"job.{scenario}", "train-now", command_id=train, scenario=scenario)
            await operator.send(f"scenario.{scenario}", "pause", command_id=pause, args={"what": "training"})
        paused = await operator.answers(pause, 2)
        await operator.answers(train, 2)
        await operator.send(f"job.{scenario}", "train-now", command_id=train, scenario=scenario)
        ends = await operator.answers(train, 3)
        assert (paused[0]["status"], paused) == ("done", [paused[0]] * 2)
        assert (ends[0]["status"], ends[0]["result"]["state"], ends) == ("done", "trained", [ends[0]] * 3)
        first = next(reply for reply in operator.replies if reply["command_id"] == train)
        assert first["status"] == "accepted"
        assert await worker.stop() == 0
        await worker.start()
        await operator.send(f"job.{scenario}", "train-now", command_id=train, scenario=scenario)
        assert (await operator.answers(train, 4))[-1] == ends[0]
    assert len((await worker.stored("runs"))["runs"]) == 1


async def test_what_is_no_command_is_refused_and_the_worker_lives(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """Each with its code; and nothing is ever sent to a queue that is not for answers."""
    worker = new_worker(scenario)
    await worker.start()
    job, mine = f"job.{scenario}", f"scenario.{scenario}"
    async with node_at(amqp_url) as node, operator_at(amqp_url) as operator:
        victim = await node.channel.declare_queue(exclusive=True)
        expected: dict[str, int] = {}
        for number, (key, data, reason) in enumerate(
            [
                (mine, b"", "empty_body"),
                (mine, b"\x80\x04\x95pickle", "not_utf8"),
                (mine, b"shutdown", "not_json"),
                (mine, b"[" * 5_000, "too_deep"),
                (mine, b'"' + b"x" * 70_000 + b'"', "too_large"),
                (mine, b"[]", "bad_schema"),
                (mine, command("shutdown", schema_version=2), "unknown_version"),
                (mine, command("halt"), "unknown_command"),
                (mine, command("pause", args={"what": "everything"}), "bad_schema"),
                (job, command("train-now", scenario=scenario, args={"forse": True}), "bad_schema"),
                (job, command("train-now"), "bad_schema"),
                (job, command("shutdown"), "wrong_route"),
                (mine, command("train-now", scenario=scenario), "wrong_route"),
                (job, command("train-now", scenario="other"), "wrong_route"),
                (mine, command("pause", expires_at_ms=1), "expired"),
            ]
        ):
            await operator.send_raw(key, data, message_id=f"m{number}", correlation_id=f"m{number}")
            (reply,) = await operator.answers(f"m{number}", 1)
            assert (reply["status"], reply["result"]) == ("refused", {"reason": reason}), data[:80]
            expected[reason] = expected.get(reason, 0) + 1

        # A confused deputy: it would write into anybody's queue.
        resume = str(uuid4())
        await operator.send(mine, "resume", command_id=resume, reply_to=victim.name)
        await operator.send(mine, "status", command_id="still there")
        (reply,) = await operator.answers("still there", 1)
        assert reply["result"]["commands"]["refused"] == expected
        assert (reply["result"]["ready"], reply["result"]["problems"]) == (True, [])
        await until(lambda: events_of(worker, resume), lambda events: "command_ended" in events)
        assert await depth(node, victim.name) == 0
        assert await worker.stop() == 0


def command(name: str, **fields: Any) -> bytes:
    """A command's body."""
    return json.dumps({"schema_version": 1, "command": name, "command_id": str(uuid4()), "args": {}, **fields}).encode()


async def events_of(worker: WorkerProcess, command_id: str) -> list[str]:
    """What the log says of a command."""
    return [line["event"] for line in worker.log() if line.get("command_id") == command_id]


async def test_with_a_control_key_only_signed_commands_count(
    new_worker: NewWorker, amqp_url: str, scenario: str, tmp_path: Path
) -> None:
    """Unsigned ones get not even an answer; of two keys in turn the old one still counts."""
    worker = new_worker(scenario, control_key="new:one,old:two")
    stranger = new_worker(scenario, directory=worker.directory, control_key="old:wrong")
    colleague = new_worker(scenario, directory=worker.directory, control_key="old:two")
    await worker.start()
    of = ("--scenario", scenario)
    async with operator_at(amqp_url) as operator:
        for issued_at_ms in (0, time.time_ns() // 1_000_000):
            await operator.send(
                f"scenario.{scenario}", "pause", command_id=str(uuid4()), issued_at_ms=issued_at_ms,
                expires_at_ms=issued_at_ms + 60_000,
            )  # fmt: skip
        silent = await stranger.cli("pause", *of, "--wait", "--timeout", "1", code=75)
        assert "no final answer" in silent.err
        assert (await worker.tell("pause", *of, "--what", "training"))["status"] == "done"
        assert (await colleague.tell("resume", *of))["status"] == "done"
        status = await worker.status()
        assert status["commands"]["refused"] == {"unsigned": 2, "bad_signature": 1}
        assert status["problems"] == []
        assert operator.replies == []


async def test_a_stolen_signature_opens_nothing_else(new_worker: NewWorker, amqp_url: str, scenario: str) -> None:
    """A signed command seen on the wire and sent again does nothing again; with another body it is refused."""
    worker = new_worker(scenario, control_key="ops:secret")
    await worker.start()
    async with node_at(amqp_url) as node:
        tap = await node.channel.declare_queue(exclusive=True)
        await tap.bind("swarm.control", f"scenario.{scenario}")
        assert (await worker.tell("resume", "--scenario", scenario))["status"] == "done"
        seen = await tap.get(no_ack=True, timeout=10)
        assert seen is not None
        exchange = await node.channel.get_exchange("swarm.control")
        for data in (seen.body, seen.body.replace(b"resume", b"pause")):
            copy = aio_pika.Message(data, headers=seen.headers, message_id=seen.message_id)
            await exchange.publish(copy, routing_key=f"scenario.{scenario}")
        status = await until(worker.status, lambda s: s["commands"]["refused"] == {"bad_signature": 1})
        assert (status["commands"]["accepted"], status["commands"]["repeated"], status["ready"]) == (1, 1, True)
