"""S5: records are taken of the broker's users for their own producers, commands of operators, where that is asked."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.unit.test_sink_run import FakeStore
from worker.broker.dead import SENT_BY, SENT_WITH
from worker.broker.memory import Held, MemoryConsumer, MemoryDelivery, MemoryQueue
from worker.broker.port import Delivery, OutgoingMessage
from worker.clock import ManualClock
from worker.control.admission import Admission
from worker.episodes.rules import Rules
from worker.errors import ConfigurationError
from worker.settings import load_settings
from worker.sink.judge import Judge
from worker.sink.producers import Producers
from worker.sink.sink import Sink
from worker.store.port import Incoming, IncomingBatch, IncomingReject, QuarantineEntry
from worker.wire.commands import Command, Status
from worker.wire.reasons import Reason

PRODUCERS = Producers({"ada": ["node-7", "checkout-*"], "grace": ["*"]}, own_user="worker")
JUDGE = Judge(lambda _: Rules(), ManualClock(), PRODUCERS)
ACTION = {"type": "action", "task_id": "t", "tick": 0, "worker_id": 0, "action": "look"}


def _delivery(
    user_id: str | None, envelope: dict[str, Any], *, key: str = "S", headers: dict[str, str] | None = None
) -> MemoryDelivery:
    body = json.dumps({"schema_version": 1, **envelope, "records": [ACTION]}).encode()
    message = OutgoingMessage(
        exchange="swarm.records", routing_key=key, body=body, message_id="m", user_id=user_id, headers=headers or {},
    )  # fmt: skip
    return MemoryDelivery(MemoryConsumer(MemoryQueue(), 1), 1, Held(message), "S")


def _of(producer: str) -> dict[str, Any]:
    return {"producer_id": producer, "batch_seq": 0}


def _refusal(incoming: Incoming) -> str | None:
    if isinstance(incoming, IncomingBatch):
        return None
    assert incoming.reason == Reason.UNAUTHENTICATED_PRODUCER
    return incoming.detail


@pytest.mark.parametrize("key", ["S", "S.topic", "S.a.b", "swarm.records.S"])
@pytest.mark.parametrize(("user", "producer"), [("ada", "node-7"), ("ada", "checkout-9"), ("grace", "x")])
def test_a_user_publishes_for_its_own_producers(user: str, producer: str, key: str) -> None:
    assert _refusal(JUDGE.delivery(_delivery(user, _of(producer), key=key))) is None


@pytest.mark.parametrize(
    ("user", "envelope", "key", "words"),
    [
        (None, _of("node-7"), "S", "carries no user_id"),
        ("eve", _of("node-7"), "S", "does not name the user 'eve'"),
        ("", _of("node-7"), "S", "does not name the user ''"),
        ("worker", _of("node-7"), "S", "does not name the user 'worker'"),
        ("ada", _of("node-70"), "S", "'node-70' is not one of the user 'ada'"),
        ("ada", _of("my-checkout-9"), "S", "is not one of the user"),
        ("ada", {"batch_id": "b"}, "S", "$.producer_id: it and batch_seq must be there"),
        ("ada", {}, "S", "$.producer_id: it and batch_seq must be there"),
        ("ada", {"producer_id": "node-7"}, "S", "$.producer_id: it and batch_seq must be there"),
        # A copy by CC or BCC: topic permissions of RabbitMQ 3.10 do not look at it.
        ("ada", _of("node-7"), "T", "another scenario's routing key, 'T'"),
        ("ada", _of("node-7"), "SS", "another scenario's routing key"),
        ("ada", _of("node-7"), "swarm.records.T", "another scenario's routing key"),
        ("ada", _of("node-7"), "", "another scenario's routing key"),
    ],
)
def test_everything_else_is_quarantined_as_unauthenticated(
    user: str | None, envelope: dict[str, Any], key: str, words: str
) -> None:
    refusal = _refusal(JUDGE.delivery(_delivery(user, envelope, key=key)))
    assert refusal is not None
    assert words in refusal


def test_without_the_setting_anybody_publishes() -> None:
    """A foreign client by the schema works on a development machine as it is."""
    judge = Judge(lambda _: Rules(), ManualClock())
    assert _refusal(judge.delivery(_delivery(None, {}, key="elsewhere"))) is None


def test_what_the_worker_sends_back_from_the_dead_letters_is_judged_by_its_first_sender() -> None:
    """Its copy is of the worker's own user, which alone may say who had sent it."""
    said = {SENT_BY: "ada", SENT_WITH: "S"}
    assert _refusal(JUDGE.delivery(_delivery("worker", _of("node-7"), headers=said))) is None
    assert _refusal(JUDGE.delivery(_delivery("worker", _of("other"), headers=said))) is not None
    assert _refusal(JUDGE.delivery(_delivery("worker", _of("node-7"), headers=said | {SENT_WITH: "T"}))) is not None
    assert _refusal(JUDGE.delivery(_delivery("worker", _of("node-7"), headers={SENT_WITH: "S"}))) is not None
    for forger in ("eve", None):
        assert _refusal(JUDGE.delivery(_delivery(forger, _of("node-7"), headers=said))) is not None


