"""Security checklist S6 and S7: who may command, when, how often; and that the others get neither effect nor answer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from worker.broker.memory import MemoryBroker, MemoryControl
from worker.broker.topology import temporary_queue
from worker.clock import ManualClock
from worker.control.admission import Admission
from worker.control.control import Control
from worker.store.memory import MemoryStore
from worker.store.port import StoredCommand
from worker.wire.commands import COMMANDS, Command, encode_command, routing_key_for
from worker.wire.signing import KEY_HEADER, SIGNATURE_HEADER, parse_keys, sign

REPLIES = "swarm.reply.test"
OLD, NEW = "old:0ther", "new:s3cret"
SCENARIOS = frozenset({"S", "T"})


@dataclasses.dataclass
class Arrived:
    """A command as it reaches a worker, whatever road it took."""

    body: bytes
    routing_key: str
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exchange: str = "swarm.control"
    message_id: str | None = "c"
    reply_to: str | None = REPLIES
    correlation_id: str | None = "c"
    user_id: str | None = None
    acked: bool = False

    async def ack(self) -> None:
        self.acked = True


class Worker:
    """A worker's control over a store that outlives it, as a restart does."""

    def __init__(self, keys: str = "", *, worker_id: str = "w1", disabled: str = "") -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.broker = MemoryBroker()
        self.replies = self.broker.declare(temporary_queue(REPLIES))
        self.done: list[Command] = []
        self.worker_id = worker_id
        self.disabled = frozenset(filter(None, [disabled]))
        self.begin(keys)

    def begin(self, keys: str) -> None:
        """A life with these keys."""
        self.source = MemoryControl(
            self.broker, worker_id=self.worker_id, boot_id=str(len(self.done)), scenarios=sorted(SCENARIOS)
        )
        self.control = Control(
            self.source, self.store, self.clock, self._carry_out, worker_id=self.worker_id, scenarios=SCENARIOS,
            admission=Admission(
                self.clock, worker_id=self.worker_id, scenarios=SCENARIOS, disabled=self.disabled,
                keys=parse_keys(keys) if keys else {},
            ),
        )  # fmt: skip

    async def _carry_out(self, command: Command, received_at_ms: int) -> dict[str, Any]:
        self.done.append(command)
        return {"times": len(self.done)}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.store.open()
        task = asyncio.create_task(self.control.run())
        try:
            yield
        finally:
            await self.control.settle(5)
            task.cancel()
            await asyncio.wait([task])

    async def take(self, *messages: Arrived) -> None:
        """Hand these over and wait until all that comes of them is done."""
        for message in messages:
            self.source.inbox.put_nowait(message)
        async with asyncio.timeout(10):
            while self.control._busy() or not all(message.acked for message in messages):  # noqa: ASYNC110
                await asyncio.sleep(0)

    def told(self) -> list[dict[str, Any]]:
        """All replies so far."""
        return [json.loads(held.message.body) for held in self.replies.ready]

    @property
    def refused(self) -> dict[str, int]:
        return self.control.stats.refused

    def signed(
        self, name: str = "train-now", *, keys: str = NEW, key: str | None = None, command_id: str = "c",
        issued: float = 0, expires: float = 60, scenario: str | None = "S", worker_id: str | None = None,
    ) -> Arrived:  # fmt: skip
        """A good command, times in seconds from now."""
        now = self.clock.now_ms()
        command = Command(
            command=name, command_id=command_id, args=COMMANDS[name].args(), scenario=scenario,
            issued_at_ms=now + round(issued * 1000), expires_at_ms=now + round(expires * 1000),
        )  # fmt: skip
        body, road = encode_command(command), key or routing_key_for(name, scenario=scenario, worker_id=worker_id)
        headers = sign(
            command, body, exchange="swarm.control", routing_key=road, message_id=command_id, keys=parse_keys(keys)
        )
        return Arrived(body, road, headers, message_id=command_id, correlation_id=command_id)


