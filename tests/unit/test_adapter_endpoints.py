"""Whom a node is told to ask for the live adapter, by events alone: at each apply, rollback, failure and move."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.test_models_adapters import BOTH, register
from tests.unit.test_models_applier import register as register_model
from tests.unit.training_world import World, opened, worker_over
from worker.client.following import LiveAdapter, LiveModel
from worker.errors import ApplyFailed
from worker.models.announce import Announcer
from worker.models.applicators.endpoint import CurrentDocuments
from worker.models.applicators.noop import NoopApplicator
from worker.models.applier import Applier
from worker.store.port import Model, Store
from worker.wire.events import Applied, Event, RolledBack, decode_event
from worker.wire.served import Endpoint


class Pair(NoopApplicator):
    """Two servers that take turns, as `blue_green` has them; `broken` is an adapter that neither can load."""

    name = "pair"

    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self._documents = CurrentDocuments(data_dir, "lora")
        self.turns = 0
        self.broken: str | None = None

    async def apply(self, model: Model, content: bytes) -> None:
        """On the other server, and name it."""
        if model.sha256 == self.broken:
            raise ApplyFailed("it does not load")
        self.turns += 1
        await super().apply(model, content)
        self._documents.write(model, content, at(self.turns, model))

    def lose(self, scenario: str) -> None:
        """The server was killed; the document still names it."""
        self._served.pop(scenario)


def at(turn: int, model: Model) -> Endpoint:
    """The server of a turn."""
    return Endpoint(url=f"http://{'green' if turn % 2 else 'blue'}:8080", model=f"S@{model.version}")


def applier_over(world: World, pair: Pair) -> Applier:
    return Applier(
        store=world.store, registry=world.registry, applicators={"lora": pair, "offline": NoopApplicator()},
        announcer=Announcer("w"), clock=world.tools.clock, mode_of=lambda _: "auto", max_history=3,
        endpoint_of=CurrentDocuments(world.data_dir, "lora").endpoint_of,
    )  # fmt: skip


async def told(store: Store) -> list[Event]:
    """All events, oldest first."""
    return [decode_event(row.body) for row in reversed(await store.events())]


class Node:
    """Knows nothing but events."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._heard = 0
        self.live = LiveAdapter("S")

    async def listen(self) -> list[bool]:
        """For each event since the last time: whether it changed whom to ask."""
        events = (await told(self._store))[self._heard :]
        self._heard += len(events)
        return [self.live.take(event) for event in events]


async def test_a_node_follows_applies_and_rollbacks_by_events_alone(tmp_path: Path) -> None:
    async with opened(tmp_path, "memory") as store:
        world, pair, node = worker_over(store, tmp_path, kinds=BOTH), Pair(tmp_path), Node(store)
        applier = applier_over(world, pair)
        one, two = await register(world, 1), await register(world, 2)
        assert (node.live.model_id, node.live.endpoint) == (None, None)
        await applier.apply_now(one, by="anna")
        assert await node.listen() == [True]
        assert (node.live.model_id, node.live.endpoint) == (one.model_id, at(1, one))
        await applier.apply_now(two, by="anna")
        await node.listen()
        assert node.live.endpoint == at(2, two)
        await applier.rollback("S", by="anna", kind="lora")
        await node.listen()
        assert (node.live.model_id, node.live.endpoint) == (one.model_id, at(3, one))


async def test_after_a_failed_apply_a_node_is_told_where_the_adapter_before_it_is_now(tmp_path: Path) -> None:
    """The way back may end at another server than it began."""
    async with opened(tmp_path, "memory") as store:
        world, pair, node = worker_over(store, tmp_path, kinds=BOTH), Pair(tmp_path), Node(store)
        applier = applier_over(world, pair)
        one, two = await register(world, 1), await register(world, 2)
        await applier.apply_now(one, by="anna")
        pair.broken = two.sha256
        with pytest.raises(ApplyFailed):
            await applier.apply_now(two, by="anna")
        assert await node.listen() == [True, False, True]  # applied, failed, rolled back
        assert node.live.endpoint == at(2, one)