def test_a_replay_checks_the_sender_again_and_a_header_is_no_user() -> None:
    """What the quarantine keeps as user is what the broker vouched for, not a header of that name."""
    forged = JUDGE.delivery(_delivery(None, _of("node-7"), headers={"user_id": "ada", "routing_key": "S"}))
    assert isinstance(forged, IncomingReject)
    assert "user_id" not in forged.headers
    assert _refusal(_again(forged)) is not None
    early = Judge(lambda _: Rules(), ManualClock(), Producers({"ada": ["none-yet"]}, own_user="worker"))
    refused = early.delivery(_delivery("ada", _of("node-7")))
    assert isinstance(refused, IncomingReject)
    assert _refusal(_again(refused)) is None  # the setting names it now
    conflict = IncomingReject(
        scenario="S", reason=Reason.KEY_CONFLICT, detail="", body=refused.body, received_at_ms=0, headers={}
    )
    assert _refusal(_again(conflict)) is None  # it had passed when it came, and was kept without headers


def _again(reject: IncomingReject) -> Incoming:
    entry = QuarantineEntry(
        entry_id=1, scenario="S", reason=str(reject.reason), detail="", received_at_ms=0, sha256="",
        body=reject.body, size=len(reject.body), truncated=False, headers=reject.headers, seen=1,
    )  # fmt: skip
    return JUDGE.message(
        "S", entry.body, content_type=None, content_encoding=None, sender=JUDGE.sender_of(entry)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"ada": ["a b"]}', "SWARM_PRODUCERS, ada: 'a b' is no producer id"),
        ('{"ada": [""]}', "SWARM_PRODUCERS, ada: '' is no producer id"),
        ('{"ada": []}', "SWARM_PRODUCERS, ada: '' is no producer id"),
        ("{}", "it names nobody; leave it unset"),
        ("ada", "no JSON object"),
        ('{"ada": "node-7"}', "SWARM_PRODUCERS"),
    ],
)
def test_a_setting_that_could_mean_another_thing_is_refused(value: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_settings(producers=value)
    assert words in str(refused.value)


def test_a_scenario_whose_routing_keys_are_another_ones_is_refused() -> None:
    """`swarm.records.checkout` as a topic of scenario `swarm` would land in the queue of checkout."""
    with pytest.raises(ConfigurationError, match="SWARM_SCENARIOS: 'swarm' is reserved"):
        load_settings(scenarios="checkout,swarm")


@pytest.mark.parametrize(
    ("user", "reason"), [("ops", None), ("ada", "unauthenticated_operator"), (None, "unauthenticated_operator")]
)
def test_commands_are_taken_of_operators_only_where_they_are_named(user: str | None, reason: str | None) -> None:
    command = Command(command="status", command_id="c", args=Status())
    message = OutgoingMessage(exchange="swarm.control", routing_key="all", body=b"{}", message_id="c", user_id=user)
    inbound = MemoryDelivery(MemoryConsumer(MemoryQueue(), 1), 1, Held(message))
    strict, open_ = (
        Admission(ManualClock(), worker_id="w", scenarios=frozenset("S"), keys={}, operators=operators)
        for operators in (frozenset({"ops"}), frozenset[str]())
    )
    refused = strict.check(command, inbound)
    assert (None if refused is None else str(refused.reason)) == reason
    assert strict.for_known_only
    assert open_.check(command, inbound) is None
    assert not open_.for_known_only


async def test_what_was_quarantined_by_a_fault_at_the_store_can_be_replayed() -> None:
    """It was kept without its sender, and refused as nobody's at each replay for ever."""
    store = FakeStore()
    delivery = _delivery("ada", _of("node-7"), headers={"content_encoding": "gzip"})
    store.poison = {delivery.body: RuntimeError("bug")}
    sink = Sink(store, ManualClock(), lambda _: Rules(), producers=PRODUCERS)
    inbox: asyncio.Queue[Delivery] = asyncio.Queue()
    inbox.put_nowait(delivery)
    stopping = asyncio.Event()
    stopping.set()
    await sink.run(inbox, stopping)
    (kept,) = store.kept
    assert isinstance(kept, IncomingReject)
    assert kept.reason == Reason.UNEXPECTED
    assert "content_encoding" not in kept.headers, "a header is no property"
    assert isinstance(_again(kept), IncomingBatch)