def change(message: Arrived, **fields: Any) -> Arrived:
    """The same message with something in it exchanged on its way."""
    return dataclasses.replace(message, **fields)


def with_header(message: Arrived, name: str, value: str | None) -> Arrived:
    headers = {**message.headers, name: value or ""}
    if value is None:
        del headers[name]
    return change(message, headers=headers)


FORGERIES: dict[str, tuple[Callable[[Worker], Arrived], str]] = {
    "unsigned": (lambda w: change(w.signed(), headers={}), "unsigned"),
    "no-signature": (lambda w: with_header(w.signed(), SIGNATURE_HEADER, None), "unsigned"),
    "no-key-id": (lambda w: with_header(w.signed(), KEY_HEADER, None), "bad_signature"),
    "wrong-key": (lambda w: w.signed(keys="new:guessed"), "bad_signature"),
    "unknown-key": (lambda w: w.signed(keys="other:s3cret"), "bad_signature"),
    "key-of-another-id": (lambda w: with_header(w.signed(keys=OLD), KEY_HEADER, "new"), "bad_signature"),
    "truncated": (
        lambda w: with_header(w.signed(), SIGNATURE_HEADER, w.signed().headers[SIGNATURE_HEADER][:-1]),
        "bad_signature",
    ),
    "lengthened": (
        lambda w: with_header(w.signed(), SIGNATURE_HEADER, w.signed().headers[SIGNATURE_HEADER] + "0"),
        "bad_signature",
    ),
    "upper-case": (
        lambda w: with_header(w.signed(), SIGNATURE_HEADER, w.signed().headers[SIGNATURE_HEADER].upper()),
        "bad_signature",
    ),
    "one-byte": (lambda w: change(w.signed(), body=w.signed().body.replace(b'"S"', b'"T"')), "bad_signature"),
    "one-space": (lambda w: change(w.signed(), body=w.signed().body + b" "), "bad_signature"),
    "another-road": (lambda w: change(w.signed("pause"), routing_key="scenario.T"), "bad_signature"),
    "to-another-worker": (
        lambda w: change(w.signed("pause", worker_id="w2", scenario=None), routing_key="worker.w1"), "bad_signature",
    ),
    "by-the-queues-name": (
        lambda w: change(w.signed("pause"), exchange="", routing_key="swarm.control.w.w1.b1"), "bad_signature",
    ),
    "another-exchange": (lambda w: change(w.signed(), exchange="swarm.records"), "bad_signature"),
    "another-message-id": (lambda w: change(w.signed(), message_id="d"), "bad_signature"),
    "no-message-id": (lambda w: change(w.signed(), message_id=None), "bad_signature"),
    "meant-for-another-worker": (lambda w: w.signed("pause", scenario=None, worker_id="w2"), "wrong_route"),
    "meant-for-a-scenario-not-served": (lambda w: w.signed("pause", scenario="U"), "wrong_route"),
    "wrong-scenario": (lambda w: w.signed(scenario="U"), "wrong_route"),
    "scenario-and-road-differ": (lambda w: w.signed(scenario="T", key="job.S"), "wrong_route"),
    "a-broadcast-as-a-job": (lambda w: w.signed("shutdown", key="job.S"), "wrong_route"),
    "expired": (lambda w: w.signed(issued=-61, expires=-1), "expired"),
    "expires-now": (lambda w: w.signed(issued=-60, expires=0), "expired"),
    "lives-too-long": (lambda w: w.signed(expires=300.001), "bad_times"),
    "never-expires": (lambda w: w.signed(expires=-w.clock.now_ms() / 1000), "bad_times"),
    "of-the-future": (lambda w: w.signed(issued=60.001, expires=120), "bad_times"),
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_s6_what_is_not_signed_for_here_and_now_has_no_effect_and_no_answer(forgery: str) -> None:
    """It is counted under its reason, taken off the queue, and not in the ledger."""
    worker = Worker(f"{NEW},{OLD}")
    make, reason = FORGERIES[forgery]
    message = make(worker)
    async with worker.running():
        await worker.take(message)
        assert worker.refused == {reason: 1}
        assert (worker.done, worker.told(), message.acked) == ([], [], True)
        assert await worker.store.unfinished_commands() == []
        # Nor is the road closed by it for the good one, which says the same under the same id.
        await worker.take(worker.signed())
        assert [command.command for command in worker.done] == ["train-now"]


@pytest.mark.parametrize("name", COMMANDS)
async def test_s6_a_good_command_is_obeyed_on_each_of_its_roads(name: str) -> None:
    worker = Worker(NEW)
    roads: list[dict[str, Any]] = [{"scenario": "S"}]
    if COMMANDS[name].road == "broadcast":
        roads += [{"scenario": None}, {"scenario": None, "worker_id": "w1"}]
    async with worker.running():
        for number, road in enumerate(roads):
            message = worker.signed(name, command_id=f"c{number}", **road)
            await worker.take(message)
            assert worker.told()[-1]["status"] == "done", (road, worker.refused)
    assert (len(worker.done), worker.refused) == (len(roads), {})


async def test_s6_a_signed_command_that_comes_again_is_answered_again_and_not_done_again() -> None:
    """At once, after a restart, and from whoever caught it: to its own road, and to another worker's."""
    worker = Worker(NEW)
    caught = {name: worker.signed(name, command_id=name) for name in ("train-now", "pause", "shutdown")}
    async with worker.running():
        for message in caught.values():
            await worker.take(change(message), change(message))
        first = worker.told()
    assert [command.command for command in worker.done] == list(caught)
    assert {reply["status"] for reply in first} == {"accepted", "done"}

    worker.begin(NEW)
    async with worker.running():
        await worker.take(*map(change, caught.values()))
        again = worker.told()[len(first) :]
        assert len(worker.done) == 3
        assert worker.control.stats.repeated == 3
    ends = {reply["command_id"]: reply for reply in first if reply["status"] == "done"}
    assert {reply["command_id"]: reply for reply in again} == ends

    another = Worker(NEW, worker_id="w2")
    addressed = worker.signed("pause", scenario=None, worker_id="w1")
    async with another.running():
        await another.take(addressed, change(addressed, routing_key="worker.w2"))
    assert (another.done, another.refused) == ([], {"wrong_route": 1, "bad_signature": 1})


async def test_s6_keys_are_changed_without_a_command_refused() -> None:
    """The drill: workers take both, then operators sign with the new one, then workers forget the old one."""
    worker, sent = Worker(OLD), 0

    async def obeyed(by: str) -> None:
        nonlocal sent
        sent += 1
        await worker.take(worker.signed(keys=by, command_id=f"c{sent}"))
        assert (len(worker.done), worker.refused) == (sent, {})

    for step, signed_by in (
        (OLD, [OLD]),
        (f"{OLD},{NEW}", [OLD, NEW]),
        (f"{NEW},{OLD}", [OLD, NEW, f"{NEW},{OLD}"]),
        (NEW, [f"{NEW},{OLD}", NEW]),
    ):
        worker.begin(step)
        async with worker.running():
            for by in signed_by:
                await obeyed(by)
    async with worker.running():
        await worker.take(worker.signed(keys=OLD, command_id="late"))
    assert worker.refused == {"bad_signature": 1}


async def test_s6_refusals_are_logged_once_a_minute_and_counted_each_time() -> None:
    """Else whoever may publish could fill the disk with what the worker says of it."""
    structlog.reset_defaults()
    worker = Worker(NEW)
    with capture_logs() as logs:
        async with worker.running():
            for number in range(300):
                await worker.take(change(worker.signed(keys="new:guess", command_id=f"c{number}")))
                await worker.take(Arrived(b"[1", "all"))
            worker.clock.advance(61)
            await worker.take(worker.signed(keys="new:guess"))
    lines = [(line["reason"], line["times"]) for line in logs if line["event"] == "command_refused"]
    assert lines == [("bad_signature", 1), ("not_json", 1), ("bad_signature", 300)]
    assert worker.refused == {"bad_signature": 301, "not_json": 300}
    assert worker.told() == []


@pytest.mark.parametrize("keys", ["", NEW])
@pytest.mark.parametrize("name", ["shutdown", "rebuild", "replay-quarantine", "status"])
async def test_s7_a_command_can_be_turned_off(name: str, keys: str) -> None:
    """Its sender is told; the others are obeyed."""
    worker = Worker(keys, disabled=name)
    async with worker.running():
        await worker.take(worker.signed(name))
        (reply,) = worker.told()
        assert (reply["status"], reply["result"]) == ("refused", {"reason": "disabled"})
        assert "SWARM_DISABLED_COMMANDS" in reply["error"]
        await worker.take(worker.signed("pause", command_id="d"))
    assert [command.command for command in worker.done] == ["pause"]


async def test_s7_a_command_that_was_turned_off_while_it_was_carried_out_is_not_carried_on() -> None:
    """An earlier life had accepted it; the setting counts from the start on."""
    worker = Worker(disabled="rebuild")
    await worker.store.open()
    body = worker.signed("rebuild").body
    row = StoredCommand(
        command_id="c", command="rebuild", scenario="S", body=body, received_at_ms=0, reply_to=REPLIES,
        correlation_id="c",
    )  # fmt: skip
    await worker.store.accept_command(row)
    async with worker.running():
        await worker.take(worker.signed("pause", command_id="d"))
        assert [command.command for command in worker.done] == ["pause"]
    assert worker.told()[0]["result"] == {"reason": "disabled"}
    assert await worker.store.unfinished_commands() == []


@pytest.mark.parametrize("keys", ["", NEW])
async def test_s7_a_flood_of_commands_is_cut_off_and_leaves_little(keys: str) -> None:
    """Of ten thousand of a kind twenty are carried out and stored, and few of the others answered; the rest of the
    commands are not in its way, and it is let in again when it has become less."""
    worker = Worker(keys)
    async with worker.running():
        await worker.take(*(worker.signed("pause", command_id=f"c{number}") for number in range(10_000)))
        assert (len(worker.done), worker.refused) == (20, {"rate_limited": 9_980})
        assert len(worker.store._commands) == 20
        assert len(worker.told()) <= 2 * 20 + 50
        await worker.take(worker.signed("shutdown", command_id="stop"))
        assert worker.done[-1].command == "shutdown"
        worker.clock.advance(1)
        for number in range(3):
            await worker.take(worker.signed("pause", command_id=f"d{number}"))
        assert len(worker.done) == 20 + 1 + 2


async def test_s7_a_signed_command_sent_again_and_again_takes_nothing_from_others() -> None:
    """Repetitions have a measure of their own: one caught signature must not lock the operator out."""
    worker = Worker(NEW)
    async with worker.running():
        await worker.take(*(worker.signed("pause") for _ in range(1_000)))
        assert (len(worker.done), worker.control.stats.repeated) == (1, 20)
        for number in range(10):
            await worker.take(worker.signed("pause", command_id=f"mine{number}"))
    assert len(worker.done) == 11


@pytest.mark.parametrize("keys", ["", NEW])
async def test_s7_a_flood_of_status_starts_no_flood_of_work(keys: str) -> None:
    """It is not stored, but each answer reads the whole store's figures."""
    worker = Worker(keys)
    async with worker.running():
        await worker.take(*(worker.signed("status", command_id=f"c{number}") for number in range(500)))
    assert (len(worker.done), worker.refused) == (20, {"rate_limited": 480})
