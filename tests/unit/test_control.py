"""Commands while the store is away, and commands to one scenario's workers; the broker and the store are in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from worker.broker.control import MAX_REPLY
from worker.broker.memory import MemoryBroker, MemoryControl
from worker.broker.port import OutgoingMessage
from worker.broker.topology import temporary_queue
from worker.clock import ManualClock
from worker.control.admission import Admission
from worker.control.control import Control
from worker.errors import DataRefused, StoreError, StoreUnavailable
from worker.models.deployer import EndNotStored
from worker.store.memory import MemoryStore
from worker.store.port import StoredCommand
from worker.wire.commands import Command
from worker.wire.names import CONTROL_EXCHANGE

REPLIES = "swarm.reply.test"


class UnsteadyStore(MemoryStore):
    """Takes no commands, and no ends of commands, while `away` is set."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.away: StoreError | None = None
        self.asked = asyncio.Event()

    async def accept_command(self, command: StoredCommand) -> StoredCommand | None:
        self.asked.set()
        if self.away is not None:
            raise self.away
        return await super().accept_command(command)

    async def finish_command(self, *args: Any, **kwargs: Any) -> StoredCommand:
        self.asked.set()
        if self.away is not None:
            raise self.away
        return await super().finish_command(*args, **kwargs)


class World:
    """A worker's control for the scenarios S and T, and somebody who sends it commands."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = MemoryBroker()
        self.store = UnsteadyStore(self.clock)
        self.done: list[Command] = []
        self.received_at_ms: list[int] = []
        #: Whether the store goes away with each command that is carried out.
        self.leave_when_done = False
        self.source = MemoryControl(self.broker, worker_id="w1", boot_id="b1", scenarios=["S", "T"])
        self.replies = self.broker.declare(temporary_queue(REPLIES))
        self.control = Control(
            self.source, self.store, self.clock, self._carry_out,
            worker_id="w1", scenarios=frozenset({"S", "T"}),
            admission=Admission(self.clock, worker_id="w1", scenarios=frozenset({"S", "T"}), keys={}),
        )  # fmt: skip

    async def _carry_out(self, command: Command, received_at_ms: int) -> dict[str, Any]:
        self.done.append(command)
        self.received_at_ms.append(received_at_ms)
        if self.leave_when_done:
            self.store.away = StoreUnavailable("locked")
        return {}

    def send(self, command: str, key: str, command_id: str, **fields: Any) -> None:
        body = {"schema_version": 1, "command": command, "command_id": command_id, **fields}
        self.broker.send(
            OutgoingMessage(
                exchange=CONTROL_EXCHANGE, routing_key=key, body=json.dumps(body).encode(), message_id=command_id,
                reply_to=REPLIES,
            )
        )  # fmt: skip

    async def answers(self, command_id: str, status: str) -> dict[str, Any]:
        """The reply of this status, as soon as it is there."""
        async with asyncio.timeout(10):
            while True:
                for held in self.replies.ready:
                    reply: dict[str, Any] = json.loads(held.message.body)
                    if (reply["command_id"], reply["status"]) == (command_id, status):
                        return reply
                await asyncio.sleep(0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.store.open()
        await self.source.start()
        task = asyncio.create_task(self.control.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), "it must not end by itself"


@pytest.fixture
def world() -> World:
    return World()


async def test_commands_wait_for_a_store_that_is_away_and_are_obeyed_in_their_order(world: World) -> None:
    """Once it gave up after half a minute: the command stayed unacknowledged with a worker that never looked again."""
    world.store.away = StoreUnavailable("locked")
    async with world.running():
        world.send("pause", "all", "first")
        await world.store.asked.wait()
        world.send("train-now", "job.S", "second", scenario="S")
        world.send("status", "all", "now")
        assert (await world.answers("now", "done"))["error"] is None, "status needs no store"
        assert [command.command_id for command in world.done] == ["now"]

        world.store.away = None
        await world.answers("second", "done")
        assert [command.command_id for command in world.done] == ["now", "first", "second"]
    assert not world.source.outstanding, "acknowledged"


async def test_a_command_whose_time_is_over_when_the_store_is_back_is_refused(world: World) -> None:
    world.store.away = StoreUnavailable("locked")
    async with world.running():
        world.send("pause", "all", "late", expires_at_ms=world.clock.now_ms() + 1_000)
        await world.store.asked.wait()
        world.clock.advance(2)
        world.store.away = None
        assert (await world.answers("late", "refused"))["result"] == {"reason": "expired"}
    assert not world.done


async def test_a_command_that_the_store_refuses_is_refused_and_the_next_is_obeyed(world: World) -> None:
    world.store.away = DataRefused("no such thing")
    async with world.running():
        world.send("pause", "all", "odd")
        assert (await world.answers("odd", "refused"))["result"] == {"reason": "store_refused"}
        world.store.away = None
        world.send("pause", "all", "good")
        await world.answers("good", "done")


async def test_the_end_of_a_command_is_stored_when_the_store_is_back(world: World) -> None:
    """Left open in the ledger, a pause would be carried out again at the next start, after the resume that undid it."""
    async with world.running():
        world.leave_when_done = True
        world.send("pause", "all", "c")
        await world.answers("c", "accepted")
        world.store.asked.clear()
        await world.store.asked.wait()
        assert world.done, "the question was about its end"
        world.store.away = None
        await world.answers("c", "done")
    assert await world.store.unfinished_commands() == []


async def test_a_pause_sent_to_one_scenarios_workers_pauses_no_other(world: World) -> None:
    """Also after a restart, when only the row knows where it was sent."""
    async with world.running():
        world.send("pause", "scenario.S", "wide")
        world.send("pause", "scenario.S", "other", scenario="T")
        await world.answers("wide", "done")
        assert (await world.answers("other", "refused"))["result"] == {"reason": "wrong_route"}
    assert [command.scenario for command in world.done] == ["S"]

    row = StoredCommand(
        command_id="left@w1", command="pause", scenario="S", received_at_ms=0,
        body=b'{"schema_version": 1, "command": "pause", "command_id": "left"}',
    )  # fmt: skip
    await world.store.accept_command(row)
    async with world.running():
        world.send("pause", "all", "after")
        await world.answers("after", "done")
    assert [(command.command_id, command.scenario) for command in world.done[1:]] == [("left", "S"), ("after", None)]


async def test_a_command_is_answered_with_what_the_ledger_says(world: World) -> None:
    """Another start may have carried it on meanwhile: its word was the first, and a second answer would contradict."""
    asked = world.control._carry_out

    async def overtaken(command: Command, received_at_ms: int) -> dict[str, Any]:
        await world.store.finish_command("job", status="failed", result={}, error="interrupted", now_ms=1)
        return await asked(command, received_at_ms)

    world.control._carry_out = overtaken
    async with world.running():
        world.send("rollback", "job.S", "job", scenario="S")
        assert (await world.answers("job", "failed"))["error"] == "interrupted"
        world.send("rollback", "job.S", "job", scenario="S")
        await world.answers("job", "failed")
    assert {json.loads(held.message.body)["status"] for held in world.replies.ready} == {"accepted", "failed"}


async def test_a_start_leaves_another_workers_broadcast_commands_alone(world: World) -> None:
    """A pause of one worker that died would pause the other, and nobody would ever resume it."""
    row = StoredCommand(
        command_id="left@w2", command="pause", scenario=None, received_at_ms=0,
        body=b'{"schema_version": 1, "command": "pause", "command_id": "left"}',
    )  # fmt: skip
    await world.store.open()
    await world.store.accept_command(row)
    async with world.running():
        world.send("resume", "all", "after")
        await world.answers("after", "done")
    assert [command.command_id for command in world.done] == ["after"]


async def test_an_id_that_was_another_commands_is_refused(world: World) -> None:
    """It was answered with the end of the other one: a rollback that nobody carried out was `done`."""
    async with world.running():
        world.send("train-now", "job.S", "x", scenario="S", args={"force": True})
        await world.answers("x", "done")
        others: list[tuple[str, str, dict[str, Any]]] = [
            ("rollback", "job.S", {"scenario": "S"}),
            ("train-now", "job.T", {"scenario": "T", "args": {"force": True}}),
            ("train-now", "job.S", {"scenario": "S", "args": {}}),
        ]
        for number, (command, key, fields) in enumerate(others, start=1):
            world.replies.ready.clear()
            world.send(command, key, "x", **fields)
            refused = await world.answers("x", "refused")
            assert refused["result"] == {"reason": "command_conflict"}
            assert world.control.stats.refused == {"command_conflict": number}
        world.send("train-now", "job.S", "x", scenario="S", args={"force": True}, expires_at_ms=1 << 60)
        await world.answers("x", "done")  # the same one once more, sent anew
    assert [command.command for command in world.done] == ["train-now"]
    assert not world.source.outstanding, "acknowledged"


async def test_an_end_that_is_not_known_is_not_told_and_the_next_start_carries_the_command_on(world: World) -> None:
    """Told as failed, it went live all the same; a rollback that a crash cut short was told so and then carried out."""
    asked = world.control._carry_out

    async def unknown(command: Command, received_at_ms: int) -> dict[str, Any]:
        await asked(command, received_at_ms)
        raise EndNotStored("locked")

    world.control._carry_out = unknown
    async with world.running():
        world.send("rollback", "job.S", "back", scenario="S")
        await world.answers("back", "accepted")
        while not world.done:  # noqa: ASYNC110 - in memory, at the next turn of the loop
            await asyncio.sleep(0)
        await world.control.settle(5)
    assert [stored.command_id for stored in await world.store.unfinished_commands()] == ["back"]
    assert {json.loads(held.message.body)["status"] for held in world.replies.ready} == {"accepted"}

    world.control._carry_out = asked
    world.clock.advance(60)
    async with world.running():
        await world.answers("back", "done")
    assert [command.command_id for command in world.done] == ["back", "back"]
    assert world.received_at_ms[0] == world.received_at_ms[1]  # when it came, not when it was carried on


async def test_a_status_that_no_answer_has_room_for_says_where_to_look(world: World) -> None:
    """It was dropped: whoever asked a worker of sixty scenarios heard that there is no worker."""
    found = {"scenarios": {f"scenario-{number}": {"waiting_for": "x" * 1_000} for number in range(100)}}

    async def told(_: Command, received_at_ms: int) -> dict[str, Any]:
        return found

    world.control._carry_out = told
    async with world.running():
        world.send("status", "all", "much")
        assert (await world.answers("much", "done"))["result"] == found
        found["scenarios"]["big"] = {"waiting_for": "x" * MAX_REPLY}
        world.send("status", "all", "too much")
        assert "look at /status" in (await world.answers("too much", "failed"))["error"]
