"""The main job through the real process: records in, episodes, a trigger, a model gated and applied, events out."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.integration.foreign_node import body, depth, ears_at, episode, line, node_at
from tests.integration.worker_process import NewWorker, until

pytestmark = pytest.mark.rabbitmq

_DEPENDENCY_GRAPH: dict[str, Any] = {
    "type": "dependency_graph",
    "prompt": "Order these",
    "response": "look, then move",
    "available_actions": ["look", "move", "done"],
    "discover_order": ["look"],
    "not_discover_order": ["move", "done"],
    "model": "m",
    "endpoint": "http://localhost:8080",
    "latency_ms": 980,
}
_LLM: dict[str, Any] = {
    "type": "llm",
    "call_type": "decide",
    "prompt": "Which way? → östlich \u2028 \U0001f600",
    "response": 'a\\b "east"\n\t\x7f',
    "model": "m",
    "endpoint": "http://localhost:8080",
    "latency_ms": 412,
    "lora": None,
    "error": None,
    "session_id": "s-odd",
}
_ADVICE: dict[str, Any] = {
    "type": "strategy_advice",
    "timestamp_ms": 1769900000009,
    "tick": 40,
    "advisor": "llm",
    "current_strategy": "ucb1",
    "recommended": "greedy",
    "should_change": True,
    "confidence": 1,
    "reason": "",
    "frontier_count": 4,
    "total_visits": 40,
    "failure_rate": 0.0,
    "latency_ms": 350,
    "success": True,
}
_ODD_ACTION: dict[str, Any] = {
    "type": "action",
    "task_id": "odd",
    "tick": 9223372036854775807,
    "worker_id": 0,
    "action": "move",
    "group_id": None,
    "target": None,
    "success": None,
    "timestamp_ms": 0,
    "kpi": 1.0,
    "output": "",
    "cost": -5,
    "from_guidance": False,
    "propensity": 0.0625,
    "candidates": [],
    "policy_version": None,
    "record_id": "r-1",
}
_PLAIN_ACTION: dict[str, Any] = {
    "type": "action",
    "task_id": "odd",
    "tick": 0,
    "worker_id": 0,
    "action": "move",
    "kpi": 1,
}


def _stats(session: str, outcome: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "type": "learn_stats",
        "session_id": session,
        "stats_json": fields.pop("stats_json", {}),
        "outcome": outcome,
        "total_ticks": 1,
        "total_actions": 0,
        **fields,
    }


#: One of each kind, with what an export is most likely to lose: nulls, empty values, 1 beside 1.0, text as it is.
_ODD_RECORDS = [
    _ODD_ACTION,
    _PLAIN_ACTION,
    _LLM,
    _DEPENDENCY_GRAPH,
    _ADVICE,
    _stats("o-1", {"kind": "timeout", "partial_score": None}, stats_json='{"a" : 1.50}', phase=None, task_ids=[]),
    _stats("o-2", {"kind": "timeout"}, timestamp_ms=None),
    _stats("o-3", {"kind": "timeout", "partial_score": 0}),
    _stats("o-4", {"kind": "unknown"}, stats_json={"made_up": [1, 1.0, None]}, group_id="g"),
    _stats("o-5", {"kind": "success", "score": 1}),
    _stats("o-6", {"kind": "failure", "reason": ""}),
]
_SERDE_NAMES = {
    "action": "Action",
    "llm": "Llm",
    "dependency_graph": "DependencyGraph",
    "strategy_advice": "StrategyAdvice",
    "learn_stats": "LearnStats",
}


def _as_serde(record: dict[str, Any]) -> dict[str, Any]:
    """The same record as a Rust swarm's serde writes it."""
    fields = {name: value for name, value in record.items() if name != "type"}
    if "outcome" in fields:
        outcome = dict(fields["outcome"])
        kind = outcome.pop("kind").capitalize()
        fields["outcome"] = {kind: outcome} if outcome or kind == "Timeout" else kind
    return {_SERDE_NAMES[record["type"]]: fields}