async def test_a_first_adapter_that_fails_is_nobodys_to_ask(tmp_path: Path) -> None:
    """There is nothing to go back to: a node goes on with its base model."""
    async with opened(tmp_path, "memory") as store:
        world, pair, node = worker_over(store, tmp_path, kinds=BOTH), Pair(tmp_path), Node(store)
        only = await register(world, 1)
        pair.broken = only.sha256
        with pytest.raises(ApplyFailed):
            await applier_over(world, pair).apply_now(only, by="anna")
        assert await node.listen() == [False]
        assert (node.live.model_id, node.live.endpoint) == (None, None)


async def test_an_adapter_that_was_brought_again_elsewhere_is_told_anew(tmp_path: Path) -> None:
    """Its server died and the other one took over: nobody applied anything, and the address is another one."""
    async with opened(tmp_path, "memory") as store:
        world, pair, node = worker_over(store, tmp_path, kinds=BOTH), Pair(tmp_path), Node(store)
        applier = applier_over(world, pair)
        one, two = await register(world, 1), await register(world, 2)
        await applier.apply_now(one, by="anna")
        await applier.apply_now(two, by="anna")
        await node.listen()
        pair.lose("S")
        assert await applier.reconcile("S", "lora")
        assert await node.listen() == [True]
        assert (node.live.model_id, node.live.endpoint) == (two.model_id, at(3, two))
        assert await applier.history("S", "lora") == [two.model_id, one.model_id]
        newest = (await store.deployments("S", kind="lora", limit=1))[0]
        assert (newest.by, newest.state, newest.model_id) == ("worker", "verified", two.model_id)


async def test_an_adapter_that_was_brought_again_in_its_place_is_no_news(tmp_path: Path) -> None:
    async with opened(tmp_path, "memory") as store:
        world, pair, node = worker_over(store, tmp_path, kinds=BOTH), Pair(tmp_path), Node(store)
        applier = applier_over(world, pair)
        await applier.apply_now(await register(world, 1), by="anna")
        pair.lose("S")
        pair.turns += 1
        assert await applier.reconcile("S", "lora")
        assert await node.listen() == [True]
        assert len(await store.deployments("S")) == 1


async def test_an_adapter_that_only_lies_there_has_no_server(tmp_path: Path) -> None:
    """And a node that was sent to one before asks it no more."""
    async with opened(tmp_path, "memory") as store:
        world, node = worker_over(store, tmp_path, kinds=BOTH), Node(store)
        one, two = await register(world, 1), await register(world, 2)
        await applier_over(world, Pair(tmp_path)).apply_now(one, by="anna")
        await world.applier.apply_now(two, by="anna")  # by `noop`
        await node.listen()
        assert (node.live.model_id, node.live.endpoint) == (two.model_id, None)


async def test_models_and_adapters_are_followed_apart(tmp_path: Path) -> None:
    async with opened(tmp_path, "memory") as store:
        world, pair = worker_over(store, tmp_path, kinds=BOTH), Pair(tmp_path)
        applier = applier_over(world, pair)
        model, adapter = await register_model(world, 1), await register(world, 2)
        await applier.apply_now(model, by="anna")
        await applier.apply_now(adapter, by="anna")
        applied, of_adapter = await told(store)
        assert isinstance(applied.data, Applied)
        assert not applied.data.endpoint
        elsewhere = LiveAdapter("T")
        assert [one.take(of_adapter) for one in (LiveModel("S"), elsewhere, LiveAdapter("S"))] == [False, False, True]
        assert not LiveAdapter("S").take(applied)


def test_what_an_older_worker_rolled_back_to_has_no_known_server() -> None:
    live = LiveAdapter("S")
    applied = Applied(
        scenario="S", model_id="m2", model_version=2, previous_model_id="m1", applicator="vllm", target="t",
        verified=True, by="anna", kind="lora", endpoint=Endpoint(url="http://x", model="S@2"),
    )  # fmt: skip
    back = RolledBack(scenario="S", reason="rollback", details={"live_model_id": "m1", "kind": "lora"})
    assert live.take(Event(id="1", source="/w", type="learning.applied", time_ms=1, data=applied))
    assert live.take(Event(id="2", source="/w", type="learning.rolled_back", time_ms=2, data=back))
    assert (live.model_id, live.endpoint) == ("m1", None)
