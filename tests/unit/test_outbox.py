"""The outbox relay: in order, confirmed before it is marked, held back by a failure, drained in bounded time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import worker.outbox
from tests.unit.training_world import eventually, opened
from worker.broker.port import OutgoingMessage
from worker.clock import SystemClock
from worker.errors import PublishFailed, StoreUnavailable
from worker.outbox import OutboxRelay, message_of
from worker.store.port import Outbox, OutboxEvent, Store


class Wire:
    """A broker that confirms, or does not."""

    def __init__(self) -> None:
        self.down = False
        self.sent: list[str] = []

    async def publish(self, message: OutgoingMessage, *, mandatory: bool = True, timeout: float = 10.0) -> None:
        """Confirm, or fail as the port says."""
        assert mandatory
        assert timeout
        if self.down:
            raise PublishFailed("no connection")
        self.sent.append(message.message_id)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.outbox, "_BACKOFF_FIRST", 0.02)


def event(name: str) -> OutboxEvent:
    return OutboxEvent(
        event_id=name, type="learning.trained", scenario="S", routing_key="learning.trained.S", body=b"{}",
        created_at_ms=1,
    )  # fmt: skip


def test_a_message_can_be_found_by_event_and_by_scenario() -> None:
    """Routing key for one scenario, CC for the bare name (design 3.2)."""
    message = message_of(event("e1"))
    assert (message.exchange, message.routing_key, message.headers) == (
        "swarm.learning", "learning.trained.S", {"CC": ["learning.trained"]},
    )  # fmt: skip
    assert (message.message_id, message.type, message.content_type) == (
        "e1", "learning.trained", "application/cloudevents+json",
    )  # fmt: skip


async def test_events_go_out_in_order_and_once(tmp_path: Path) -> None:
    """More than a page of them."""
    async with opened(tmp_path) as store:
        wire, names = Wire(), [f"e{n:03}" for n in range(250)]
        await store.add_events([event(name) for name in names])
        relay = OutboxRelay(store, wire, SystemClock())
        assert await relay.drain(5)
        assert wire.sent == names
        assert await relay.drain(5)
        assert len(wire.sent) == 250
        assert (relay.stats.sent, relay.stats.waiting) == (250, 0)


async def test_an_event_that_fails_holds_back_those_behind_it_until_the_broker_is_back(tmp_path: Path) -> None:
    """Order is kept; attempts and the oldest age are there for an alarm."""
    async with opened(tmp_path) as store:
        wire, stopping = Wire(), asyncio.Event()
        wire.down = True
        relay = OutboxRelay(store, wire, SystemClock())
        task = asyncio.create_task(relay.run(stopping))
        await store.add_events([event("e1"), event("e2")])
        relay.wake()
        await eventually(lambda: relay.stats.failures >= 3)
        assert (relay.stats.waiting, relay.stats.oldest_created_at_ms) == (2, 1)
        assert relay.stats.last_error == "no connection"
        # The third attempt's row may be on its way still.
        assert (await store.unsent_events(9))[0].attempts >= 2
        wire.down = False
        await eventually(lambda: wire.sent == ["e1", "e2"])
        await store.add_events([event("e3")])
        relay.wake()
        await eventually(lambda: wire.sent == ["e1", "e2", "e3"])
        stopping.set()
        await asyncio.wait_for(task, 2)


async def test_a_crash_between_confirm_and_mark_sends_again_under_the_same_id(tmp_path: Path) -> None:
    """At least once, and subscribers can tell."""

    class Crashing:
        """A store that dies where it hurts."""

        def __init__(self, store: Store) -> None:
            self._store = store

        def __getattr__(self, name: str) -> object:
            return getattr(self._store, name)

        async def mark_sent(self, *_: object) -> None:
            raise StoreUnavailable("gone")

    async with opened(tmp_path) as store:
        wire = Wire()
        await store.add_events([event("e1")])
        crashing: Outbox = Crashing(store)  # type: ignore[assignment]  # it hands on by name
        assert not await OutboxRelay(crashing, wire, SystemClock()).drain(0.9)
        before = len(wire.sent)
        assert await OutboxRelay(store, wire, SystemClock()).drain(1)
        assert before >= 1
        assert wire.sent == ["e1"] * (before + 1)


async def test_draining_is_bounded_and_leaves_the_rest_in_the_store(tmp_path: Path) -> None:
    """A broker that is away must not hold up a shutdown."""
    async with opened(tmp_path) as store:
        wire = Wire()
        wire.down = True
        await store.add_events([event("e1")])
        async with asyncio.timeout(2):
            assert not await OutboxRelay(store, wire, SystemClock()).drain(0.1)
        assert len(await store.unsent_events(9)) == 1