async def test_records_become_a_model_that_is_applied_and_announced(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """60 tasks are 60 episodes of the first learn model: the last one fires the trigger, the rest goes by itself."""
    worker = new_worker(scenario, trigger="count(60)", apply_mode="auto", holdout=0.5)
    await worker.start()
    sent: list[bytes] = []
    async with (
        node_at(amqp_url) as node,
        ears_at(amqp_url, "learning.trained", "learning.applied") as by_event,
        ears_at(amqp_url, f"learning.*.{scenario}") as by_scenario,
    ):
        for task in range(59):
            records = episode(task, success=task % 3 != 0)
            sent += map(line, records)
            # One batch in ten comes twice, one in five is compressed.
            await node.publish(
                scenario,
                body(records, producer_id="node-1", batch_seq=task),
                times=1 + (task % 10 == 0),
                packed=task % 5 == 0,
            )
        seen = await until(worker.scenario_status, lambda s: s["episodes_created"] == 118)
        assert (seen["records_received"], seen["batches"], seen["duplicate_batches"]) == (59 * 5, 59, 6)
        assert (seen["sessions"], seen["quarantined"], seen["trainings_completed"]) == (59, 0, 0)
        assert "59 of 60 new episodes" in seen["waiting_for"]

        records = episode(59, success=True)
        sent += map(line, records)
        await node.publish(scenario, body(records, producer_id="node-1", batch_seq=59))
        seen = await until(worker.scenario_status, lambda s: s["models_applied"] == 1)
        assert (seen["trainings_completed"], list(seen["aliases"])) == (1, ["champion"])
        (trained,) = await by_event.wait_for("learning.trained", scenario)
        (applied,) = await by_event.wait_for("learning.applied", scenario)
        await by_scenario.wait_for("learning.applied", scenario)
        assert [event for _, event in by_scenario.deliveries] == [trained, applied]
        assert await depth(node, f"swarm.records.{scenario}") == 0

    data = trained["data"]
    assert (data["trigger"]["kind"], data["gate"]["verdict"], data["model_version"]) == ("count", "blessed", 1)
    assert data["counts"] == {"records": 300, "episodes": 120, "sessions": 60, "producers": {"node-1": 60}}
    assert applied["data"]["model_id"] == data["model_id"]
    assert (applied["data"]["verified"], applied["data"]["previous_model_id"]) == (True, None)

    served = json.loads((worker.data_dir / "current" / f"{scenario}.json").read_bytes())
    assert (served["model_id"], served["sha256"]) == (data["model_id"], data["sha256"])
    assert served["model"] == data["model"]
    held = (worker.data_dir / "current" / f"{scenario}.json").read_bytes().partition(b'"model":')[2][:-1]
    assert hashlib.sha256(held).hexdigest() == data["sha256"]
    advice = {(row["previous"], row["action"]): row["success_rate"] for row in served["model"]["transitions"]}
    assert (advice[None, "look"], advice[None, "guess"]) == (1.0, 0.0)

    assert sorted(await worker.exported()) == sorted(sent)
    (model,) = (await worker.cli("models", "--json")).json
    assert (model["model_id"], model["gate_verdict"], model["aliases"]) == (data["model_id"], "blessed", ["champion"])


async def test_every_record_comes_back_byte_for_byte_in_either_spelling(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """Whatever of the three ways there is to name a batch, and however often it is sent."""
    worker = new_worker(scenario)
    await worker.start()
    ours = _ODD_RECORDS
    theirs = [_renamed(record, "-serde") for record in ours]
    assert {record["type"] for record in ours} == set(_SERDE_NAMES)
    expected = [line(record) for record in (*ours, *theirs)]
    async with node_at(amqp_url) as node:
        await node.publish(scenario, body(ours, batch_id="by-name"), times=3, packed=True)
        await node.publish(
            f"{scenario}.topic", body([_as_serde(record) for record in theirs]), times=2
        )  # no identity but its content
        await node.publish(scenario, body(ours[:3], producer_id="n", producer_epoch=1, batch_seq=0))
        seen = await until(worker.scenario_status, lambda s: s["batches"] == 3 and s["duplicate_batches"] == 3)
        # Of the third batch, one record carries its own identity and is known; two are new by their place.
        expected += [line(record) for record in ours[1:3]]
        assert (seen["records_received"], seen["duplicate_records"]) == (len(expected), 1)
        assert seen["quarantined"] == 0
    assert sorted(await worker.exported()) == sorted(expected)


def _renamed(record: dict[str, Any], suffix: str) -> dict[str, Any]:
    """The same record under another identity."""
    return {name: value + suffix if name in ("session_id", "record_id") else value for name, value in record.items()}


async def test_scenarios_of_one_worker_know_nothing_of_each_other(
    new_worker: NewWorker, amqp_url: str, scenario: str
) -> None:
    """The same producer, batch, task and session in both is two batches, tasks and sessions; each has its trigger."""
    one, two = f"{scenario}-1", f"{scenario}-2"
    options = json.dumps({one: {"trigger": "count(10)", "apply_mode": "manual"}, two: {"terminal_actions": ["move"]}})
    worker = new_worker(one, two, trigger="count(1000)", apply_mode="auto", scenario_options=options)
    await worker.start()
    sent: dict[str, list[bytes]] = {one: [], two: []}
    async with node_at(amqp_url) as node, ears_at(amqp_url, "learning.#") as ears:
        for name in (one, two):
            for task in range(10):
                records = episode(task, success=(task % 2 == 0) == (name == one))
                sent[name] += map(line, records)
                await node.publish(name, body(records, producer_id="same", batch_seq=task))
        seen = await until(
            worker.status,
            lambda s: s["scenarios"][one]["trainings_completed"] == 1 and s["scenarios"][two]["episodes_created"] >= 10,
        )
        await ears.wait_for("learning.trained", one)
    first, second = (seen["scenarios"][name] for name in (one, two))
    assert (first["records_received"], second["records_received"]) == (50, 50)
    assert (first["sessions"], second["sessions"]) == (10, 10)
    assert (first["duplicate_batches"], second["duplicate_batches"]) == (0, 0)
    # `move` ends a sequence there, so every task is two of two actions: too short for an episode of a worker's own.
    assert (first["episodes_created"], second["episodes_created"]) == (20, 10)
    assert (second["trainings_completed"], second["aliases"], first["aliases"].keys()) == (0, {}, {"candidate"})
    assert not [event for _, event in ears.deliveries if event["subject"] == two]
    assert sorted(await worker.exported(one)) == sorted(sent[one])
    assert sorted(await worker.exported(two)) == sorted(sent[two])
