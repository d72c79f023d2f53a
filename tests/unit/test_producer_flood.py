"""A flood of lies from one producer: capped, told of, and the model follows the others (S20)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.unit.training_world import CONFIG, World, opened, worker_over
from worker.learning import offline_model
from worker.learning.advice import Advice
from worker.wire.events import Trained

HONEST = [f"node-{n}" for n in range(9)]
#: The share of the model's episodes that is measured below.
SHARE = 0.33


async def learn(tmp_path: Path, feed: Any, share: float = SHARE) -> tuple[World, offline_model.OfflineModel, Trained]:
    """Train once on what `feed` puts in."""
    async with opened(tmp_path, "memory") as store:
        world = worker_over(store, tmp_path, config=replace(CONFIG, producer_share=share))
        await feed(world)
        async with world.running():
            run = await world.runs.wait(await world.command("c1", force=True))
            assert run is not None
            assert run.state == "trained", run.reason
        (event,) = [one.data for one in await world.events() if one.type == "learning.trained"]
        assert isinstance(event, Trained)
        (model,) = await store.models("S")
        return world, offline_model.decode(await world.registry.read(model)), event


async def swarm(world: World) -> None:
    """Nine nodes find `look` good and `guess` bad; a tenth says the opposite, with as much as a hundred of them."""
    for node in HONEST:
        await world.feed(20, producer=node, good=lambda n: n % 2 == 0, project=False)
    for _ in range(4):
        await world.feed(500, producer="liar", lies=True, good=lambda n: n % 2 == 0, project=False)
    await world.project()


async def test_a_flood_of_lies_does_not_turn_the_order_of_actions(tmp_path: Path) -> None:
    """And everyone is told who was capped. Without a limit the lies win: the test can fail."""
    _, model, event = await learn(tmp_path, swarm)
    assert Advice(model).next_actions(None) == ["look", "guess"]
    assert event.counts.producers == {"liar": 2_000, **dict.fromkeys(HONEST, 20)}
    assert event.counts.capped is not None
    assert set(event.counts.capped) == {"liar"}
    kept = 2_000 * event.counts.capped["liar"]
    assert kept <= 100.1  # what each may always bring; of 180 by the others
    _, model, event = await learn(tmp_path / "open", swarm, share=1.0)
    assert Advice(model).next_actions(None) == ["guess", "look"]
    assert event.counts.capped is None


async def test_the_order_in_which_they_come_changes_nothing(tmp_path: Path) -> None:
    """The liar first, last or in between: the same model, to the byte but for its window and time."""

    async def backwards(world: World) -> None:
        for _ in range(4):
            await world.feed(500, producer="liar", lies=True, good=lambda n: n % 2 == 0)
        for node in reversed(HONEST):
            await world.feed(20, producer=node, good=lambda n: n % 2 == 0)

    models = []
    for place, feed in enumerate((swarm, backwards)):
        _, model, _ = await learn(tmp_path / str(place), feed)
        models.append(replace(model, window=offline_model.Window(), updated_at_ms=0))
    assert models[0] == models[1]
